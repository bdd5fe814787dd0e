"""YAML text to a tree of nodes. Besides `text_edit`, no other module reads configurations with PyYAML.

Only its events are used, because its composer has other types for scalars, drops their text, accepts duplicate keys,
and has no bounds on depth and on the size that aliases expand to.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import yaml
from attrs import Factory, define, evolve, frozen
from yaml.events import (
    AliasEvent,
    DocumentEndEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from llamaswap.config import environment
from llamaswap.config.diagnostics import fail
from llamaswap.config.nodes import MappingNode, Node, ScalarNode, SequenceNode, SourceLocation, is_null, kind_of
from llamaswap.config.scalars import resolve

# libyaml if PyYAML has it: its events are the same, and it is ten times faster.
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MAX_DEPTH = 100
TOO_DEEP = f"mappings and lists are nested more than {MAX_DEPTH} deep"
MIN_BOUND = 100_000  # nodes of a document with its aliases expanded; a longer text may have one per character

TAG = "tag:yaml.org,2002:"


@frozen
class ConfigText:
    """One file's name (for messages) and text."""

    path: str
    text: str


def parse(source: ConfigText, environ: Mapping[str, str]) -> MappingNode | None:
    """The first document of a source with its environment variables inserted; None if it is empty.

    Raises ConfigError.
    """
    text = source.text
    for _ in range(2):  # because a value may contain a placeholder
        if "${env." in text:
            names = _names_outside_comments(text, source.path)
            text = environment.substitute(text, source.path, environ, names)
    root = _compose(text, source.path)
    if (isinstance(root, SequenceNode) and root.items) or (isinstance(root, ScalarNode) and not is_null(root)):
        raise fail(
            f"{source.path} holds {kind_of(root)}, but a mapping is needed",
            at=root,
            hint="start with a key such as `models:`",
        )
    return root if isinstance(root, MappingNode) and root.entries else None


def _names_outside_comments(text: str, file: str) -> Collection[str]:
    try:
        found: set[str] = set()
        for event in _first_document(text, file):
            if isinstance(event, ScalarEvent):
                found |= environment.names_in(event.value)
        return found
    except (yaml.YAMLError, UnicodeError):  # such as [${env.KEY}], which is valid only after the insertion
        return environment.names_in(text)


