"""Reference pages, generated from the records, the route table and the commands when the site is built.

Three directives, each without arguments: `config-keys`, `endpoints`, `command-line`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import click
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective


class Generated(SphinxDirective):
    """Parses lines of reStructuredText in place of itself."""

    def lines(self) -> Iterator[str]:
        """The text."""
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        source = f"<{self.name}>"
        content = StringList([line for text in self.lines() for line in text.split("\n")], source=source)
        return self.parse_text_to_nodes("\n".join(content), allow_section_headings=True)


# -- configuration -----------------------------------------------------------------------------------------


class ConfigKeys(Generated):
    """Every key of the configuration file."""

    def lines(self) -> Iterator[str]:
        from llamaswap.config import Config, json_schema

        schema = json_schema()
        yield from _keys(Config, schema, schema, "", top=True)


def _keys(
    record: type[Any], described: Mapping[str, Any], schema: Mapping[str, Any], lead: str, top: bool = False
) -> Iterator[str]:
    from llamaswap.config import field_types as kinds

    for name, (_, key) in kinds.keys_of(record).items():
        if top:
            yield from ("", name, "-" * len(name))
        path = f"{lead}{name}"
        told = described["properties"][name]
        nested = key.kind if isinstance(key.kind, kinds.SectionType | kinds.SectionMapType) else None
        yield from ("", f".. confval:: {path}")
        one = nested.record.__name__.upper() if isinstance(nested, kinds.SectionMapType) else ""
        shape = f"mapping of {one} to the keys below" if one else "mapping"
        short = nested.shorthand if isinstance(nested, kinds.SectionType) else ""
        if short and nested.many:
            shape = "list of texts and mappings"
        elif short:
            shape = f"{kinds.keys_of(nested.record)[short][1].kind.name}, or mapping"
        yield f"   :type: {shape if nested else key.kind.name}"
        if "default" in told and not nested:
            yield f"   :default: ``{json.dumps(told['default'], ensure_ascii=False)}``"
        yield from ("", f"   {_escaped(key.doc)}")
        yield from (f"   {line}" for line in _bounds(told))
        if key.synonyms:
            yield f"   Also written {', '.join(f'``{word}``' for word in key.synonyms)}."
        if nested and not (top and name in ("groups", "matrix")):
            inner = schema["definitions"][nested.record.__name__]
            many = isinstance(nested, kinds.SectionType) and nested.many
            step = f"{path}.{one}." if one else f"{path}[]." if many else f"{path}."
            yield from _keys(nested.record, inner, schema, step)


def _bounds(told: Mapping[str, Any]) -> Iterator[str]:
    """Words it must be, limits, examples: whatever the schema says."""
    places = [told, *told.get("anyOf", [])]
    for place in places:
        if "enum" in place:
            yield f"One of {_words(word for word in place['enum'] if word != '')}."
        for item in (place.get("items") or {}).get("anyOf", []):
            if "enum" in item:
                yield f"Each one of {_words(item['enum'])}."
        if "minimum" in place:
            yield f"At least {place['minimum']}."
    if "examples" in told:
        yield f"For example {_words(told['examples'])}."


def _words(words: Any) -> str:
    return ", ".join(f"``{word}``" for word in words)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("*", "\\*").replace("`", "\\`").replace("|", "\\|")


# -- endpoints ---------------------------------------------------------------------------------------------

TAGS = {
    "inference": "Inference",
    "models": "Models",
    "memory": "Memory",
    "processes": "Servers",
    "events": "Events",
    "activity": "Activity",
    "keys": "Keys and usage",
    "logs": "Logs",
    "profiles": "Profiles",
    "peers": "Peers",
    "config": "Configuration",
    "system": "System",
    "loadtest": "Load tests",
    "ui": "Web page",
}


class Endpoints(Generated):
    """Every path, by the OpenAPI document's tags."""

    def lines(self) -> Iterator[str]:
        from llamaswap.version import build
        from llamaswap.web.openapi import document
        from llamaswap.web.route_table import ROUTES

        made = document(ROUTES, build().version)
        by_tag: dict[str, list[tuple[str, dict[str, list[str]], Mapping[str, Any]]]] = {}
        for path, operations in made["paths"].items():
            same: dict[str, tuple[list[str], Mapping[str, Any]]] = {}
            for method, operation in operations.items():
                same.setdefault(operation["summary"], ([], operation))[0].append(method.upper())
            for methods, operation in same.values():
                by_tag.setdefault(operation["tags"][0], []).append((path, {"methods": methods}, operation))
        for tag in sorted(by_tag, key=lambda tag: (list(TAGS).index(tag) if tag in TAGS else 99, tag)):
            title = TAGS.get(tag, tag.capitalize())
            yield from ("", title, "-" * len(title))
            for path, more, operation in by_tag[tag]:
                yield from _operation(path, more["methods"], operation)


def _operation(path: str, methods: list[str], operation: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", f".. describe:: {' '.join(methods)} {path}", "")
    summary = _escaped(operation["summary"])
    keyless = " No key is needed." if operation.get("security") == [] else ""
    yield f"   {summary}.{keyless}"
    fields = []
    for parameter in operation["parameters"]:
        about = _escaped(parameter.get("description") or "")
        if parameter["in"] == "query":
            fields.append(f"   :query {parameter['name']}: {about}")
        elif about:
            fields.append(f"   :path {parameter['name']}: {about}")
    body = operation.get("requestBody")
    if body:
        fields.append(f"   :body: {', '.join(f'``{media}``' for media in body['content'])}")
    for status, answer in operation["responses"].items():
        if status != "default":
            content = ", ".join(f"``{media}``" for media in answer.get("content", {}))
            fields.append(f"   :{status}: {content or _escaped(answer['description'])}")
    yield ""
    yield from fields


# -- commands ----------------------------------------------------------------------------------------------


class CommandLine(Generated):
    """The flags, then every command with its help."""

    def lines(self) -> Iterator[str]:
        from llamaswap.cli.command_group import app
        from llamaswap.cli.flags import usage

        yield from ("", "Flags", "-----", "", *_literal(usage().split("\n", 1)[1]))
        yield from _commands(app, ["llamaswap"])


def _commands(group: click.Group, lead: list[str]) -> Iterator[str]:
    context = click.Context(group, info_name=" ".join(lead), max_content_width=100, terminal_width=100)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        title = f"{' '.join(lead)} {name}"
        if isinstance(command, click.Group):
            yield from _commands(command, [*lead, name])
            continue
        yield from ("", title, "-" * len(title), "")
        inner = click.Context(command, info_name=name, parent=context, max_content_width=100, terminal_width=100)
        yield from _literal(command.get_help(inner))


def _literal(text: str) -> Iterator[str]:
    yield from (".. code-block:: text", "")
    yield from (f"   {line}" if line.strip() else "" for line in text.expandtabs(4).split("\n"))
    yield ""


class DrawnAsText(SphinxDirective):
    """A graph's source, where the program that would draw it is not installed."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        text = "\n".join(self.content)
        return [nodes.literal_block(text, text, language="text")]


def setup(app: Any) -> dict[str, Any]:
    """Sphinx's entry point."""
    app.add_directive("config-keys", ConfigKeys)
    app.add_directive("endpoints", Endpoints)
    app.add_directive("command-line", CommandLine)
    if shutil.which("dot") is None:
        app.add_directive("graphviz", DrawnAsText)
    return {"version": "1", "parallel_read_safe": True}
