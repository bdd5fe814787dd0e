"""A JSON schema of the configuration file, read off the records: what editors complete and underline.

It is help, not law: `build` decides what loads. So it says what a careful author would write (whole numbers,
known words) and lets unknown keys pass only where they are a place to keep YAML anchors: at the top.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import NOTHING, Attribute, Factory

from llamaswap.config import field_types
from llamaswap.config.field_types import Key, keys_of

DIALECT = "http://json-schema.org/draft-07/schema#"
MACRO_NAME = "^[A-Za-z0-9_-]{1,63}$"
DURATION = r"^([+-]?(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+|0)$"

# A field of another type may be written as one macro that has a value of that type.
ONE_MACRO = {"type": "string", "pattern": r"^\$\{(env\.)?[A-Za-z0-9_-]+\}$"}
SCALAR = {"type": ["string", "number", "boolean"]}


def describe(record: type[Any]) -> dict[str, Any]:
    """The schema of a document whose root is `record`."""
    definitions: dict[str, Any] = {}
    root = _record(record, definitions)
    root["additionalProperties"] = True  # e.g. a place for anchors
    return {
        "$schema": DIALECT,
        "title": "llamaswap configuration",
        **root,
        "definitions": dict(sorted(definitions.items())),
    }


def _record(record: type[Any], definitions: dict[str, Any]) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for name, (attribute, key) in keys_of(record).items():
        properties[name] = _property(attribute, key, definitions)
    doc = (record.__doc__ or "").strip().split("\n")[0]
    return {"type": "object", "description": doc, "properties": properties, "additionalProperties": False}


def _property(attribute: Attribute[Any], key: Key, definitions: dict[str, Any]) -> dict[str, Any]:
    bounds = dict(key.bounds)
    known = bounds.pop("known", None)
    example = bounds.pop("example", None)
    described = {"description": key.doc, **_value(key.kind, bounds, definitions)}
    if known:
        described["examples"] = list(known)
    if example:
        described["examples"] = [example]
    default = bounds.pop("default", NOTHING)
    if default is NOTHING:
        default = _default(attribute)
    if default is not NOTHING:
        described["default"] = list(default) if isinstance(default, tuple) else default
    return described


def _default(attribute: Attribute[Any]) -> Any:
    """The record's default in YAML's terms, NOTHING where there is none worth telling."""
    value: Any = attribute.default
    if isinstance(value, Factory):  # type: ignore[arg-type]  # attrs types Factory as a function
        value = value.factory()
    if isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        return f"{value:g}s" if isinstance(attribute.metadata["key"].kind, field_types.DurationType) else int(value)
    if isinstance(value, tuple) and all(isinstance(item, str) for item in value):
        return list(value)
    if isinstance(value, Mapping) and not value:
        return {}
    return NOTHING


def _value(kind: field_types.Kind, bounds: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """What may stand at a key; takes the bounds it words itself out of `bounds`."""
    limits = {name: bounds.pop(name) for name in ("minimum", "maximum") if name in bounds}
    if isinstance(kind, field_types.TextType):
        words = bounds.pop("enum", None)
        return {"type": ["string", "number"]} if words is None else {"type": "string", "enum": list(words)}
    if isinstance(kind, field_types.IntegerType | field_types.SecondsType):
        return {"anyOf": [{"type": "integer", **limits}, ONE_MACRO]}
    if isinstance(kind, field_types.BooleanType):
        choices: list[dict[str, Any]] = [{"type": "boolean"}, ONE_MACRO]
        return {"anyOf": [*choices, {"type": "null"}] if kind.optional else choices}
    if isinstance(kind, field_types.DurationType):
        return {"anyOf": [{"type": "string", "pattern": DURATION}, ONE_MACRO]}
    if isinstance(kind, field_types.TextListType):
        words = bounds.pop("items_enum", None)
        item = {"type": ["string", "number"]} if words is None else {"anyOf": [{"enum": list(words)}, ONE_MACRO]}
        listed = {"type": ["array", "null"], "items": item}
        if kind.single:
            return {"anyOf": [listed, item]}
        return {"anyOf": [listed, {"const": "auto"}]} if kind.auto else listed
    if isinstance(kind, field_types.PatternsType):
        return {"type": ["array", "null"], "items": {"type": "string"}}
    if isinstance(kind, field_types.TextMapType | field_types.TextPairsType):
        return {"type": ["object", "null"], "additionalProperties": {"type": ["string", "number", "null"]}}
    if isinstance(kind, field_types.IntegerMapType):
        least = bounds.pop("values_minimum", None)
        number = {"type": "integer"} if least is None else {"type": "integer", "minimum": least}
        return {"type": ["object", "null"], "additionalProperties": {"anyOf": [number, ONE_MACRO]}}
    if isinstance(kind, field_types.FreeType):
        return {"type": ["object", "null"]}
    if isinstance(kind, field_types.FreeMapsType):
        return {"type": ["object", "null"], "additionalProperties": {"type": ["object", "null"]}}
    if isinstance(kind, field_types.MacrosType):
        return {"type": ["object", "null"], "additionalProperties": SCALAR, "propertyNames": {"pattern": MACRO_NAME}}
    return _nested(kind, definitions)


def _nested(kind: field_types.SectionType | field_types.SectionMapType, definitions: dict[str, Any]) -> dict[str, Any]:
    name = kind.record.__name__
    if name not in definitions:
        definitions[name] = {}  # taken, should a record ever contain itself
        definitions[name] = {**_record(kind.record, definitions), "type": ["object", "null"]}
    reference = {"$ref": f"#/definitions/{name}"}
    if isinstance(kind, field_types.SectionType):
        return {"allOf": [reference]}
    return {"type": ["object", "null"], "additionalProperties": reference}
