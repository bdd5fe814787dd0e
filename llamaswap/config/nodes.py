"""A document as a tree of immutable nodes, each with its place in a file. Sharing one (a YAML alias) is harmless."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen


@frozen
class SourceLocation:
    """A line (1-based) of a file."""

    file: str | None = None
    line: int | None = None


NOWHERE = SourceLocation()


@frozen(eq=False)
class ScalarNode:
    """A single value. `kind` is str, int, float, bool, null or timestamp; `text` is what stood in the file."""

    kind: str
    value: str | int | float | bool | None
    text: str
    place: SourceLocation = NOWHERE
    size: int = 1
    anchored: bool = False


@frozen(eq=False)
class SequenceNode:
    """A list. `size` counts the nodes in it, `anchored` says whether a YAML anchor stands in it; so for tables."""

    items: tuple[Node, ...]
    place: SourceLocation = NOWHERE
    size: int = 1
    anchored: bool = False


@frozen(eq=False)
class MappingNode:
    """An ordered mapping; keys are the text that stood in the file. `places` says where each key stands."""

    entries: Mapping[str, Node]
    places: Mapping[str, SourceLocation] = field(factory=dict)
    place: SourceLocation = NOWHERE
    size: int = 1
    anchored: bool = False

    def get(self, name: str) -> Node | None:
        return self.entries.get(name)

    def where(self, name: str) -> SourceLocation:
        """The place of the key, of the table where that is not known."""
        return self.places.get(name, self.place)


Node = ScalarNode | SequenceNode | MappingNode


def is_null(node: Node | None) -> bool:
    """Is the value null? (An absent one is not.)"""
    return isinstance(node, ScalarNode) and node.kind == "null"


def kind_of(node: Node) -> str:
    """What a node is, in an operator's words."""
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
    """The node as JSON would say it: whole floats become ints, dates stay RFC 3339 text."""
    if isinstance(node, MappingNode):
        return {name: plain(child) for name, child in node.entries.items()}
    if isinstance(node, SequenceNode):
        return [plain(child) for child in node.items]
    if isinstance(node.value, float) and node.value.is_integer():
        return int(node.value)
    return node.value
