"""A JSON request body: which model it names, and how to change one member without touching the rest.

A document is split into its top-level members, a member into its own if a path leads there, and everything else keeps
its bytes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import inf, isnan

from attrs import define, evolve

from llamaswap.config import durations
from llamaswap.wire.json_members import (
    LARGE,
    LONGEST_NAME,
    MEMBERS,
    PARTS,
    JsonContainer,
    JsonMember,
    added_member,
    json_text,
    split,
)
from llamaswap.wire.json_path import PathStep, parse_path
from llamaswap.wire.openai import encode

PAD_BOUND = 10_000  # the largest array that an index in a filter path may create; beyond it the path is a typing error
_FIRST_ITEM = re.compile(rb"\[[ \t\r\n]*([^ \t\r\n\]])")
SYSTEM_ROLES = (b'"system"', b'"developer"')
LONGEST_NUMBER = 400  # bytes of a number that is read; a longer one counts as infinite
KEEP_ALIVE = ("keepAlive", "keep_alive")
FOREVER = 1e9  # seconds: a longer time is for ever, because timers overflow somewhere


class EditError(Exception):
    """A path deletes by wildcard, has too large an index, or does not fit the body."""


class MalformedBodyError(EditError):
    """The body itself prevents the edit: it is cut off, has too many parts, or an array where the path has a name."""


@define
class JsonBody:
    """A JSON request body, split once and edited in place."""

    _source: bytes
    _top: JsonContainer
    _changed: bool = False

    @classmethod
    def parse(cls, data: bytes) -> JsonBody | None:
        """The body; None if it is not a JSON object (an array names no model) or has an absurd number of members."""
        top = split(data, MEMBERS)
        return cls(data, top) if top is not None and top.is_object else None

    def copy(self) -> JsonBody:
        """The same body, to be edited separately."""
        return JsonBody(self._source, evolve(self._top, members=list(map(evolve, self._top.members))), self._changed)

    @property
    def large(self) -> bool:
        """Whether an edit may take too long for the reactor's thread."""
        return len(self._source) > LARGE

    @property
    def size(self) -> int:
        """The bytes of the body as it was received."""
        return len(self._source)

    def _short(self, key: str) -> bytes | None:
        """The text of a top-level member's value, which is empty if it is too long; the first of several counts."""
        for member in self._top.members:
            if member.key == key:
                size = member.stop - member.start if member.new is None else len(member.new)
                return self._top.value(member) if size <= LONGEST_NAME else b""
        return None

    def scalar(self, key: str) -> str:
        """A top-level member as text: numbers and booleans as written; absent, null, objects and arrays are empty."""
        raw = self._short(key)
        if raw is None or raw == b"null" or raw[:1] in (b"{", b"["):
            return ""
        if raw[:1] == b'"':
            return json_text(raw) or ""
        return raw.decode("utf-8", "replace")

    def flag(self, key: str) -> bool:
        """A top-level member as a boolean: true, a number other than zero, or the string "true"."""
        raw = self._short(key)
        if raw is None or raw == b"false":
            return False
        text = self.scalar(key)
        if text.lower() == "true":
            return True
        if raw[:1] == b'"':
            return False
        try:
            return float(text) != 0
        except ValueError:
            return False

    def repeats(self, key: str) -> bool:
        """Whether several top-level members have this name: then each server may read another one of them."""
        return sum(member.key == key for member in self._top.members) > 1

    def raw(self, key: str) -> bytes | None:
        """The text of a top-level member's value, whatever it is; None if it is absent."""
        return next((self._top.value(member) for member in self._top.members if member.key == key), None)

    def set_raw(self, key: str, value: bytes) -> None:
        """Set a top-level member to a value that is text of JSON already."""
        self._changed = _set(self._top, (PathStep(key),), value) or self._changed

    @property
    def idle_time(self) -> float | None:
        """How many idle seconds the model is to be kept (infinity: for ever): LM Studio's `ttl`, or `keepAlive` or
        `keep_alive` as Ollama has it. None if the request does not say so."""
        for member in self._top.members:
            if member.key == "ttl":
                return self.seconds("ttl")
            if member.key in KEEP_ALIVE:
                return _keep_alive(self.scalar(member.key))
        return None

    def seconds(self, key: str) -> float | None:
        """A top-level member that is a number of seconds, infinity for ever; None if it is absent or anything else."""
        raw = self._short(key)
        try:
            seconds = float(raw) if raw is not None and raw[:1].isdigit() else -1.0
        except ValueError:
            return None
        return None if not seconds >= 0 else inf if seconds > FOREVER else seconds

    @property
    def model(self) -> str:
        """The model it names; empty if it names none."""
        for member in self._top.members:
            if member.key == "model":
                if member.new is None and member.stop - member.start <= LONGEST_NAME:
                    raw = self._source[member.start : member.stop]
                    if raw[:1] == b'"' and b"\\" not in raw:
                        return raw[1:-1].decode("utf-8", "replace")
                return self.scalar("model")
        return ""

    @property
    def streaming(self) -> bool:
        """Whether it asks for a stream."""
        for member in self._top.members:
            if member.key == "stream":
                return self.flag("stream")
        return False

    def set(self, path: str, value: object, if_absent: bool = False) -> None:
        """Set the member at `path`, with `if_absent` only if there is none. A value on the way that is not a container
        is replaced by one. Raises EditError."""
        steps = parse_path(path)
        if not (if_absent and _has(self._top, steps)):
            self._changed = _set(self._top, steps, encode(value)) or self._changed

    def set_model(self, name: str) -> None:
        """Name another model, in every `model` member, because a server may read the last of them."""
        self._changed = _set(self._top, (PathStep("model"),), encode(name)) or self._changed

    def delete(self, path: str) -> None:
        """Remove every member at `path`; there need not be one. Raises EditError for wildcards."""
        steps = parse_path(path)
        for step in steps:
            if step.glob is not None:
                raise EditError(f"wildcards cannot be deleted: {path}")
        self._changed = _delete(self._top, steps) or self._changed

    def add_system_prompt(self, text: str) -> None:
        """Begin `messages` with a system prompt, unless the client sent one. Raises EditError."""
        if any(member.key == "system" for member in self._top.members):  # where Anthropic's clients have it
            return
        for member in _targets(self._top, PathStep("messages")):
            inner = split_value(self._top.value(member))
            if inner is None or inner.is_object:
                continue
            first = split_value(inner.value(inner.members[0])) if inner.members else None
            roles = _targets(first, PathStep("role")) if first is not None else []
            if any(first is not None and first.value(role) in SYSTEM_ROLES for role in roles):
                continue
            inner.members.insert(0, added_member("", b"", encode({"role": "system", "content": text})))
            member.new = inner.render()
            self._changed = True

    def rename(self, path: str, new: str) -> None:
        """Move the last member at `path` to `new`, unless there is one, and remove every member at `path`."""
        found = _values(self._top, parse_path(path))
        self.delete(path)
        target = parse_path(new)
        if found and not _has(self._top, target):
            self._changed = _set(self._top, target, found[-1]) or self._changed

    def clamp(self, path: str, least: float | None, most: float | None) -> None:
        """Move every number at `path` into these bounds (None: no bound), also one that is written as a text."""
        self._changed = _clamp(self._top, parse_path(path), least, most) or self._changed

    def bound(self, key: str, limit: int) -> bool:
        """Lower top-level members to `limit`, also what is not a number from 0; returns whether there is one."""
        members = [member for member in self._top.members if member.key == key]
        for member in members:
            number = _number(self._top.value(member))
            if number is None or not 0 <= number <= limit:
                member.new, self._changed = encode(limit), True
        return bool(members)

    def largest(self, key: str) -> float:
        """The largest number among the top-level members of this name, 0 if there is none."""
        numbers = (_number(self._top.value(member)) for member in self._top.members if member.key == key)
        return max((number for number in numbers if number is not None and number > 0), default=0.0)

    def item_count(self, key: str, openings: bytes, most: int) -> int:
        """How many items a top-level array has, `most` + 1 if more; 1 unless each begins with one of these bytes."""
        raw = self.raw(key) or b""
        first = _FIRST_ITEM.match(raw)
        if first is None or first[1] not in openings:
            return 1
        array = split(raw, most)
        if array is None:
            return most + 1
        return len(array.members) if all(raw[member.start] in openings for member in array.members) else 1

    def render(self) -> bytes:
        """The body's bytes: the same object as long as nothing changed."""
        if self._changed:
            self._source, self._changed = self._top.render(), False
        return self._source

    def pieces(self) -> Sequence[bytes | memoryview]:
        """The body's bytes in parts, without a copy of the unchanged ones."""
        return self._top.pieces() if self._changed else (self._source,)


