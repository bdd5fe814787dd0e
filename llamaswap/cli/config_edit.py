"""Changes one key in the text of a configuration, so that comments and order stay as they are."""

from __future__ import annotations

from collections.abc import Sequence

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode


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
