"""Nodes to records, by the keys that the records have. Every mismatch is reported with its path and the wanted kind.

A value that does not fit is left out; the caller checks the report before it uses the result.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import cache
from typing import Any

from attrs import Attribute, define, evolve

from llamaswap.config.diagnostics import Diagnostics, did_you_mean
from llamaswap.config.field_types import (
    DURATION,
    MAPPING_HINT,
    UNSET,
    Key,
    Record,
    SectionMapType,
    SectionType,
    TypeMismatch,
    ValueType,
    keys_of,
    shown,
)
from llamaswap.config.nodes import MappingNode, Node, SequenceNode, is_null, kind_of
from llamaswap.config.schema import Config
from llamaswap.config.schema.model import Model

Values = dict[str, Any]


@define
class Decoder:
    """Reads records; values that do not fit go into `report`."""

    report: Diagnostics

    def given(self, record: Record, node: MappingNode, path: str, *, synonyms: bool = True) -> Values:
        """The attributes that a mapping sets, by attribute name; unset and null ones are absent."""
        known = keys_of(record)
        values: Values = {}
        for name, (attribute, key) in known.items():
            child = node.get(name)
            for synonym in key.synonyms if synonyms else ():
                old = node.get(synonym)
                if old is not None and (child is None or is_null(child) or getattr(child, "text", None) == ""):
                    child = old
            if child is not None:
                value = self.value(attribute, key, child, f"{path}.{name}" if path else name)
                if value is not UNSET:
                    values[attribute.name] = value
        accepted = set(known)
        if synonyms:
            accepted.update(word for _, key in known.values() for word in key.synonyms)
        for name, child in node.entries.items():
            # A place for YAML anchors is not a mistake, nor is an extension.
            if name not in accepted and not child.anchored and not name.startswith(("x-", ".")):
                where = f"{path}.{name}" if path else name
                self.report.warn("unknown key, ignored", where, node.where(name), _hint(name, child, known, path))
        return values

    def value(self, attribute: Attribute[Any], key: Key, node: Node, path: str) -> object:
        """The value at a key; UNSET if null keeps the default, or the value does not fit."""
        kind = key.kind
        try:
            if isinstance(kind, SectionType):
                if is_null(node):
                    return UNSET
                return self._list(kind, node, path) if kind.many else self._section(attribute, kind, node, path)
            if isinstance(kind, SectionMapType):
                return {} if is_null(node) else self._sections(kind, node, path)
            if is_null(node):
                return kind.null
            value = kind.read(node, path, self.report)
        except TypeMismatch as mismatch:
            secret = kind.secret if isinstance(kind, ValueType) else isinstance(kind, SectionType) and kind.many
            message = f"{path}: {shown(node, secret)} cannot be used, wanted {mismatch.wanted}"
            self.report.error(message, path, node, mismatch.hint)
            return UNSET
        for where, message in () if key.lenient else _beyond_bounds(key, value, path):
            self.report.error(message, where, node, key.doc)
        return value

    def _section(self, attribute: Attribute[Any], kind: SectionType, node: Node, path: str) -> object:
        if isinstance(node, MappingNode):
            values = self.given(kind.record, node, path, synonyms=kind.synonyms)
        elif kind.shorthand:
            inner, key = keys_of(kind.record)[kind.shorthand]
            assert isinstance(key.kind, ValueType), "a shorthand is a single value"
            values = {inner.name: key.kind.read(node, path, self.report)}
        else:
            raise TypeMismatch("a mapping", MAPPING_HINT)
        default = attribute.default
        return kind.record(**values) if default is None else evolve(default, **values)

    def _list(self, kind: SectionType, node: Node, path: str) -> tuple[object, ...]:
        """Records, of which one that is a text has that key alone. A null one is an error, because leaving it out could
        admit clients without a key."""
        if not isinstance(node, SequenceNode):
            raise TypeMismatch("a list of texts", "write it as [one, two]")
        inner, key = keys_of(kind.record)[kind.shorthand]
        assert isinstance(key.kind, ValueType), "a shorthand is a single value"
        found: list[object] = []
        for index, item in enumerate(node.items):
            where = f"{path}[{index}]"
            if isinstance(item, MappingNode):
                found.append(kind.record(**self.given(kind.record, item, where)))
            elif is_null(item):
                self.report.error(f"{where} is null", where, item, "remove the entry, or quote it")
            elif isinstance(item, SequenceNode):
                self.report.error(f"{where}: {kind_of(item)} cannot be used, wanted text", where, item)
            else:
                found.append(kind.record(**{inner.name: key.kind.read(item, where, self.report)}))
        return tuple(found)

    def _sections(self, kind: SectionMapType, node: Node, path: str) -> dict[str, object]:
        """Records by name."""
        if not isinstance(node, MappingNode):
            raise TypeMismatch(f"a mapping of names to {kind.record.__name__.lower()}s")
        found: dict[str, object] = {}
        for name, child in node.entries.items():
            at = f"{path}.{name}"
            if is_null(child):  # without the defaults
                values = zeros(kind.record)
            elif isinstance(child, MappingNode):
                values = self.given(kind.record, child, at)
            else:
                self.report.error(f"{at} must be a mapping, not {shown(child)}", at, child, kind.hint)
                continue
            found[name] = kind.record(**({"id": name} if kind.named else {}), **values)
        return found


def _beyond_bounds(key: Key, value: object, path: str) -> Iterator[tuple[str, str]]:
    """The errors of a value that its key's bounds exclude: (path, message)."""
    minimum = key.bounds.get("minimum", 0 if key.kind is DURATION else None)
    if minimum is not None and isinstance(value, int | float) and value < minimum:
        yield path, f"{path} must be at least {minimum}, not {value:g}"
    maximum = key.bounds.get("maximum")
    if maximum is not None and isinstance(value, int | float) and value > maximum:
        yield path, f"{path} must be at most {maximum}, not {value:g}"
    if "enum" in key.bounds and value not in key.bounds["enum"]:
        yield path, f"{path} must be one of {', '.join(filter(None, key.bounds['enum']))}, not {value!r}"
    if "items_enum" in key.bounds and isinstance(value, tuple):
        words = key.bounds["items_enum"]
        for index, word in enumerate(value):
            if word not in words:
                yield f"{path}[{index}]", f"{path} has {word!r}, which is none of {', '.join(words)}"


