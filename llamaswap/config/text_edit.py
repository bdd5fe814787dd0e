"""Changes one place in the text of a configuration, so that comments and order stay as they are."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import yaml
from yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode, SequenceNode


class NotEditable(Exception):
    """The text cannot be changed at this place; the reason."""


Path = Sequence[str | int]  # the keys of mappings and the indices of lists that lead to a value

_NULL = "tag:yaml.org,2002:null"
_PROPERTIES = re.compile(r"(?:[&!]\S*\s+(?:#.*\s+)*)*")  # the anchor and the tag before a value


def scalar(text: str) -> str:
    """A text as YAML writes it: plain if that is safe, else in double quotes as in JSON."""
    plain = re.fullmatch(r"[A-Za-z][\w./:-]*[\w/]|[A-Za-z]", text, re.ASCII)
    words = ("true", "false", "yes", "no", "on", "off", "null", "y", "n")
    return text if plain and text.lower() not in words else json.dumps(text, ensure_ascii=False)


def set_key(text: str, path: Path, value: str) -> str:
    """The text with the value at `path`, a scalar or a value in braces or brackets as it is written; missing mappings
    are added, inside braces in braces. Raises NotEditable."""
    root = _composed(text)
    if root is None:
        return f"{text.rstrip()}\n{_block(path, value, 0)}\n".lstrip("\n")
    return _set(text, root, path, value, None)


def _set(text: str, node: Node, path: Path, value: str, indent: int | None) -> str:
    """`indent` is that of the members of `node`, if it is empty; None in braces."""
    start, end = node.start_mark.index, node.end_mark.index
    if isinstance(node, CollectionNode):
        start = _PROPERTIES.match(text, start).end()  # type: ignore[union-attr] # matches empty
    column = start - text.rfind("\n", 0, start) - 1
    space = "" if end > start else " "
    if not path:
        if not isinstance(node, ScalarNode):
            raise NotEditable("there is a mapping or a list in place of a value")
        return f"{text[:start]}{space}{value}{text[start + len(text[start:end].rstrip()) :]}"
    if isinstance(node, ScalarNode) and node.tag == _NULL:
        if indent is not None and start == end:
            line_end = text.find("\n", start) % (len(text) + 1)  # also where the last line has no end
            return f"{text[:line_end]}\n{' ' * indent}{_block(path, value, indent)}{text[line_end:]}"
        return f"{text[:start]}{space}{{{_written(path, value)}}}{text[end:]}"
    if (member := _member(node, path[0])) is not None:
        inner = None if not isinstance(node, CollectionNode) or node.flow_style else column + 2
        return _set(text, member[1], path[1:], value, inner)
    if not isinstance(node, MappingNode):
        raise NotEditable(f"{path[0]} needs a mapping around it")
    if node.flow_style:
        separator = ", " if node.value else ""
        return f"{text[: start + 1]}{_written(path, value)}{separator}{text[start + 1 :]}"
    if column == 0:  # at the end of the file, after all comments
        return f"{text.rstrip()}\n\n{_block(path, value, 0)}\n"
    return f"{text[:start]}{_block(path, value, column)}\n{' ' * column}{text[start:]}"


def _block(path: Path, value: str, indent: int) -> str:
    """The path and its value, each step on a line, the first of which is at `indent`."""
    lines = [f"{' ' * (indent + 2 * depth)}{scalar(str(step))}:" for depth, step in enumerate(path)]
    return "\n".join(lines).lstrip() + f" {value}"


def _written(path: Path, value: str) -> str:
    """The path and its value on one line."""
    first, *others = path
    return f"{scalar(str(first))}: {f'{{{_written(others, value)}}}' if others else value}"


def add_item(text: str, path: Path, item: str) -> str:
    """The text with one more entry at the end of the list at `path`, which is added if it is missing. Raises
    NotEditable."""
    root = _composed(text)
    found = _find(root, path)
    if found is None:
        if len(path) == 1 and (root is None or (isinstance(root, MappingNode) and not root.flow_style)):
            return f"{text.rstrip()}\n\n{path[0]}:\n  - {item}\n".lstrip("\n")
        return set_key(text, path, f"[{item}]")
    node = found[1]
    if isinstance(node, ScalarNode) and node.tag == _NULL:
        return set_key(text, path, f"[{item}]")
    if not isinstance(node, SequenceNode):
        raise NotEditable(f"{_dotted(path)} is not a list")
    if not node.value:
        return f"{text[: node.start_mark.index]}[{item}]{text[node.end_mark.index :]}"
    last = _end(node.value[-1])
    if node.flow_style:
        return f"{text[:last]}, {item}{text[last:]}"
    line_end = text.find("\n", last)
    before, after = (f"{text}\n", "") if line_end < 0 else (text[: line_end + 1], text[line_end + 1 :])
    return f"{before}{' ' * node.start_mark.column}- {item}\n{after}"


def remove(text: str, path: Path) -> str:
    """The text without the entry at `path`, of a mapping or of a list. Raises NotEditable."""
    found = _find(_composed(text), path)
    if found is None:
        raise NotEditable(f"{_dotted(path)} is not in the file")
    parent, node, key = found
    places = [(one.start_mark.index, _end(last)) for one, last in _members(parent)]
    begin, end = key.start_mark.index, _end(node)
    place = places.index((begin, end))
    if parent.flow_style:  # with a comma beside it
        if place + 1 < len(places):
            end = places[place + 1][0]
        elif place:
            begin = places[place - 1][1]
        else:
            begin, end = parent.start_mark.index + 1, parent.end_mark.index - 1
    elif len(places) == 1 and isinstance(parent, SequenceNode):
        return f"{text[: parent.start_mark.index]} []{text[end:]}"
    else:
        begin = text.rfind("\n", 0, begin) + 1
        if not text[:end].endswith("\n"):
            end = text.find("\n", end) + 1 or len(text)
    return text[:begin] + text[end:]


def remove_value(text: str, path: Path, value: str) -> str:
    """The text without this text in the list at `path`, and without the list if it had no other. Raises NotEditable."""
    found = _find(_composed(text), path)
    items = [item.value for _, item in _members(found[1])] if found is not None else []
    if value not in items:
        raise NotEditable(f"{value} is not an entry of {_dotted(path)}")
    return remove(text, path if len(items) == 1 else (*path, items.index(value)))


# -- nodes -------------------------------------------------------------------------------------------------


def _members(node: Node) -> list[tuple[Node, Node]]:
    """(key, value) of a mapping's members; (entry, entry) of a list's."""
    if isinstance(node, MappingNode):
        return list(node.value)
    return [(item, item) for item in node.value] if isinstance(node, SequenceNode) else []


def _member(node: Node, step: str | int) -> tuple[Node, Node] | None:
    members = _members(node)
    if isinstance(step, int):
        return members[step] if isinstance(node, SequenceNode) and step < len(members) else None
    return next((pair for pair in members if isinstance(node, MappingNode) and pair[0].value == step), None)


def _find(root: Node | None, path: Path) -> tuple[CollectionNode, Node, Node] | None:
    """What contains the last step of `path`, its value, and where it begins; None if it is missing."""
    node, found = root, None
    for step in path:
        pair = None if node is None else _member(node, step)
        if not isinstance(node, CollectionNode) or pair is None:
            return None
        found = (node, pair[1], pair[0])
        node = pair[1]
    return found


def _dotted(path: Path) -> str:
    return ".".join(map(str, path))


def _end(node: Node) -> int:
    """Where the text of a node ends: a block's own mark is behind the comments that follow it."""
    end: int = node.end_mark.index
    if not isinstance(node, CollectionNode) or node.flow_style or not node.value:
        return end
    last = node.value[-1]
    return max(_end(last[0]), _end(last[1])) if isinstance(node, MappingNode) else _end(last)


def _composed(text: str) -> Node | None:
    try:
        root: Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise NotEditable(str(error)) from None
    return root
