"""The OpenAPI 3.1 document of the admin site, made from the routes and the types of their documents."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Literal, Union, get_args, get_origin, get_type_hints

from attrs import NOTHING, AttrsInstance, define, field, fields, frozen, has

from llamaswap.version import Build
from llamaswap.web.admin_request import AdminRequest, JsonObject, Response, json_answer
from llamaswap.web.route import Route, RouteTable
from llamaswap.wire.openai import speaks_ollama

ALL_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
PATH_VARIABLE = re.compile(r"<(?:(\w+):)?(\w+)>")
PRIMITIVES: Mapping[object, str] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    dict: "object",
    NoneType: "null",
}
STRING: JsonObject = {"type": "string"}
IF_MATCH: JsonObject = {
    "name": "If-Match",
    "in": "header",
    "required": True,
    "schema": STRING,
    "description": "The ETag of GET /api/config; without it the answer is 428, with that of an older text 412.",
}


@frozen
class ErrorDetail:
    """The inner part of `Error`."""

    message: str
    type: str
    param: None
    code: str


@frozen
class Error:
    """The document of every failure."""

    src: str
    error: ErrorDetail


@frozen
class OllamaError:
    """The document of a failure for callers that parse Ollama's."""

    error: str


@define(eq=False)
class Schemas:
    """Makes JSON schemas of Python types. A record becomes a component with its name, used by reference, and an
    Annotated type adds its (keyword, value) pairs."""

    components: JsonObject = field(factory=dict)

    def schema(self, kind: object) -> JsonObject:
        """The schema of a type; of an unknown one, the schema that admits everything."""
        origin, arguments = get_origin(kind), get_args(kind)
        if isinstance(kind, type) and has(kind):
            return self._reference(kind)
        if origin is Annotated:
            inner, *keywords = arguments
            return {**self.schema(inner), **dict(keywords)}
        if origin is Literal:
            return {"enum": list(arguments)}
        if origin in (Union, UnionType):
            return {"anyOf": [self.schema(one) for one in arguments]}
        if origin in (list, Sequence):
            return {"type": "array", "items": self.schema(arguments[0])}
        if origin in (dict, Mapping):
            return {"type": "object", "additionalProperties": self.schema(arguments[1])}
        return {"type": PRIMITIVES[kind]} if kind in PRIMITIVES else {}

    def _reference(self, kind: type[AttrsInstance]) -> JsonObject:
        name = kind.__name__
        if name not in self.components:
            properties: JsonObject = {}
            required = [member.name for member in fields(kind) if member.default is NOTHING]
            self.components[name] = {"type": "object", "properties": properties, "required": required}
            for key, value in get_type_hints(kind, include_extras=True).items():
                properties[key] = self.schema(value)
        return {"$ref": f"#/components/schemas/{name}"}

    def operation(self, route: Route, method: str) -> JsonObject:
        """One method of a route: its parameters, its body and its responses."""
        parameters: list[JsonObject] = [
            {"name": match[2], "in": "path", "required": True, "schema": STRING, "description": _about(match[1])}
            for match in PATH_VARIABLE.finditer(route.rule)
        ]
        for query in route.query:
            schema: JsonObject = {"type": query.kind}
            kind = {"type": "array", "items": schema} if query.repeatable else schema
            parameters.append({"name": query.name, "in": "query", "schema": kind, "description": query.about})
        if route.needs_tag:
            parameters.append(IF_MATCH)
        responses: JsonObject = {
            str(route.status): self._response(route),
            "default": {
                "description": "What went wrong",
                "content": {"application/json": {"schema": self._errors(route)}},
            },
        }
        if route.may_be_empty:
            responses["202"] = {"description": "Accepted; there is no document"}
        operation: JsonObject = {
            "operationId": _identity(method, route.rule),
            "summary": route.summary,
            "tags": [route.tag],
            "parameters": parameters,
            "responses": responses,
        }
        if route.body is not None and method in ("POST", "PUT", "PATCH"):
            content = {route.body_type: {"schema": self.schema(route.body)}}
            operation["requestBody"] = {"required": True, "content": content}
        if route.key == "not needed":
            operation["security"] = []
        return operation

    def _errors(self, route: Route) -> JsonObject:
        usual = self.schema(OllamaError if speaks_ollama(route.rule) else Error)
        return usual if route.error is None else {"anyOf": [usual, self.schema(route.error)]}

    def _response(self, route: Route) -> JsonObject:
        if route.status // 100 == 3:
            return {"description": "Redirection", "headers": {"Location": {"schema": STRING}}}
        content: JsonObject = {route.content: {"schema": self.schema(route.answer)}}
        if route.tag == "inference":
            # The model's server decides the type: JSON, a stream if the client asked for one, sound, a picture.
            content |= {"text/event-stream": {"schema": {}}, "*/*": {"schema": {}}}
        return {"description": "The answer", "content": content}


def path_template(rule: str) -> str:
    """A Klein rule as an OpenAPI path template."""
    return PATH_VARIABLE.sub(lambda match: "{" + match[2] + "}", rule)


def document(routes: Iterable[Route], version: str) -> JsonObject:
    """Every route with its parameters, its body and its responses."""
    schemas = Schemas()
    paths: dict[str, JsonObject] = {}
    for route in routes:
        item = paths.setdefault(path_template(route.rule), {})
        for method in route.methods or ALL_METHODS:
            item[method.lower()] = schemas.operation(route, method)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "llamaswap",
            "version": version,
            "description": "One endpoint in front of every local inference server.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "basic": {"type": "http", "scheme": "basic", "description": "Any user name, the key as password."},
                "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{}, {"bearer": []}, {"basic": []}, {"header": []}],
    }


def _about(converter: str | None) -> str:
    return "May contain slashes." if converter == "rest" else ""


def _identity(method: str, rule: str) -> str:
    words = re.sub(r"[^A-Za-z0-9]+", "_", PATH_VARIABLE.sub(r"by_\2", rule)).strip("_")
    tail = "_folder" if rule.endswith("/") and rule != "/" else ""
    return f"{method.lower()}_{words or 'root'}{tail}"


route = RouteTable("system", Route)


@define(eq=False)
class OpenApi:
    """Serves the document of all `routes`, made at the first request."""

    routes: Iterable[Route]
    build: Build
    _document: JsonObject | None = None

    @route("GET", "/api/openapi.json", answer=dict[str, object])
    def show(self, call: AdminRequest) -> Response:
        """This document."""
        if self._document is None:
            self._document = document(self.routes, self.build.version)
        return json_answer(self._document)
