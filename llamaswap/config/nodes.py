"""A document as a tree of immutable nodes, each with its location in a file. A YAML alias shares a node."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from attrs import Factory, field, frozen


@frozen
class SourceLocation:
    """A line (1-based) of a file."""

    file: str | None = None
    line: int | None = None


NOWHERE = SourceLocation()


@frozen(eq=False)
class ScalarNode:
    """A single value. `kind` is str, int, float, bool, null or timestamp; `text` is the text in the file."""

    kind: str
    value: str | int | float | bool | None
    text: str
    place: SourceLocation = NOWHERE
    size: int = 1
    anchored: bool = False


@frozen(eq=False)
class SequenceNode:
    """A list. `size` counts its nodes, `anchored` says whether it contains a YAML anchor; both as in mappings."""

    items: tuple[Node, ...]
    place: SourceLocation = NOWHERE
    size: int = Factory(lambda self: 1 + sum(item.size for item in self.items), takes_self=True)
    anchored: bool = Factory(lambda self: any(item.anchored for item in self.items), takes_self=True)


@frozen(eq=False)
class MappingNode:
    """An ordered mapping; keys are the text in the file. `places` has the location of each key."""

    entries: Mapping[str, Node]
    places: Mapping[str, SourceLocation] = field(factory=dict)
    place: SourceLocation = NOWHERE
    size: int = Factory(lambda self: 1 + sum(1 + child.size for child in self.entries.values()), takes_self=True)
    anchored: bool = Factory(lambda self: any(child.anchored for child in self.entries.values()), takes_self=True)

    def get(self, name: str) -> Node | None:
        return self.entries.get(name)

    def where(self, name: str) -> SourceLocation:
        """The location of the key, or of the mapping if that is unknown."""
        return self.places.get(name, self.place)


Node = ScalarNode | SequenceNode | MappingNode


def is_null(node: Node | None) -> bool:
    """Whether the value is null. (An absent one is not.)"""
    return isinstance(node, ScalarNode) and node.kind == "null"


def locate(root: Node, path: str) -> SourceLocation:
    """The location of the value at a dotted path (`models.owl.aliases[1]`), or of its innermost part that exists."""
    node, place, rest = root, root.place, path
    while rest:
        if isinstance(node, MappingNode):
            rest = rest.removeprefix(".")
            # A name may contain dots: the longest one that fits is meant.
            names = sorted(node.entries, key=len, reverse=True)
            name = next((name for name in names if name and f"{rest}.".startswith((f"{name}.", f"{name}["))), "")
            if not name:
                break
            place, node, rest = node.where(name), node.entries[name], rest[len(name) :]
        else:
            index = re.match(r"\[(\d+)\]", rest)
            if index is None or not isinstance(node, SequenceNode) or int(index[1]) >= len(node.items):
                break
            node, rest = node.items[int(index[1])], rest[index.end() :]
            place = node.place
    return place


def kind_of(node: Node) -> str:
    """The kind of a node, as messages call it."""
    if isinstance(node, MappingNode):
        return "a mapping"
    if isinstance(node, SequenceNode):
        return "a list"
    return {
        "str": "text",
        "int": "a number",
        "float": "a number",
        "bool": "true/false",
        "null": "null",
        "timestamp": "a date",
    }[node.kind]


def plain(node: Node) -> Any:
    """The node as a JSON value: whole floats become ints, dates stay RFC 3339 text."""
    if isinstance(node, MappingNode):
        return {name: plain(child) for name, child in node.entries.items()}
    if isinstance(node, SequenceNode):
        return [plain(child) for child in node.items]
    if isinstance(node.value, float) and node.value.is_integer():
        return int(node.value)
    return node.value