# -- paths -------------------------------------------------------------------------------------------------


def _targets(container: JsonContainer, step: PathStep) -> list[JsonMember]:
    """The members a step addresses."""
    if container.is_object:
        if step.glob is None:
            key = step.key
            return [member for member in container.members if member.key == key]
        return [member for member in container.members if step.glob.fullmatch(member.key)]
    if step.index is None or not 0 <= step.index < len(container.members):
        return []
    return [container.members[step.index]]


def _set(container: JsonContainer, steps: Sequence[PathStep], value: bytes) -> bool:
    step, rest = steps[0], steps[1:]
    targets = _targets(container, step)
    changed = False
    for member in targets:
        old = container.value(member)
        inner = split_value(old) if rest else None
        if not rest:
            new = value
        elif inner is not None:
            if not _set(inner, rest, value):
                continue
            new = inner.render()
        else:
            # The path asks for a container, which replaces a null, a number or a text on the way.
            new = _nested(rest, value)
        if new != old:
            member.new = new
            changed = True
    if not targets and step.glob is None:
        _append(container, step, _nested(rest, value))
        changed = True
    return changed


def _has(container: JsonContainer, steps: Sequence[PathStep]) -> bool:
    step, rest = steps[0], steps[1:]
    for member in _targets(container, step):
        inner = split_value(container.value(member)) if rest else None
        if not rest or (inner is not None and _has(inner, rest)):
            return True
    return False


