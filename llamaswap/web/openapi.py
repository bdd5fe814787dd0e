"""The OpenAPI 3.1 document of the whole surface, made from the route table."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from attrs import define

from llamaswap.version import Build
from llamaswap.web.admin_request import AdminRequest, Response, json_answer
from llamaswap.web.route import Route, RouteTable

ANY = ("GET", "POST", "PUT", "PATCH", "DELETE")
VARIABLE = re.compile(r"<(?:(\w+):)?(\w+)>")


def _object(properties: Mapping[str, Any], required: Iterable[str] | None = None, **more: Any) -> dict[str, Any]:
    names = list(properties) if required is None else list(required)
    return {"type": "object", "properties": dict(properties), "required": names, **more}


def _array(items: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": dict(items)}


S: dict[str, Any] = {"type": "string"}
INT: dict[str, Any] = {"type": "integer"}
N: dict[str, Any] = {"type": "number"}
B: dict[str, Any] = {"type": "boolean"}
T: dict[str, Any] = {"type": "string", "format": "date-time"}
ANYTHING: dict[str, Any] = {"type": "object"}
NULL_S: dict[str, Any] = {"type": ["string", "null"]}
NULL_I: dict[str, Any] = {"type": ["integer", "null"]}
NULL_N: dict[str, Any] = {"type": ["number", "null"]}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


_TOKENS = _object(
    {
        **dict.fromkeys(("cache_tokens", "draft_tokens", "draft_acc_tokens", "input_tokens", "output_tokens"), INT),
        **dict.fromkeys(("prompt_per_second", "tokens_per_second"), N),
    }
)
_ROW = _object(
    {
        "id": INT,
        "timestamp": T,
        "model": S,
        "req_path": S,
        "resp_content_type": S,
        "resp_status_code": INT,
        "tokens": _TOKENS,
        "duration_ms": INT,
        "has_capture": B,
        "error_msg": S,
        "metadata": ANYTHING,
        "session": S,
        "client": S,
    },
    ("id", "timestamp", "model", "tokens", "duration_ms", "has_capture"),
)
_SEGMENT = _object(
    {
        "model": S,
        "state": S,
        "t0": T,
        "t1": NULL_S,
        "reason": S,
        "swap_id": NULL_I,
        "busy": INT,
        "vram_mb": NULL_I,
    },
    ("model", "state", "t0", "t1", "reason", "swap_id"),
)
_SWAP = _object(
    {
        "id": INT,
        "model": S,
        "evicted": _array(S),
        "reason": S,
        "trigger": _object({"kind": S, "id": S}, ["kind"]),
        "exit_code": NULL_I,
        "began": T,
        "ended": NULL_S,
        "error": NULL_S,
        "outcome": S,
        "start": T,
        "end": NULL_S,
        "phases": _array(_object({"name": S, "start": T, "end": T, "seconds": N})),
    }
)
_PROBLEM = _object({"message": S, "path": S, "file": NULL_S, "line": NULL_I, "col": NULL_I, "hint": S})
_IMPACT = _object({"restart": _array(S), "add": _array(S), "remove": _array(S)})
_PROFILE = _object({"id": S, "description": S, "pins": ANYTHING})

SCHEMAS: dict[str, dict[str, Any]] = {
    "Error": _object(
        {
            "src": S,
            "error": _object({"message": S, "type": S, "param": {"type": "null"}, "code": S}),
        }
    ),
    "Message": _object({"msg": S}),
    "ModelName": _object({"model": S}),
    "ModelList": _object(
        {
            "object": S,
            "data": _array(
                _object({"id": S, "object": S, "created": INT, "owned_by": S, "meta": ANYTHING, "status": ANYTHING})
            ),
        }
    ),
    "Running": _object(
        {
            "running": _array(
                _object({"model": S, "state": S, "cmd": S, "proxy": S, "ttl": INT, "name": S, "description": S})
            ),
            "sleeping": _array(_object({"model": S, "pid": NULL_I})),
            "failing": _array(
                _object({"model": S, "failures": INT, "retry_in_s": N, "error": S, "log_tail": _array(S)})
            ),
        },
        ("running",),
    ),
    "Readiness": _object(
        {
            "ready": B,
            "oldest_waiter_seconds": NULL_N,
            "last_decision_seconds": NULL_N,
            "running": INT,
            "waiting": INT,
            "serving": INT,
        }
    ),
    "Profiles": _object({"active": NULL_S, "profiles": _array(_PROFILE)}),
    "Active": _object({"active": NULL_S}),
    "Peers": _object(
        {
            "peers": _array(
                _object(
                    {
                        "id": S,
                        "proxy": S,
                        "auto": B,
                        "models": _array(S),
                        "state": S,
                        "since": NULL_S,
                        "checked": NULL_S,
                        "error": NULL_S,
                    }
                )
            )
        }
    ),
    "Choice": _object({"name": NULL_S}),
    "ActivityPage": _object(
        {"data": _array(_ROW), "page": INT, "limit": INT, "total": INT, "total_pages": INT, "store_error": S},
        ("data", "page", "limit", "total", "total_pages"),
    ),
    "Stats": _object(
        {
            "total_requests": INT,
            "total_input_tokens": INT,
            "total_output_tokens": INT,
            "total_cache_tokens": INT,
            "prompt_histogram": {"type": ["object", "null"]},
            "gen_histogram": {"type": ["object", "null"]},
        }
    ),
    "Metrics": _array(_object({"id": INT, "timestamp": T, "model": S, "input_tokens": INT, "output_tokens": INT})),
    "Capture": _object(
        {
            "id": INT,
            "req_path": S,
            "req_headers": {"type": ["object", "null"]},
            "req_body": NULL_S,
            "resp_headers": {"type": ["object", "null"]},
            "resp_body": NULL_S,
        }
    ),
    "Version": _object({"version": S, "commit": S, "build_date": S}),
    "Performance": _object(
        {"enabled": B, "sys_stats": {"type": ["array", "null"]}, "gpu_stats": {"type": ["array", "null"]}}, ["enabled"]
    ),
    "Hardware": _object({"schema_version": INT, "captured_at": T, "accelerators": _array(ANYTHING)}),
    "Features": {"type": "object", "additionalProperties": B},
    "Upgrade": _object({"pid": INT, "count": INT, "attempts": INT, "phase": S, "error": S}),
    "Residency": _array(_SEGMENT),
    "Swaps": _array(_SWAP),
    "Swap": {**_SWAP, "properties": {**_SWAP["properties"], "log_tail": S}},
    "Plan": _object(
        {
            "model": S,
            "action": S,
            "running": B,
            "asleep": B,
            "evicts": _array(_object({"model": S, "active": INT})),
            "waits_for": _array(S),
            "reason": S,
            "eta_ms": NULL_I,
        }
    ),
    "Queue": _object(
        {"queue": _array(_object({"number": INT, "model": S, "position": INT, "wait_ms": INT, "priority": INT}))}
    ),
    "Model": _object(
        {
            "id": S,
            "state": S,
            "aliases": _array(S),
            "cmd": _array(S),
            "pid": NULL_I,
            "port": NULL_I,
            "uptime_s": NULL_N,
            "ttl_s": INT,
            "pinned": B,
            "active": INT,
            "waiting": INT,
            "groups": _array(S),
            "last_error": NULL_S,
            "vram_mb": NULL_I,
            "load_ms": _array(INT),
            "asleep": B,
            "asleep_s": NULL_N,
            "slot_cache": ANYTHING,
            "wake_ms": _array(INT),
            "stall": ANYTHING,
        }
    ),
    "Accepted": _object({"model": S, "state": S, "pinned": B}),
    "Impact": _object({"warnings": _array(_PROBLEM), "impact": _IMPACT}),
    "Validation": _object(
        {"valid": B, "errors": _array(_PROBLEM), "warnings": _array(_PROBLEM), "impact": _IMPACT}, ["valid"]
    ),
    "ReloadStatus": _object({"editable": B, "result": S, "at": T, "message": S, "touched": ANYTHING}),
    "ConfigHistory": _object(
        {
            "versions": _array(
                _object(
                    {
                        "id": S,
                        "time": T,
                        "size": INT,
                        "why": {"type": "string", "enum": ["found", "saved", "restored", "unknown"]},
                        "address": S,
                        "agent": S,
                        "restored_from": NULL_S,
                        "in_force": B,
                    }
                )
            )
        }
    ),
    "Discovered": _object(
        {
            "models": _array(
                _object(
                    {
                        **dict.fromkeys(("name", "note", "section", "yaml"), S),
                        "command": _array(S),
                        "bytes": INT,
                        "usable": B,
                        "configured_as": NULL_S,
                    }
                )
            ),
            "engines": _array(_object({"name": S, "path": S, "yaml": S})),
            "servers": _array(
                _object(
                    {
                        **dict.fromkeys(("name", "url", "section", "yaml"), S),
                        "models": _array(S),
                        "configured_as": NULL_S,
                    }
                )
            ),
            "complete": B,
        }
    ),
    "JsonSchema": ANYTHING,
    "OpenApi": ANYTHING,
    "LoadTest": _object(
        {
            "id": S,
            "state": S,
            "model": S,
            "done": INT,
            "total": INT,
            "results": ANYTHING,
            "shots": _array(
                _object({"lane": INT, "began_ms": INT, "ttft_ms": NULL_I, "duration_ms": INT, "status": INT})
            ),
        },
        ("id", "state", "model", "done", "total", "results"),
    ),
    "LoadTestOrder": _object(
        {"model": S, "prompt": S, "concurrency": INT, "requests": INT, "max_tokens": INT}, ["model"]
    ),
    "Inference": _object({"model": S, "stream": B}, ["model"], additionalProperties=True),
    "InferenceForm": _object(
        {"model": S, "file": {"type": "string", "contentMediaType": "application/octet-stream"}}, ["model"]
    ),
}
BODIES = {"InferenceForm": "multipart/form-data", "Yaml": "application/yaml"}


def path_of(rule: str) -> str:
    """A Klein rule as an OpenAPI path template."""
    return VARIABLE.sub(lambda match: "{" + match[2] + "}", rule)


def document(routes: Iterable[Route], version: str) -> dict[str, Any]:
    """Every route with its parameters, body and answers."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        item = paths.setdefault(path_of(route.rule), {})
        for method in route.methods or ANY:
            item[method.lower()] = _operation(route, method)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "llamaswap",
            "version": version,
            "description": "One endpoint in front of every local inference server.",
        },
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "basic": {"type": "http", "scheme": "basic", "description": "Any user name, the key as password."},
                "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{}, {"bearer": []}, {"basic": []}, {"header": []}],
    }


