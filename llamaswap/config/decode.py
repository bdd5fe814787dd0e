"""Nodes to typed values, by the keys the records carry. Every mismatch names its path, line and the wanted kind.

A value that does not fit is reported and left out; the caller settles the report before it uses what came back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from attrs import NOTHING, Attribute, define, evolve, fields

from llamaswap.config import durations, field_types
from llamaswap.config.diagnostics import Diagnostics, did_you_mean
from llamaswap.config.field_types import Key, keys_of
from llamaswap.config.nodes import MappingNode, Node, ScalarNode, SequenceNode, is_null, kind_of, plain
from llamaswap.config.patterns import PathPattern, PatternError
from llamaswap.config.schema import Config, Model, Secret

TRUE_WORDS = frozenset({"y", "Y", "yes", "Yes", "YES", "on", "On", "ON"})
FALSE_WORDS = frozenset({"n", "N", "no", "No", "NO", "off", "Off", "OFF"})
UNSET: Any = object()


class TypeMismatch(Exception):
    """A value of the wrong kind: what was wanted, and a hint."""

    def __init__(self, wanted: str, hint: str = "") -> None:
        super().__init__(wanted)
        self.wanted = wanted
        self.hint = hint


@define
class Decoder:
    """Reads records; what does not fit goes into `report`."""

    report: Diagnostics

    def given(self, record: type[Any], node: MappingNode, path: str, *, synonyms: bool = True) -> dict[str, Any]:
        """The attributes a table sets, by attribute name; unset and null ones are absent."""
        known = keys_of(record)
        values: dict[str, Any] = {}
        for name, (attribute, key) in known.items():
            child = node.get(name)
            for synonym in key.synonyms if synonyms else ():
                old = node.get(synonym)
                if old is not None and (child is None or is_null(child) or getattr(child, "text", None) == ""):
                    child = old
            if child is not None:
                value = self.value(attribute, key, child, f"{path}.{name}" if path else name)
                if value is not UNSET:
                    values[attribute.name.lstrip("_")] = value
        self._unknown(known, node, path, synonyms)
        return values

    def _unknown(
        self, known: Mapping[str, tuple[Attribute[Any], Key]], node: MappingNode, path: str, synonyms: bool
    ) -> None:
        accepted = set(known)
        if synonyms:
            accepted.update(word for _, key in known.values() for word in key.synonyms)
        for name, child in node.entries.items():
            # A place for YAML anchors is not a mistake, nor is what says it is an extension.
            if name in accepted or child.anchored or name.startswith(("x-", ".")):
                continue
            where = f"{path}.{name}" if path else name
            self.report.warn("unknown key, ignored", where, node.where(name), self._hint(name, child, known, path))

    @staticmethod
    def _hint(name: str, child: Node, known: Collection[str], path: str) -> str:
        """What to do about an unknown key; "" if that is unknown as well."""
        if path.startswith("models.") and name in keys_of(Config):
            return f"`{name}` is a top-level key: move it out of the model"
        if not path and isinstance(child, MappingNode) and child.get("cmd") is not None:
            return "a model: move it below `models:`"
        near = did_you_mean(name, known)
        if not path and not near and name in keys_of(Model):
            return f"`{name}` belongs inside a model"
        return near

    def value(self, attribute: Attribute[Any], key: Key, node: Node, path: str) -> Any:
        """The value at a key; UNSET where null leaves the default or where it does not fit."""
        kind = key.kind
        if isinstance(kind, field_types.SectionType):
            return self.section(attribute, kind, node, path)
        if isinstance(kind, field_types.SectionMapType):
            return self.sections(kind, node, path)
        if isinstance(kind, field_types.MacrosType):
            return UNSET  # read and checked before anything was expanded
        if is_null(node):
            return _NULLS.get(type(kind), UNSET) if not isinstance(kind, field_types.PatternsType) else UNSET
        try:
            return self.plain_value(kind, node, path)
        except TypeMismatch as misfit:
            secret = isinstance(kind, field_types.TextType | field_types.TextListType) and kind.secret
            self.report.error(
                f"{path}: {_shown(node, secret)} cannot be used, wanted {misfit.wanted}", path, node, misfit.hint
            )
            return UNSET

    def plain_value(self, kind: field_types.Kind, node: Node, path: str) -> Any:
        if isinstance(kind, field_types.TextType):
            return Secret(text(node)) if kind.secret else text(node)
        if isinstance(kind, field_types.IntegerType):
            return integer(node)
        if isinstance(kind, field_types.SecondsType):
            return float(integer(node))
        if isinstance(kind, field_types.BooleanType):
            return boolean(node)
        if isinstance(kind, field_types.DurationType):
            return duration(node)
        if isinstance(kind, field_types.TextListType):
            if kind.auto and isinstance(node, ScalarNode) and node.value == "auto":
                return None
            if kind.single and isinstance(node, ScalarNode):
                return (text(node),)
            return self.texts(kind, node, path)
        if isinstance(kind, field_types.PatternsType):
            return self.patterns(node, path)
        if isinstance(kind, field_types.FreeType):
            return self.free(node, path)
        table = _table(node)
        if isinstance(kind, field_types.FreeMapsType):
            return self.each(table, path, lambda child, where: {} if is_null(child) else self.free(child, where))
        if isinstance(kind, field_types.IntegerMapType):
            return self.each(table, path, lambda child, _: 0 if is_null(child) else integer(child))
        found = self.each(table, path, lambda child, _: "" if is_null(child) else text(child))
        return tuple(found.items()) if isinstance(kind, field_types.TextPairsType) else found

    def each(self, table: MappingNode, path: str, read: Callable[[Node, str], Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, child in table.entries.items():
            where = f"{path}.{name}"
            try:
                found[name] = read(child, where)
            except TypeMismatch as misfit:
                shown = _shown(child, secret=False)
                self.report.error(f"{where}: {shown} cannot be used, wanted {misfit.wanted}", where, child, misfit.hint)
        return found

    def texts(self, kind: field_types.TextListType, node: Node, path: str) -> tuple[Any, ...]:
        if not isinstance(node, SequenceNode):
            raise TypeMismatch("a list of texts", "write it as [one, two]")
        found: list[Any] = []
        for index, item in enumerate(node.items):
            where = f"{path}[{index}]"
            if is_null(item):
                if kind.strict:
                    self.report.error(f"{where} is null", where, item, "remove the entry, or quote it")
                continue
            try:
                found.append(Secret(text(item)) if kind.secret else text(item))
            except TypeMismatch as misfit:
                self.report.error(f"{where}: {kind_of(item)} cannot be used, wanted {misfit.wanted}", where, item)
        return tuple(found)

    def patterns(self, node: Node, path: str) -> Any:
        found: list[PathPattern] = []
        for expression in self.texts(field_types.TextListType(), node, path):
            try:
                found.append(PathPattern.compile(expression))
            except PatternError as error:
                self.report.error(f"{path}: {expression!r} is not a regular expression (RE2): {error}", path, node)
        return tuple(found) if found else UNSET

    def free(self, node: Node, path: str) -> dict[str, Any]:
        self._finite(_table(node), path)
        value: dict[str, Any] = plain(node)
        return value

    def _finite(self, node: Node, path: str) -> None:
        if isinstance(node, ScalarNode):
            if isinstance(node.value, float) and not math.isfinite(node.value):
                self.report.error(
                    f"{path}: {node.text} cannot be represented in JSON", path, node, "quote it to mean text"
                )
        elif isinstance(node, SequenceNode):
            for index, item in enumerate(node.items):
                self._finite(item, f"{path}[{index}]")
        else:
            for name, child in node.entries.items():
                self._finite(child, f"{path}.{name}")

    def section(self, attribute: Attribute[Any], kind: field_types.SectionType, node: Node, path: str) -> Any:
        if is_null(node):
            return UNSET
        if not isinstance(node, MappingNode):
            self.report.error(f"{path}: {_shown(node, False)} cannot be used, wanted a mapping", path, node)
            return UNSET
        values = self.given(kind.record, node, path, synonyms=kind.synonyms)
        default = attribute.default
        return kind.record(**values) if default is None or default is NOTHING else evolve(default, **values)

    def sections(self, kind: field_types.SectionMapType, node: Node, path: str) -> Any:
        """Records by name. A null entry is a record of zeros: it skips the defaults."""
        if is_null(node):
            return {}
        if not isinstance(node, MappingNode):
            wanted = f"a mapping of names to {kind.record.__name__.lower()}s"
            self.report.error(f"{path}: {_shown(node, False)} cannot be used, wanted {wanted}", path, node)
            return UNSET
        found: dict[str, Any] = {}
        for name, child in node.entries.items():
            where = f"{path}.{name}"
            values = self.entry(kind, child, where)
            if values is not None:
                found[name] = kind.record(**({"id": name} if kind.named else {}), **values)
        return found

    def entry(self, kind: field_types.SectionMapType, node: Node, path: str) -> dict[str, Any] | None:
        """What one named entry sets; None where it is no mapping."""
        if is_null(node):
            return zeros(kind.record)
        if not isinstance(node, MappingNode):
            hint = kind.hint
            self.report.error(f"{path} must be a mapping, not {_shown(node, False)}", path, node, hint)
            return None
        return self.given(kind.record, node, path)


# -- single values -----------------------------------------------------------------------------------------


def text(node: Node) -> str:
    if not isinstance(node, ScalarNode):
        raise TypeMismatch("text")
    return node.text


def integer(node: Node) -> int:
    value = node.value if isinstance(node, ScalarNode) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        quoted = isinstance(value, str)
        raise TypeMismatch("a whole number", "write it without quotes" if quoted else "")
    if isinstance(value, float) and not math.isfinite(value):
        raise TypeMismatch("a whole number")
    number = int(value)
    if not -(2**63) <= number < 2**63:
        raise TypeMismatch("a whole number of 64 bits")
    return number


def boolean(node: Node) -> bool:
    value = node.value if isinstance(node, ScalarNode) else None
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value in TRUE_WORDS:
        return True
    if isinstance(value, str) and value in FALSE_WORDS:
        return False
    raise TypeMismatch("true or false", "write it without quotes" if value in ("true", "false") else "")


def duration(node: Node) -> float:
    value = node.value if isinstance(node, ScalarNode) else None
    seconds = durations.parse(value) if isinstance(value, str) else None
    if seconds is None:
        raise TypeMismatch("a duration with units, such as 10s or 1m30s")
    return seconds


def _table(node: Node) -> MappingNode:
    if not isinstance(node, MappingNode):
        raise TypeMismatch("a mapping")
    return node


def _shown(node: Node, secret: bool) -> str:
    """A misfit as an operator may see it: its kind, and a short value that is no secret."""
    if isinstance(node, ScalarNode) and not secret and len(node.text) <= 60:
        return f"{node.text!r} ({kind_of(node)})"
    return kind_of(node)


_NULLS: dict[type[Any], Any] = {
    field_types.TextListType: (),
    field_types.TextMapType: {},
    field_types.TextPairsType: (),
    field_types.IntegerMapType: {},
    field_types.FreeType: {},
    field_types.FreeMapsType: {},
}

_ZEROS: dict[type[Any], Any] = {
    **_NULLS,
    field_types.TextType: "",
    field_types.IntegerType: 0,
    field_types.SecondsType: 0.0,
    field_types.BooleanType: False,
    field_types.DurationType: 0.0,
    field_types.MacrosType: {},
    field_types.PatternsType: (),
    field_types.SectionMapType: {},
}


def zeros(record: type[Any]) -> dict[str, Any]:
    """Every attribute that has a YAML key at its zero: what a null entry of a map of records means."""
    values: dict[str, Any] = {}
    for attribute in fields(record):
        found = attribute.metadata.get("key")
        if found is None:
            continue
        kind = found.kind
        if isinstance(kind, field_types.SectionType):
            values[attribute.name] = kind.record(**zeros(kind.record))
        elif isinstance(kind, field_types.TextType) and kind.secret:
            values[attribute.name] = None
        elif isinstance(kind, field_types.BooleanType) and kind.optional:
            continue
        else:
            values[attribute.name] = _ZEROS[type(kind)]
    return values
