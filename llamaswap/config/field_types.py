"""What a key of the configuration may hold: how its YAML is read, and how it is described to editors.

The fields of the records in `schema` are made by `ValueType.key`, `section` and `sections`. `decode` reads documents by
them and `jsonschema` describes them, so that neither can differ from the records.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Generic, TypeVar

from attrs import Attribute, AttrsInstance, Factory, field, fields, frozen

from llamaswap.config import durations
from llamaswap.config.diagnostics import Diagnostics
from llamaswap.config.nodes import MappingNode, Node, ScalarNode, SequenceNode, is_null, kind_of, plain
from llamaswap.config.patterns import PathPattern, PatternError
from llamaswap.config.secret import Secret

TRUE_WORDS = frozenset({"y", "Y", "yes", "Yes", "YES", "on", "On", "ON"})
FALSE_WORDS = frozenset({"n", "N", "no", "No", "NO", "off", "Off", "OFF"})
MAPPING_HINT = "write it as {name: value}"
NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)")
UNSET: Any = object()  # the field keeps its default

# A value that is not text may be written as one macro that has a value of its type.
ONE_MACRO = {"type": "string", "pattern": r"^\$\{(env\.)?[A-Za-z0-9_-]+\}$"}
MACRO_NAME = "^[A-Za-z0-9_-]{1,63}$"
DURATION_PATTERN = r"^([+-]?(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+|0)$"

Document = dict[str, Any]
Record = type[AttrsInstance]
R = TypeVar("R", bound=AttrsInstance)
V = TypeVar("V")


class TypeMismatch(Exception):
    """A value of the wrong kind: what was wanted, and a hint."""

    def __init__(self, wanted: str, hint: str = "") -> None:
        super().__init__(wanted)
        self.wanted = wanted
        self.hint = hint


@frozen(eq=False)
class ValueType(Generic[V]):
    """A kind of value that is not a record; `name` is its name in the documentation.

    `read` returns the value of a node that is not null, raises TypeMismatch for another kind, and reports what is wrong
    inside. `schema` returns the JSON schema, and takes the bounds that it uses out of its argument. `write` is the
    inverse of `read`. `zero` is the value in a null entry of a mapping of records, `null` what null means; both may be
    UNSET. A `secret` value never appears in a message.
    """

    name: str
    read: Callable[[Node, str, Diagnostics], V]
    schema: Callable[[Document], Document]
    zero: V
    null: Any = UNSET
    write: Callable[[V], object] = lambda value: value
    secret: bool = False

    def key(
        self,
        doc: str,
        default: V = UNSET,
        *,
        name: str = "",
        synonyms: tuple[str, ...] = (),
        lenient: bool = False,
        repr: bool = True,
        **bounds: object,
    ) -> V:
        """An attrs field that is read from a YAML key: `name`, or the field's name in camel case. See `Key`."""
        return _field(Key(self, doc, name, synonyms, lenient, bounds), self.zero if default is UNSET else default, repr)


def shown(node: Node, secret: bool = False) -> str:
    """A value as an error may show it: its kind, and a short text that is not secret."""
    if isinstance(node, ScalarNode) and not secret and len(node.text) <= 60:
        return f"{node.text!r} ({kind_of(node)})"
    return kind_of(node)


# -- single values -----------------------------------------------------------------------------------------


def text(node: Node, path: str = "", report: Diagnostics | None = None) -> str:
    """The text of a scalar, as it is written."""
    if not isinstance(node, ScalarNode):
        raise TypeMismatch("text")
    return node.text


def number_hint(value: object) -> str:
    """The hint for a value that should be a number: about quotes only if it is a number in quotes."""
    return "write it without quotes" if isinstance(value, str) and NUMBER.fullmatch(value) else ""