def split_value(value: bytes) -> JsonContainer | None:
    inner = split(value, PARTS)
    if inner is None and value[:1] in (b"{", b"["):
        raise MalformedBodyError(f"an object or array has more than {PARTS} members")
    return inner


def _nested(steps: Sequence[PathStep], value: bytes) -> bytes:
    """The value inside new containers for the steps."""
    for step in reversed(steps):
        if step.index is None:
            value = b"{" + encode(step.key) + b":" + value + b"}"
        else:
            value = b"[" + b"null," * _bounded(max(step.index, 0)) + value + b"]"
    return value


def _append(container: JsonContainer, step: PathStep, value: bytes) -> None:
    if not container.whole:
        raise MalformedBodyError("the JSON document is cut off or malformed")
    if container.is_object:
        container.members.append(added_member(step.key, encode(step.key) + b":", value))
        return
    if step.index is None:
        raise MalformedBodyError(f"an array was sent where an object with {step.key!r} is needed")
    if step.index >= 0:
        missing = _bounded(step.index) - len(container.members)
        container.members.extend(added_member("", b"", b"null") for _ in range(missing))
    container.members.append(added_member("", b"", value))


def _bounded(index: int) -> int:
    if index > PAD_BOUND:
        raise EditError(f"array index {index} is larger than {PAD_BOUND}")
    return index


def _values(container: JsonContainer, steps: Sequence[PathStep]) -> list[bytes]:
    """The texts of all values at a path."""
    step, rest = steps[0], steps[1:]
    found: list[bytes] = []
    for member in _targets(container, step):
        value = container.value(member)
        inner = split_value(value) if rest else None
        found += [value] if not rest else [] if inner is None else _values(inner, rest)
    return found


def _clamp(container: JsonContainer, steps: Sequence[PathStep], least: float | None, most: float | None) -> bool:
    step, rest = steps[0], steps[1:]
    changed = False
    for member in _targets(container, step):
        value = container.value(member)
        inner = split_value(value) if rest else None
        if inner is not None and _clamp(inner, rest, least, most):
            member.new, changed = inner.render(), True
        elif not rest and (number := _number(value)) is not None:
            bound = (
                least if least is not None and number < least else most if most is not None and number > most else None
            )
            if bound is not None:
                member.new, changed = encode(int(bound) if bound == int(bound) else bound), True
    return changed


def _keep_alive(text: str) -> float | None:
    """A number of seconds or a duration; a negative one is for ever."""
    seconds = durations.parse(text)
    if seconds is None:
        seconds = _number(text.encode()[:LONGEST_NUMBER])
    if seconds is None or isnan(seconds):
        return None
    return inf if seconds < 0 or seconds > FOREVER else seconds


def _number(value: bytes) -> float | None:
    """The number that a value is or that its text says; None of anything else."""
    text = value.strip(b'"')
    if value[:1] == b'"' and len(value) <= LARGE and b"\\" in value:
        text = (json_text(value) or "").encode()
    if len(text) > LONGEST_NUMBER:
        return (-inf if text.startswith(b"-") else inf) if text.lstrip(b"-")[:1].isdigit() else None
    try:
        return float(text)
    except ValueError:
        return None


def _delete(container: JsonContainer, steps: Sequence[PathStep]) -> bool:
    step, rest = steps[0], steps[1:]
    targets = _targets(container, step)
    if not rest:
        for member in targets:
            container.members.remove(member)
        return bool(targets)
    changed = False
    for member in targets:
        inner = split_value(container.value(member))
        if inner is not None and _delete(inner, rest):
            member.new = inner.render()
            changed = True
    return changed
