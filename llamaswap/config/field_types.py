"""What a key of the configuration may hold: how its YAML is read, and how it is described to editors.

The records in `schema` have one `Key` per YAML key. `decode` reads documents by them and `jsonschema` describes them,
so that neither can differ from the records.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from attrs import Attribute, Factory, fields, frozen

from llamaswap.config import durations
from llamaswap.config.diagnostics import Diagnostics
from llamaswap.config.nodes import MappingNode, Node, ScalarNode, SequenceNode, is_null, kind_of, plain
from llamaswap.config.patterns import PathPattern, PatternError
from llamaswap.config.secret import Secret

TRUE_WORDS = frozenset({"y", "Y", "yes", "Yes", "YES", "on", "On", "ON"})
FALSE_WORDS = frozenset({"n", "N", "no", "No", "NO", "off", "Off", "OFF"})
UNSET = object()  # the field keeps its default

# A value that is not text may be written as one macro that has a value of its type.
ONE_MACRO = {"type": "string", "pattern": r"^\$\{(env\.)?[A-Za-z0-9_-]+\}$"}
MACRO_NAME = "^[A-Za-z0-9_-]{1,63}$"
DURATION = r"^([+-]?(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+|0)$"

Document = dict[str, Any]
Record = type[Any]  # a class made by attrs


class TypeMismatch(Exception):
    """A value of the wrong kind: what was wanted, and a hint."""

    def __init__(self, wanted: str, hint: str = "") -> None:
        super().__init__(wanted)
        self.wanted = wanted
        self.hint = hint


@frozen
class FieldType:
    """A kind of value. `null` is what null means, `empty` what a null entry of a mapping of records has here."""

    null: ClassVar[object] = UNSET
    empty: ClassVar[object] = None
    secret: ClassVar[bool] = False
    described: ClassVar[Document] = {}

    def read(self, node: Node, path: str, report: Diagnostics) -> object:
        """The value of a node that is not null. Raises TypeMismatch; reports what is wrong inside it."""
        raise NotImplementedError

    def schema(self, bounds: Document) -> Document:
        """The JSON schema; takes the bounds that it uses out of `bounds`."""
        return dict(self.described)

    def zero(self) -> object:
        """The value in a null entry of a mapping of records; UNSET for the field's default."""
        return self.empty if self.null is UNSET else self.null


def shown(node: Node, secret: bool = False) -> str:
    """A value as an error may show it: its kind, and a short text that is not secret."""
    if isinstance(node, ScalarNode) and not secret and len(node.text) <= 60:
        return f"{node.text!r} ({kind_of(node)})"
    return kind_of(node)


def _number(bounds: Document) -> Document:
    limits = {name: bounds.pop(name) for name in ("minimum", "maximum") if name in bounds}
    return {"anyOf": [{"type": "integer", **limits}, ONE_MACRO]}


# -- single values -----------------------------------------------------------------------------------------


@frozen
class TextType(FieldType):
    """A string; any scalar is taken as it is written. `secret`: its value never appears in a message."""

    empty = ""
    secret: bool = False  # type: ignore[misc]

    def read(self, node: Node, path: str, report: Diagnostics) -> object:
        return Secret(text(node)) if self.secret else text(node)

    def schema(self, bounds: Document) -> Document:
        words = bounds.pop("enum", None)
        return {"type": ["string", "number"]} if words is None else {"type": "string", "enum": list(words)}

    def zero(self) -> object:
        return None if self.secret else ""


@frozen
class IntegerType(FieldType):
    """A whole number; a float is cut towards zero."""

    empty: ClassVar[object] = 0

    def read(self, node: Node, path: str, report: Diagnostics) -> object:
        return integer(node)

    def schema(self, bounds: Document) -> Document:
        return _number(bounds)


@frozen
class SecondsType(IntegerType):
    """A whole number of seconds, kept as float."""

    empty = 0.0

    def read(self, node: Node, path: str, report: Diagnostics) -> object:
        return float(integer(node))


@frozen
class BooleanType(FieldType):
    """true/false, or one of the old words yes/no/on/off/y/n. `optional`: null means None."""

    empty = False
    optional: bool = False

    def read(self, node: Node, path: str, report: Diagnostics) -> object:
        value = node.value if isinstance(node, ScalarNode) else None
        if isinstance(value, bool):
            return value
        if value in TRUE_WORDS or value in FALSE_WORDS:
            return value in TRUE_WORDS
        raise TypeMismatch("true or false", "write it without quotes" if value in ("true", "false") else "")

    def schema(self, bounds: Document) -> Document:
        return {"anyOf": [{"type": "boolean"}, ONE_MACRO, *([{"type": "null"}] if self.optional else [])]}

    def zero(self) -> object:
        return UNSET if self.optional else False