def integer(node: Node, path: str = "", report: Diagnostics | None = None) -> int:
    """The whole number of a scalar; a float is cut towards zero."""
    value = node.value if isinstance(node, ScalarNode) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeMismatch("a whole number", number_hint(value))
    if isinstance(value, float) and not math.isfinite(value):
        raise TypeMismatch("a whole number")
    number = int(value)
    if not -(2**63) <= number < 2**63:
        raise TypeMismatch("a whole number of 64 bits")
    return number


def _boolean(node: Node, path: str, report: Diagnostics) -> bool:
    """true/false, or one of the old words yes/no/on/off/y/n."""
    value = node.value if isinstance(node, ScalarNode) else None
    if isinstance(value, bool):
        return value
    if value in TRUE_WORDS or value in FALSE_WORDS:
        return value in TRUE_WORDS
    raise TypeMismatch("true or false", "write it without quotes" if value in ("true", "false") else "")


def _duration(node: Node, path: str, report: Diagnostics) -> float:
    value = node.value if isinstance(node, ScalarNode) else None
    seconds = durations.parse(value) if isinstance(value, str) else None
    if seconds is None:
        raise TypeMismatch("a duration with units, such as 10s or 1m30s")
    return seconds


def _described(**schema: object) -> Callable[[Document], Document]:
    """The schema of a kind that has no bounds."""
    return lambda bounds: dict(schema)


def _text_schema(bounds: Document) -> Document:
    words = bounds.pop("enum", None)
    return {"type": ["string", "number"]} if words is None else {"type": "string", "enum": list(words)}


def _number_schema(bounds: Document) -> Document:
    limits = {name: bounds.pop(name) for name in ("minimum", "maximum") if name in bounds}
    return {"anyOf": [{"type": "integer", **limits}, ONE_MACRO]}


TEXT = ValueType("text", text, _text_schema, "")
SECRET: ValueType[Secret | None] = ValueType(
    "text", lambda node, *_: Secret(text(node)), _text_schema, None, secret=True
)
INTEGER = ValueType("whole number", integer, _number_schema, 0)
SECONDS = ValueType("whole seconds", lambda node, *_: float(integer(node)), _number_schema, 0.0, write=int)
BOOLEAN = ValueType("true or false", _boolean, _described(anyOf=[{"type": "boolean"}, ONE_MACRO]), False)
INHERITED_BOOLEAN: ValueType[bool] = ValueType(
    "true or false", _boolean, _described(anyOf=[{"type": "boolean"}, ONE_MACRO, {"type": "null"}]), UNSET
)
DURATION = ValueType(
    "duration such as 1m30s",
    _duration,
    _described(anyOf=[{"type": "string", "pattern": DURATION_PATTERN}, ONE_MACRO]),
    0.0,
    write=lambda seconds: f"{seconds:g}s",
)


# -- lists and mappings ------------------------------------------------------------------------------------


def texts(node: Node, path: str, report: Diagnostics) -> tuple[str, ...]:
    """A list of strings; null entries are left out."""
    if not isinstance(node, SequenceNode):
        raise TypeMismatch("a list of texts", "write it as [one, two]")
    found: list[str] = []
    for index, item in enumerate(node.items):
        where = f"{path}[{index}]"
        if isinstance(item, ScalarNode) and not is_null(item):
            found.append(item.text)
        elif not is_null(item):
            report.error(f"{where}: {kind_of(item)} cannot be used, wanted text", where, item)
    return tuple(found)


def _texts_or_auto(node: Node, path: str, report: Diagnostics) -> tuple[str, ...] | None:
    """The word auto is None."""
    return None if isinstance(node, ScalarNode) and node.value == "auto" else texts(node, path, report)


def _text_or_texts(node: Node, path: str, report: Diagnostics) -> tuple[str, ...]:
    """A text is a list of one."""
    return (node.text,) if isinstance(node, ScalarNode) else texts(node, path, report)