def _hint(name: str, child: Node, known: Collection[str], path: str) -> str:
    """What to do about an unknown key; "" if it exists nowhere else and no known key is similar."""
    if path.startswith("models.") and name in keys_of(Config):
        return f"`{name}` is a top-level key: move it out of the model"
    if not path and isinstance(child, MappingNode) and child.get("cmd") is not None:
        return "a model: move it below `models:`"
    section = path.partition(".")[0]
    places = _places().get(name, [])
    if section:
        inside = [place for place in places if place.startswith(f"{section}.")]
        places = inside or ([] if name in keys_of(Model) else places)
    if len(places) == 1:
        [place] = places
        return f"`{name}` is a key of `{place}`" if place else f"`{name}` is a top-level key: move it out of `{path}`"
    near = did_you_mean(name, known)
    if not path and not near and name in keys_of(Model):
        return f"`{name}` belongs inside a model"
    return near


@cache
def _places() -> dict[str, list[str]]:
    """The sections that have a key of each name: their paths, "" for the top level. Models themselves are left out."""
    found: dict[str, list[str]] = {}
    sections: list[tuple[str, Record]] = [("", Config), ("models.MODEL", Model)]
    for path, record in sections:
        for name, (_, key) in keys_of(record).items():
            if record is not Model:
                found.setdefault(name, []).append(path)
            place = f"{path}.{name}" if path else name
            if isinstance(key.kind, SectionType):
                sections.append((place, key.kind.record))
            elif isinstance(key.kind, SectionMapType) and key.kind.record is not Model:
                sections.append((f"{place}.NAME", key.kind.record))
    return found


def zeros(record: Record) -> Values:
    """Every attribute that has a YAML key at its zero: what a null entry of a mapping of records means."""
    values: Values = {}
    for attribute, key in keys_of(record).values():
        kind = key.kind
        if isinstance(kind, SectionType):
            values[attribute.name] = kind.record(**zeros(kind.record))
        elif isinstance(kind, SectionMapType):
            values[attribute.name] = {}
        elif kind.zero is not UNSET:
            values[attribute.name] = kind.zero
    return values
