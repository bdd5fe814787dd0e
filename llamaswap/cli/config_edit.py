"""Changes one key, or one entry of a list, in the text of a configuration, so that comments and order stay as they
are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml
from yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode, SequenceNode

from llamaswap.config import Config
from llamaswap.web.config_history import VersionSource
from llamaswap.web.configfile import ConfigFile


class NotEditable(Exception):
    """The text cannot be changed at this place; the reason."""


def set_key(text: str, path: Sequence[str], value: str) -> str:
    """The text with the value at `path`, a plain scalar; missing mappings are added. Raises NotEditable."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise NotEditable(str(error)) from None
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
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise NotEditable(str(error)) from None
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


# -- the file ----------------------------------------------------------------------------------------------


def write(path: Path, text: str, config: Config, author: str) -> None:
    """Replace the file as the web page's editor does: in one step, with a backup and an entry in the history."""
    file = ConfigFile(path, {}, lambda: config, list, lambda: None, allowed=True)
    file.write(text, VersionSource("saved", "", author))
