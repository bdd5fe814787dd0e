"""Changes one place in the text of a configuration, so that comments and order stay as they are."""

from __future__ import annotations

import json
from collections.abc import Sequence

import yaml
from yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode, SequenceNode


class NotEditable(Exception):
    """The text cannot be changed at this place; the reason."""


def set_key(text: str, path: Sequence[str], value: str) -> str:
    """The text with the value at `path`, a scalar or a value in braces or brackets as it is written; missing mappings
    are added. Raises NotEditable."""
    root = _composed(text)
    if root is None:
        return f"{text.rstrip()}\n{_written(path, value)}\n".lstrip("\n")
    return _set(text, root, path, value)


def _set(text: str, node: Node, path: Sequence[str], value: str) -> str:
    start, end = node.start_mark.index, node.end_mark.index
    if not path:
        if not isinstance(node, ScalarNode):
            raise NotEditable("there is a mapping or a list in place of a value")
        return text[:start] + value + text[end:]
    if isinstance(node, ScalarNode) and node.tag == "tag:yaml.org,2002:null":
        space = "" if end > start else " "
        return f"{text[:start]}{space}{{{_written(path, value)}}}{text[end:]}"
    if not isinstance(node, MappingNode):
        raise NotEditable(f"{path[0]} needs a mapping around it")
    for name, child in node.value:
        if name.value == path[0]:
            return _set(text, child, path[1:], value)
    if node.flow_style:
        separator = ", " if node.value else ""
        return f"{text[: start + 1]}{_written(path, value)}{separator}{text[start + 1 :]}"
    if node.start_mark.column == 0:  # at the end of the file, after all comments
        return f"{text.rstrip()}\n\n{_written(path, value)}\n"
    return f"{text[:start]}{_written(path, value)}\n{' ' * node.start_mark.column}{text[start:]}"


def _written(path: Sequence[str], value: str) -> str:
    """The path and its value on one line."""
    first, *others = path
    return f"{first}: {{{_written(others, value)}}}" if others else f"{first}: {value}"


# -- entries of a list -------------------------------------------------------------------------------------


def add_item(text: str, name: str, item: str) -> str:
    """The text with one more entry in the list `name`, which is added if it is missing. Raises NotEditable."""
    root, node = _list(text, name)
    if node is None:
        if root is not None and root.flow_style:
            return f"{text[: root.start_mark.index + 1]}{name}: [{item}], {text[root.start_mark.index + 1 :]}"
        return f"{text.rstrip()}\n\n{name}:\n  - {item}\n".lstrip("\n")
    start, end = node.start_mark.index, node.end_mark.index
    if isinstance(node, ScalarNode):  # null
        return f"{text[:start]}{'' if end > start else ' '}[{item}]{text[end:]}"
    if not node.value:
        return f"{text[:start]}[{item}]{text[end:]}"
    last = _end(node.value[-1])
    if isinstance(node, SequenceNode) and node.flow_style:
        return f"{text[:last]}, {item}{text[last:]}"
    line_end = text.find("\n", last)
    before, after = (f"{text}\n", "") if line_end < 0 else (text[: line_end + 1], text[line_end + 1 :])
    return f"{before}{' ' * node.start_mark.column}- {item}\n{after}"


def remove_item(text: str, name: str, index: int) -> str:
    """The text without this entry of the list `name`. Raises NotEditable."""
    _, node = _list(text, name)
    if not isinstance(node, SequenceNode) or index >= len(node.value):
        raise NotEditable(f"{name} is not a list with this entry")
    items = node.value
    begin, end = items[index].start_mark.index, _end(items[index])
    if len(items) == 1:
        lead = "" if node.flow_style else " "
        until = node.end_mark.index if node.flow_style else end
        return f"{text[: node.start_mark.index]}{lead}[]{text[until:]}"
    if not node.flow_style:
        line_end = text.find("\n", end)
        return text[: text.rfind("\n", 0, begin) + 1] + ("" if line_end < 0 else text[line_end + 1 :])
    if index:
        return text[: _end(items[index - 1])] + text[end:]
    return text[:begin] + text[items[1].start_mark.index :]