def _operation(route: Route, method: str) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [
        {"name": match[2], "in": "path", "required": True, "schema": S, "description": _about(match[1])}
        for match in VARIABLE.finditer(route.rule)
    ]
    for query in route.query:
        schema: dict[str, Any] = {"type": query.kind}
        kind = _array(schema) if query.repeatable else schema
        parameters.append({"name": query.name, "in": "query", "schema": kind, "description": query.about})
    answer: dict[str, Any] = {"description": "The answer"}
    if route.status // 100 == 3:
        answer = {"description": "Elsewhere", "headers": {"Location": {"schema": S}}}
    else:
        answer["content"] = {route.content: {"schema": _ref(route.schema) if route.schema else {}}}
        if route.tag == "inference":
            # What a model's server answers is its own affair: JSON, a stream where one was asked for, sound, a picture.
            answer["content"] |= {"text/event-stream": {"schema": {}}, "*/*": {"schema": {}}}
    errors = {"description": "What went wrong", "content": {"application/json": {"schema": _ref("Error")}}}
    operation: dict[str, Any] = {
        "operationId": _identity(method, route.rule),
        "summary": route.summary,
        "tags": [route.tag],
        "parameters": parameters,
        "responses": {str(route.status): answer, "default": errors},
    }
    if route.body and method in ("POST", "PUT", "PATCH"):
        media = BODIES.get(route.body, "application/json")
        schema = S if route.body == "Yaml" else _ref(route.body)
        operation["requestBody"] = {"required": True, "content": {media: {"schema": schema}}}
    if route.open:
        operation["security"] = []
    return operation


def _about(converter: str | None) -> str:
    return "May contain slashes." if converter == "rest" else ""


def _identity(method: str, rule: str) -> str:
    words = re.sub(r"[^A-Za-z0-9]+", "_", VARIABLE.sub(r"by_\2", rule)).strip("_")
    tail = "_folder" if rule.endswith("/") and rule != "/" else ""
    return f"{method.lower()}_{words or 'root'}{tail}"


@define(eq=False)
class OpenApi:
    """The document, made when first asked for. `routes` is a function: the table holds this group's own route too."""

    routes: Callable[[], Iterable[Route]]
    build: Build
    _made: dict[str, Any] | None = None

    def show(self, call: AdminRequest) -> Response:
        """The document."""
        if self._made is None:
            self._made = document(self.routes(), self.build.version)
        return json_answer(self._made)


_table = RouteTable(OpenApi, "system")
ROUTES = (_table.get("/api/openapi.json", OpenApi.show, "This document", schema="OpenApi"),)