def _patterns(node: Node, path: str, report: Diagnostics) -> tuple[PathPattern, ...]:
    """RE2 expressions; an empty list keeps the field's default."""
    found: list[PathPattern] = []
    for expression in texts(node, path, report):
        try:
            found.append(PathPattern.compile(expression))
        except PatternError as error:
            report.error(f"{path}: {expression!r} is not a regular expression (RE2): {error}", path, node)
    return tuple(found) if found else UNSET


def mapping_of(read: Callable[[Node, str, Diagnostics], V], null: V) -> Callable[..., dict[str, V]]:
    """Reads the entries of a mapping by `read`; null ones are `null`. An entry that does not fit is reported."""

    def entries(node: Node, path: str, report: Diagnostics) -> dict[str, V]:
        if not isinstance(node, MappingNode):
            raise TypeMismatch("a mapping", MAPPING_HINT)
        found: dict[str, V] = {}
        for name, child in node.entries.items():
            where = f"{path}.{name}"
            try:
                found[name] = null if is_null(child) else read(child, where, report)
            except TypeMismatch as mismatch:
                message = f"{where}: {shown(child)} cannot be used, wanted {mismatch.wanted}"
                report.error(message, where, child, mismatch.hint)
        return found

    return entries


def _free(node: Node, path: str, report: Diagnostics) -> Mapping[str, Any]:
    if not isinstance(node, MappingNode):
        raise TypeMismatch("a mapping", MAPPING_HINT)
    _check_finite(node, path, report)
    return {name: plain(child) for name, child in node.entries.items()}


def _check_finite(node: Node, path: str, report: Diagnostics) -> None:
    if isinstance(node, SequenceNode):
        for index, item in enumerate(node.items):
            _check_finite(item, f"{path}[{index}]", report)
    elif isinstance(node, MappingNode):
        for name, child in node.entries.items():
            _check_finite(child, f"{path}.{name}", report)
    elif isinstance(node.value, float) and not math.isfinite(node.value):
        report.error(f"{path}: {node.text} cannot be represented in JSON", path, node, "quote it to mean text")


def _list_schema(bounds: Document) -> Document:
    words = bounds.pop("items_enum", None)
    item = {"type": ["string", "number"]} if words is None else {"anyOf": [{"enum": list(words)}, ONE_MACRO]}
    return {"type": ["array", "null"], "items": item}


def _integer_map_schema(bounds: Document) -> Document:
    value = _number_schema({"minimum": bounds.pop("values_minimum")} if "values_minimum" in bounds else {})
    return {"type": ["object", "null"], "additionalProperties": value}


_text_map = mapping_of(text, "")
_text_map_schema = _described(type=["object", "null"], additionalProperties={"type": ["string", "number", "null"]})
TEXT_LIST: ValueType[tuple[str, ...]] = ValueType("list of texts", texts, _list_schema, (), ())
TEXT_LIST_OR_AUTO: ValueType[Any] = ValueType(
    "list of texts", _texts_or_auto, lambda bounds: {"anyOf": [_list_schema(bounds), {"const": "auto"}]}, (), ()
)
TEXT_OR_LIST: ValueType[tuple[str, ...]] = ValueType(
    "list of texts", _text_or_texts, lambda bounds: {"anyOf": [_list_schema(bounds), _text_schema(bounds)]}, (), ()
)
PATTERNS: ValueType[tuple[PathPattern, ...]] = ValueType(
    "list of RE2 expressions",
    _patterns,
    _described(type=["array", "null"], items={"type": "string"}),
    (),
    write=lambda patterns: [pattern.text for pattern in patterns],
)
TEXT_MAP: ValueType[Mapping[str, str]] = ValueType("mapping of names to texts", _text_map, _text_map_schema, {}, {})
TEXT_PAIRS: ValueType[tuple[tuple[str, str], ...]] = ValueType(
    "mapping of names to texts, in order",
    lambda node, path, report: tuple(_text_map(node, path, report).items()),
    _text_map_schema,
    (),
    (),
    write=dict,
)
INTEGER_MAP: ValueType[Mapping[str, int]] = ValueType(
    "mapping of names to whole numbers", mapping_of(integer, 0), _integer_map_schema, {}, {}
)
FREE_MAP: ValueType[Mapping[str, Any]] = ValueType(
    "mapping to anything", _free, _described(type=["object", "null"]), {}, {}
)
FREE_MAPS: ValueType[Mapping[str, Mapping[str, Any]]] = ValueType(
    "mapping of names to mappings",
    mapping_of(_free, {}),
    _described(type=["object", "null"], additionalProperties={"type": ["object", "null"]}),
    {},
    {},
)
# Macros are read before anything is expanded, by `macros.declared`.
MACROS: ValueType[Mapping[str, str | int | float | bool]] = ValueType(
    "mapping of names to scalars, in order",
    lambda *_: UNSET,
    _described(
        type=["object", "null"],
        additionalProperties={"type": ["string", "number", "boolean"]},
        propertyNames={"pattern": MACRO_NAME},
    ),
    {},
)