def set_in_item(text: str, name: str, index: int, key: str, value: str) -> str:
    """The text with another value of a key that this entry of the list `name` has, or gets. Raises NotEditable."""
    _, node = _list(text, name)
    if not isinstance(node, SequenceNode) or index >= len(node.value):
        raise NotEditable(f"{name} is not a list with this entry")
    return _set(text, node.value[index], [key], value)


def _list(text: str, name: str) -> tuple[MappingNode | None, Node | None]:
    """The document, and the value of a key of it, which is a list or null; None for what is missing."""
    root = _composed(text)
    if root is None:
        return None, None
    if not isinstance(root, MappingNode):
        raise NotEditable("the file is not a mapping")
    node = next((child for found, child in root.value if found.value == name), None)
    null = isinstance(node, ScalarNode) and node.tag == "tag:yaml.org,2002:null"
    if node is not None and not null and not isinstance(node, SequenceNode):
        raise NotEditable(f"{name} is not a list")
    return root, node


def _end(node: Node) -> int:
    """Where the text of a node ends: a block's own mark is behind the comments that follow it."""
    end: int = node.end_mark.index
    if not isinstance(node, CollectionNode) or node.flow_style or not node.value:
        return end
    last = node.value[-1]
    return max(_end(last[0]), _end(last[1])) if isinstance(node, MappingNode) else _end(last)


# -- any place ---------------------------------------------------------------------------------------------


def add_to_list(text: str, path: Sequence[str], value: str) -> str:
    """The text with one more item in the list at `path`, which is added if it is missing. Raises NotEditable."""
    found = _find(_composed(text), path)
    if found is None or not isinstance(found[1], SequenceNode):
        return set_key(text, path, f"[{value}]")
    node = found[1]
    start = node.start_mark.index
    if node.flow_style:
        return f"{text[: start + 1]}{value}{', ' if node.value else ''}{text[start + 1 :]}"
    return f"{text[:start]}- {value}\n{' ' * node.start_mark.column}{text[start:]}"


def remove(text: str, path: Sequence[str], item: str | None = None) -> str:
    """The text without the key at `path`, or without the `item` of the list there. Raises NotEditable."""
    found = _find(_composed(text), path)
    if found is None:
        raise NotEditable(f"{'.'.join(path)} is not in the file")
    parent, node, key = found
    if item is not None:
        places = node.value if isinstance(node, SequenceNode) else []
        rest = [one for one in places if one.value != item]
        if len(rest) == len(places):
            raise NotEditable(f"{item} is not an item of {'.'.join(path)}")
        if rest:
            values = ", ".join(json.dumps(one.value) for one in rest)
            end = _end(node)
            end -= text[end - 1] == "\n"
            return f"{text[: node.start_mark.index]}[{values}]{text[end:]}"
    if parent.flow_style:
        return _without_member(text, parent, key)
    begin, end = text.rfind("\n", 0, key.start_mark.index) + 1, _end(node)
    if not text[:end].endswith("\n"):
        end = text.find("\n", end) + 1 or len(text)
    return text[:begin] + text[end:]


def _without_member(text: str, parent: MappingNode, key: Node) -> str:
    """The text without one member of a mapping in braces, and without a comma beside it."""
    members = parent.value
    place = next(place for place, member in enumerate(members) if member[0] is key)
    begin, end = key.start_mark.index, members[place][1].end_mark.index
    if place + 1 < len(members):
        end = members[place + 1][0].start_mark.index
    elif place:
        begin = members[place - 1][1].end_mark.index
    return text[:begin] + text[end:]


def _find(root: Node | None, path: Sequence[str]) -> tuple[MappingNode, Node, Node] | None:
    """The mapping around the last key of `path`, its value, and the key; None if it is missing."""
    node, found = root, None
    for name in path:
        if not isinstance(node, MappingNode):
            return None
        pair = next((pair for pair in node.value if pair[0].value == name), None)
        if pair is None:
            return None
        found = (node, pair[1], pair[0])
        node = pair[1]
    return found


def _composed(text: str) -> Node | None:
    try:
        root: Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise NotEditable(str(error)) from None
    return root