def _first_document(text: str, file: str) -> Iterator[Event]:
    """Events of the first document; its depth is bounded here, before any recursion."""
    depth = 0
    for event in yaml.parse(text, Loader=LOADER):
        if isinstance(event, MappingStartEvent | SequenceStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise fail(TOO_DEEP, at=_place(event, file))
        elif isinstance(event, MappingEndEvent | SequenceEndEvent):
            depth -= 1
        yield event
        if isinstance(event, DocumentEndEvent):
            return


def _place(event: Event, file: str) -> SourceLocation:
    return SourceLocation(file, event.start_mark.line + 1 if event.start_mark is not None else 1)


def _flow_depth(text: str) -> int:
    """The depth of brackets and braces, quoted ones included. For text that is not valid YAML."""
    depth = deepest = 0
    for match in re.finditer(r"[\[{]|[\]}]", text):
        depth = depth + 1 if match[0] in "[{" else max(depth - 1, 0)
        deepest = max(deepest, depth)
    return deepest


def _compose(text: str, file: str) -> Node | None:
    try:
        return _Composer(file, _first_document(text, file), max(MIN_BOUND, len(text))).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else None
        if _flow_depth(text) > MAX_DEPTH:
            # The parser reads ahead over open brackets, and its limit is reached before ours.
            raise fail(TOO_DEEP, at=SourceLocation(file, line))
        words = ", ".join(part for part in (error.context, error.problem) if part)
        hint = 'quote text that begins with a special character, such as "${MACRO}" in a list'
        if "mapping values are not allowed" in words:
            hint = "write a value that contains a colon and a blank in quotes, or on its own lines below `|`"
        if mark is not None and re.match(r" *\t", "".join(text.split("\n")[mark.line : mark.line + 1])):
            hint = "indent with blanks, YAML takes no tabs"
        raise fail(f"not valid YAML: {words}", at=SourceLocation(file, line), hint=hint)
    except yaml.reader.ReaderError as error:
        raise fail(
            f"not valid YAML: a character that is not allowed in a file ({error.reason})", at=SourceLocation(file)
        )
    except (yaml.YAMLError, UnicodeError):
        raise fail("not valid YAML text", at=SourceLocation(file))


@define
class _Composer:
    """Builds nodes from events; `bound` limits the nodes of the tree with its aliases expanded."""

    file: str
    events: Iterator[Event]
    bound: int
    anchors: dict[str, Node] = Factory(dict)
    merged: int = 0

    def document(self) -> Node | None:
        for event in self.events:
            if isinstance(event, NodeEvent):
                return self.node(event, ())
        return None

    def node(self, event: Event, path: tuple[str, ...]) -> Node:
        if isinstance(event, AliasEvent):
            target = self.anchors.get(event.anchor or "")
            if target is None:
                raise self.wrong(event, f"alias *{event.anchor} names no anchor that is complete before it")
            return target
        node: Node
        if isinstance(event, ScalarEvent):
            node = self.scalar(event)
        elif isinstance(event, SequenceStartEvent):
            node = self.items(event, path)
        elif isinstance(event, MappingStartEvent):
            node = self.table(event, path)
        else:
            raise self.wrong(event, "the document ends too early")
        if node.size > self.bound:
            raise self.wrong(event, f"aliases make the document grow beyond {self.bound} values")
        if isinstance(event, NodeEvent) and event.anchor is not None:
            node = evolve(node, anchored=True)
            self.anchors[event.anchor] = node
        return node

    def scalar(self, event: ScalarEvent) -> ScalarNode:
        text: str = event.value
        place = _place(event, self.file)
        tag = event.tag or ""
        if event.style in ("", None) and not tag:
            kind, value = resolve(text)
            return ScalarNode(kind, value, text, place)
        name = tag[len(TAG) :] if tag.startswith(TAG) else ""
        if name not in ("int", "float", "bool", "null", "timestamp"):
            return ScalarNode("str", text, text, place)
        kind, value = resolve(text)
        if name == "float" and kind == "int" and isinstance(value, int):
            kind, value = "float", float(value)
        if kind != name:
            raise self.wrong(event, f"a value tagged !!{name} is not one")
        return ScalarNode(kind, value, text, place)

    def items(self, event: SequenceStartEvent, path: tuple[str, ...]) -> SequenceNode:
        children: list[Node] = []
        for child in self.events:
            if isinstance(child, SequenceEndEvent):
                break
            children.append(self.node(child, (*path, "[]")))
        return SequenceNode(tuple(children), _place(event, self.file))

    def table(self, event: MappingStartEvent, path: tuple[str, ...]) -> MappingNode:
        entries: dict[str, Node] = {}
        places: dict[str, SourceLocation] = {}
        merges: list[Node] = []
        # In a mapping of macros `<<` is the name of a macro, which is then reported as invalid.
        mergeable = not (path == ("macros",) or (len(path) == 3 and path[0] == "models" and path[2] == "macros"))
        for key_event in self.events:
            if isinstance(key_event, MappingEndEvent):
                break
            key = self.node(key_event, (*path, "?"))
            if not isinstance(key, ScalarNode):
                raise self.wrong(key_event, "a key must be a single value, not a list or mapping")
            value = self.node(next(self.events), (*path, key.text))
            if mergeable and _is_merge(key_event):
                if merges:
                    raise self.wrong(key_event, "key << is already defined in this mapping", "<<: [*one, *two]")
                merges.append(value)
                continue
            if key.text in entries:
                first = places[key.text].line
                raise self.wrong(
                    key_event,
                    f"key {key.text!r} is already defined in this mapping (line {first})",
                    "keep one of the two",
                )
            entries[key.text] = value
            places[key.text] = _place(key_event, self.file)
        for merge in merges:
            self.merge(event, merge, entries, places)
        return MappingNode(entries, places, _place(event, self.file))

    def merge(self, event: NodeEvent, value: Node, entries: dict[str, Node], places: dict[str, SourceLocation]) -> None:
        """Add the entries of `<<` that the mapping does not have; of several mappings the first wins."""
        for offered in value.items if isinstance(value, SequenceNode) else (value,):
            if not isinstance(offered, MappingNode):
                raise self.wrong(event, "<< takes mappings, and this is not one")
            self.merged += len(offered.entries)
            if self.merged > self.bound:
                raise self.wrong(event, f"<< makes the document grow beyond {self.bound} values")
            for name, child in offered.entries.items():
                if name not in entries:
                    entries[name] = child
                    places[name] = offered.where(name)

    def wrong(self, event: Event, message: str, hint: str = "") -> Exception:
        return fail(message, at=_place(event, self.file), hint=hint)


def _is_merge(event: Event) -> bool:
    if not isinstance(event, ScalarEvent) or event.value != "<<":
        return False
    return event.tag == f"{TAG}merge" or (event.tag is None and event.style in ("", None))