@frozen
class DurationType(FieldType):
    """Text such as 1m30s; kept as float seconds."""

    described = {"anyOf": [{"type": "string", "pattern": DURATION}, ONE_MACRO]}
    empty = 0.0

    def read(self, node: Node, path: str, report: Diagnostics) -> object:
        value = node.value if isinstance(node, ScalarNode) else None
        seconds = durations.parse(value) if isinstance(value, str) else None
        if seconds is None:
            raise TypeMismatch("a duration with units, such as 10s or 1m30s")
        return seconds


def text(node: Node) -> str:
    """The text of a scalar."""
    if not isinstance(node, ScalarNode):
        raise TypeMismatch("text")
    return node.text


def integer(node: Node) -> int:
    """The whole number of a scalar."""
    value = node.value if isinstance(node, ScalarNode) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeMismatch("a whole number", "write it without quotes" if isinstance(value, str) else "")
    if isinstance(value, float) and not math.isfinite(value):
        raise TypeMismatch("a whole number")
    number = int(value)
    if not -(2**63) <= number < 2**63:
        raise TypeMismatch("a whole number of 64 bits")
    return number


# -- lists and mappings ------------------------------------------------------------------------------------


@frozen
class TextListType(FieldType):
    """A list of strings; null entries are left out.

    `strict`: a null entry is an error, because leaving it out would do harm. `auto`: the word auto is accepted too,
    and read as None. `single`: a text is accepted as a list of one.
    """

    null = ()
    secret: bool = False  # type: ignore[misc]
    strict: bool = False
    auto: bool = False
    single: bool = False

    def read(self, node: Node, path: str, report: Diagnostics) -> object:
        if self.auto and isinstance(node, ScalarNode) and node.value == "auto":
            return None
        if self.single and isinstance(node, ScalarNode):
            return (text(node),)
        if not isinstance(node, SequenceNode):
            raise TypeMismatch("a list of texts", "write it as [one, two]")
        found: list[object] = []
        for index, item in enumerate(node.items):
            where = f"{path}[{index}]"
            if isinstance(item, ScalarNode) and not is_null(item):
                found.append(Secret(item.text) if self.secret else item.text)
            elif not is_null(item):
                report.error(f"{where}: {kind_of(item)} cannot be used, wanted text", where, item)
            elif self.strict:
                report.error(f"{where} is null", where, item, "remove the entry, or quote it")
        return tuple(found)

    def schema(self, bounds: Document) -> Document:
        words = bounds.pop("items_enum", None)
        item = {"type": ["string", "number"]} if words is None else {"anyOf": [{"enum": list(words)}, ONE_MACRO]}
        listed = {"type": ["array", "null"], "items": item}
        if self.single:
            return {"anyOf": [listed, item]}
        return {"anyOf": [listed, {"const": "auto"}]} if self.auto else listed


@frozen
class PatternsType(FieldType):
    """A list of RE2 expressions; an empty one keeps the field's default."""

    described = {"type": ["array", "null"], "items": {"type": "string"}}
    empty = ()

    def read(self, node: Node, path: str, report: Diagnostics) -> object:
        found: list[PathPattern] = []
        expressions = TextListType().read(node, path, report)
        assert isinstance(expressions, tuple)
        for expression in expressions:
            try:
                found.append(PathPattern.compile(expression))
            except PatternError as error:
                report.error(f"{path}: {expression!r} is not a regular expression (RE2): {error}", path, node)
        return tuple(found) if found else UNSET


def _each(
    node: Node, path: str, report: Diagnostics, null: object, read: Callable[[Node, str], object]
) -> dict[str, object]:
    """The entries of a mapping by `read`; `null` for those that are null. An entry that does not fit is reported."""
    if not isinstance(node, MappingNode):
        raise TypeMismatch("a mapping")
    found: dict[str, object] = {}
    for name, child in node.entries.items():
        where = f"{path}.{name}"
        try:
            found[name] = null if is_null(child) else read(child, where)
        except TypeMismatch as mismatch:
            message = f"{where}: {shown(child)} cannot be used, wanted {mismatch.wanted}"
            report.error(message, where, child, mismatch.hint)
    return found


