"""Several files as one document: what may be in several files, what must be in one, and what conflicts."""

from __future__ import annotations

from collections.abc import Sequence

from llamaswap.config.diagnostics import fail
from llamaswap.config.nodes import MappingNode, Node, ScalarNode, SequenceNode, is_null, kind_of

# Each entry of these must be in one file: two models of one name are a mistake, even if they are equal.
IDENTITY = frozenset(
    {
        ("models",),
        ("groups",),
        ("profiles",),
        ("selectors",),
        ("peers",),
        ("matrix",),
        ("routing", "router", "settings", "groups"),
        ("routing", "router", "settings", "matrix"),
    }
)


def merge(tables: Sequence[MappingNode]) -> MappingNode:
    """Merge documents into one. Raises ConfigError, which names the key and the later file, if two define the same."""
    if not tables:
        return MappingNode({})
    merged = tables[0]
    for table in tables[1:]:
        merged = _tables(merged, table, (), table.place.file or "")
    return merged


def _tables(old: MappingNode, new: MappingNode, path: tuple[str, ...], file: str) -> MappingNode:
    entries = dict(old.entries)
    places = dict(old.places)
    for name, value in new.entries.items():
        places.setdefault(name, new.where(name))
        below = (*path, name)
        entries[name] = _both(entries[name], value, below, file, new) if name in entries else value
    return MappingNode(entries, places, old.place)


def _both(old: Node, new: Node, path: tuple[str, ...], file: str, parent: MappingNode) -> Node:
    dotted = ".".join(path)
    at = parent.where(path[-1])
    if path in IDENTITY:
        if not (isinstance(old, MappingNode) and isinstance(new, MappingNode)):
            raise fail(f"{dotted}: expected a mapping in every file that has this key, also in {file}", dotted, at)
        for name in new.entries:
            if name in old.entries:
                first = old.where(name)
                raise fail(
                    f"{dotted}: {name!r} in {file} is already defined in {first.file}",
                    f"{dotted}.{name}",
                    new.where(name),
                    "keep it in one file",
                )
        return MappingNode({**old.entries, **new.entries}, {**old.places, **new.places}, old.place)
    if is_null(old):
        return new
    if is_null(new):
        return old
    if isinstance(old, MappingNode) and isinstance(new, MappingNode):
        return _tables(old, new, path, file)
    if isinstance(old, SequenceNode) and isinstance(new, SequenceNode):
        return SequenceNode(old.items + new.items, old.place)
    if isinstance(old, ScalarNode) and isinstance(new, ScalarNode):
        if (old.kind, old.text) != (new.kind, new.text):
            raise fail(
                f"{dotted} in {file} has a different value than in {old.place.file}",
                dotted,
                at,
                "set it in one file, or equally in both",
            )
        return old
    raise fail(
        f"{dotted}: incompatible kinds, {kind_of(old)} in {old.place.file} and {kind_of(new)} in {file}", dotted, at
    )
