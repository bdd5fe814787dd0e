"""A JSON schema of the configuration file, made from the records: editors complete and check by it.

`loader` decides what loads; the schema describes what a careful author writes (whole numbers, known words). It allows
unknown keys only at the top, as a place for YAML anchors.
"""

from __future__ import annotations

from typing import Any

from attrs import NOTHING, Attribute, Factory

from llamaswap.config.field_types import Document, Key, Record, SectionMapType, SectionType, ValueType, keys_of
from llamaswap.config.schema import Config

DIALECT = "http://json-schema.org/draft-07/schema#"


def json_schema() -> Document:
    """The JSON schema of a configuration file."""
    definitions: Document = {}
    root = _record(Config, definitions)
    root["additionalProperties"] = True  # e.g. a place for anchors
    return {
        "$schema": DIALECT,
        "title": "llamaswap configuration",
        **root,
        "definitions": dict(sorted(definitions.items())),
    }


def _record(record: Record, definitions: Document) -> Document:
    properties = {name: _property(attribute, key, definitions) for name, (attribute, key) in keys_of(record).items()}
    doc = (record.__doc__ or "").strip().split("\n")[0]
    return {"type": "object", "description": doc, "properties": properties, "additionalProperties": False}


def _property(attribute: Attribute[Any], key: Key, definitions: Document) -> Document:
    bounds: Document = dict(key.bounds)
    known = bounds.pop("known", None)
    example = bounds.pop("example", None)
    kind = key.kind
    value = kind.schema(bounds) if isinstance(kind, ValueType) else _nested(kind, definitions)
    described = {"description": key.doc, **value}
    if known or example:
        described["examples"] = [example] if example else list(known)
    default = bounds.pop("shown_default", NOTHING)
    if default is NOTHING:
        default = _default(attribute, kind)
    return described if default is NOTHING else {**described, "default": default}


def _default(attribute: Attribute[Any], kind: ValueType[Any] | SectionType | SectionMapType) -> object:
    """The record's default as YAML, NOTHING if the schema should not show it."""
    value: Any = attribute.default
    if isinstance(value, Factory):  # type: ignore[arg-type]  # attrs types Factory as a function
        return {}
    if value is None or not isinstance(kind, ValueType):
        return NOTHING
    written = kind.write(value)
    return list(written) if isinstance(written, tuple) else written


def _nested(kind: SectionType | SectionMapType, definitions: Document) -> Document:
    name = kind.record.__name__
    if name not in definitions:
        definitions[name] = {}  # in case a record contains itself
        definitions[name] = {**_record(kind.record, definitions), "type": ["object", "null"]}
    reference = {"$ref": f"#/definitions/{name}"}
    if isinstance(kind, SectionType):
        if kind.many:
            item = {"anyOf": [reference, {"type": ["string", "number"]}]}
            return {"type": ["array", "null"], "items": item}
        if kind.shorthand:
            return {"anyOf": [reference, *definitions[name]["properties"][kind.shorthand]["anyOf"]]}
        return {"allOf": [reference]}
    return {"type": ["object", "null"], "additionalProperties": reference}