@frozen
class TextMapType(FieldType):
    """A mapping to strings; null is the empty string."""

    described = {"type": ["object", "null"], "additionalProperties": {"type": ["string", "number", "null"]}}
    null: ClassVar[object] = {}

    def read(self, node: Node, path: str, report: Diagnostics) -> object:
        return _each(node, path, report, "", lambda child, _: text(child))


@frozen
class TextPairsType(TextMapType):
    """A mapping to strings whose order counts: a tuple of pairs."""

    null = ()

    def read(self, node: Node, path: str, report: Diagnostics) -> object:
        return tuple(_each(node, path, report, "", lambda child, _: text(child)).items())


@frozen
class IntegerMapType(FieldType):
    """A mapping to whole numbers; null is 0."""

    null: ClassVar[object] = {}

    def read(self, node: Node, path: str, report: Diagnostics) -> object:
        return _each(node, path, report, 0, lambda child, _: integer(child))

    def schema(self, bounds: Document) -> Document:
        minimum = bounds.pop("values_minimum", None)
        value = _number({} if minimum is None else {"minimum": minimum})
        return {"type": ["object", "null"], "additionalProperties": value}


@frozen
class FreeType(FieldType):
    """A mapping to any JSON values."""

    described = {"type": ["object", "null"]}
    null: ClassVar[object] = {}

    def read(self, node: Node, path: str, report: Diagnostics) -> object:
        if not isinstance(node, MappingNode):
            raise TypeMismatch("a mapping")
        _check_finite(node, path, report)
        return plain(node)


def _check_finite(node: Node, path: str, report: Diagnostics) -> None:
    if isinstance(node, SequenceNode):
        for index, item in enumerate(node.items):
            _check_finite(item, f"{path}[{index}]", report)
    elif isinstance(node, MappingNode):
        for name, child in node.entries.items():
            _check_finite(child, f"{path}.{name}", report)
    elif isinstance(node.value, float) and not math.isfinite(node.value):
        report.error(f"{path}: {node.text} cannot be represented in JSON", path, node, "quote it to mean text")


@frozen
class FreeMapsType(FieldType):
    """A mapping to mappings to any JSON values."""

    described = {"type": ["object", "null"], "additionalProperties": {"type": ["object", "null"]}}
    null: ClassVar[object] = {}

    def read(self, node: Node, path: str, report: Diagnostics) -> object:
        return _each(node, path, report, {}, lambda child, where: FreeType().read(child, where, report))


@frozen
class MacrosType(FieldType):
    """A mapping of macro names to scalars whose order counts. It is read before anything is expanded, not by `read`."""

    empty: ClassVar[object] = {}

    def read(self, node: Node, path: str, report: Diagnostics) -> object:
        return UNSET

    def schema(self, bounds: Document) -> Document:
        scalar = {"type": ["string", "number", "boolean"]}
        return {"type": ["object", "null"], "additionalProperties": scalar, "propertyNames": {"pattern": MACRO_NAME}}


# -- records, which `decode` reads and `jsonschema` describes ------------------------------------------------


@frozen
class SectionType(FieldType):
    """A nested record; null (and absence) keep the field's default. `synonyms`: whether old key names count here."""

    record: Record
    synonyms: bool = True


@frozen
class SectionMapType(FieldType):
    """A mapping of free names to records; `named` puts the name into the record's field `id`."""

    record: Record
    named: bool = False
    one: str = "NAME"
    hint: str = ""
    null: ClassVar[object] = {}


@frozen
class Key:
    """One YAML key: its name, what it holds, one sentence for the operator, and bounds as in a JSON schema.

    A value beyond the bounds is an error, unless they are `lenient`: then it is checked elsewhere, or accepted.
    """

    name: str
    kind: FieldType
    doc: str
    synonyms: tuple[str, ...] = ()
    lenient: bool = False
    bounds: Mapping[str, Any] = Factory(dict)


def key(
    name: str,
    kind: FieldType,
    doc: str,
    *,
    synonyms: tuple[str, ...] = (),
    lenient: bool = False,
    **bounds: object,
) -> dict[str, Key]:
    """The `metadata=` of an attrs field that is read from the YAML key `name`; `bounds` go into the JSON schema."""
    return {"key": Key(name, kind, doc, synonyms, lenient, bounds)}


def keys_of(record: Record) -> dict[str, tuple[Attribute[Any], Key]]:
    """The YAML keys of a record in the order of its fields, each with its attribute."""
    return {
        attribute.metadata["key"].name: (attribute, attribute.metadata["key"])
        for attribute in fields(record)
        if "key" in attribute.metadata
    }