# -- records, which `decode` reads and `jsonschema` describes ------------------------------------------------


@frozen
class SectionType:
    """A nested record; null (and absence) keep the field's default. `synonyms`: whether old key names count here.

    A value that is not a mapping is that of the key `shorthand`, if one is named. With `many` it is a list of such
    records, which are secret.
    """

    record: Record
    synonyms: bool = True
    shorthand: str = ""
    many: bool = False


@frozen
class SectionMapType:
    """A mapping of free names to records; `named` puts the name into the record's field `id`."""

    record: Record
    named: bool = False
    hint: str = ""


@frozen
class Key:
    """One YAML key: what it holds, one sentence for the operator, and bounds as in a JSON schema.

    A value beyond the bounds is an error, unless they are `lenient`: then it is checked elsewhere, or accepted. The
    bound `shown_default` replaces the record's default in the schema.
    """

    kind: ValueType[Any] | SectionType | SectionMapType
    doc: str
    name: str = ""
    synonyms: tuple[str, ...] = ()
    lenient: bool = False
    bounds: Mapping[str, Any] = Factory(dict)


def _field(key: Key, default: V, repr: bool = True) -> V:
    metadata = {"key": key}
    if isinstance(default, dict):
        return field(factory=default.copy, repr=repr, metadata=metadata)  # type: ignore[return-value]
    return field(default=default, repr=repr, metadata=metadata)


def section(
    record: type[R],
    doc: str,
    default: R | None = UNSET,
    *,
    name: str = "",
    synonyms: bool = True,
    shorthand: str = "",
) -> R:
    """An attrs field of a nested record, by default `record()`. See `Key` and `SectionType`."""
    value: Any = record() if default is UNSET else default
    made: R = _field(Key(SectionType(record, synonyms, shorthand), doc, name), value)
    return made


def sections(
    record: type[R], doc: str, default: Mapping[str, R] | None = UNSET, *, named: bool = False, hint: str = ""
) -> Mapping[str, R]:
    """An attrs field of a mapping to records, by default empty. See `Key` and `SectionMapType`."""
    value: Any = {} if default is UNSET else default
    made: Mapping[str, R] = _field(Key(SectionMapType(record, named, hint), doc), value)
    return made


def section_list(record: type[R], doc: str, *, shorthand: str) -> tuple[R, ...]:
    """An attrs field of a list of secret records, by default empty. See `Key` and `SectionType`."""
    made: tuple[R, ...] = _field(Key(SectionType(record, shorthand=shorthand, many=True), doc), ())
    return made


@cache
def keys_of(record: Record) -> Mapping[str, tuple[Attribute[Any], Key]]:
    """The YAML keys of a record in the order of its fields, each with its attribute."""
    found: dict[str, tuple[Attribute[Any], Key]] = {}
    for attribute in fields(record):
        key = attribute.metadata.get("key")
        if key is not None:
            first, *others = attribute.name.split("_")
            found[key.name or first + "".join(map(str.capitalize, others))] = attribute, key
    return found
