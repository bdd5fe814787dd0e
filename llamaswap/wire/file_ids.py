"""The files that a JSON body names: `file_id` and `file_ids`, at any depth, in the APIs of OpenAI and Anthropic."""

from __future__ import annotations

import re
from collections.abc import Iterator

from llamaswap.errors import BadRequest
from llamaswap.wire.json_members import after_space, json_text

MAX_IDS = 10_000  # names and values in one body: a short body is searched in the reactor thread, and each costs time


def _letter(lower: int) -> bytes:
    # A server reads an escaped letter as the letter, and one in Go ignores the case.
    return rb"(?:%c|\\u00(?:%02x|%02x))" % (lower, lower, lower ^ 0x20)


_LETTERS = b"".join(map(_letter, b"file_id"))
_KEY = re.compile(rb'(?i)"%b(?:%b|\xc5\xbf|\\u017f)?"' % (_LETTERS, _letter(ord("s"))))  # a long s: in Go an s too
_LONGEST_KEY = 60  # bytes, with every letter escaped
_WINDOW = 1 << 18  # bytes searched at once, some milliseconds if they are all quotation marks: other threads wait
_ITEM = re.compile(rb'"(?:[^"\\]|\\.){0,1600}"|[^ \t\r\n,\]}"\[{]{1,200}', re.DOTALL)  # no ID is longer


def file_ids(text: bytes) -> Iterator[str]:
    """The IDs of files that a JSON text names, those in members of the same name included, and "" for what is none.

    Raises BadRequest if there are too many."""
    for number, identity in enumerate(_named(text)):
        if number == MAX_IDS:
            raise BadRequest(f"the body has more than {MAX_IDS} values of file_id and file_ids; name fewer files")
        yield identity


def _named(text: bytes) -> Iterator[str]:
    for begin in range(0, len(text), _WINDOW):
        for found in _KEY.finditer(text, begin, begin + _WINDOW + _LONGEST_KEY):
            yield ""
            colon = _after_all_space(text, found.end())
            if text[colon : colon + 1] == b":":
                yield from _values(text, _after_all_space(text, colon + 1))


def _values(text: bytes, start: int) -> Iterator[str]:
    """The text at `start`, or the texts of the array that begins there; "" for a value of another type."""
    is_array = text[start : start + 1] == b"["
    position = _after_all_space(text, start + 1) if is_array else start
    while (item := _ITEM.match(text, position)) is not None:
        yield json_text(item[0]) or "" if item[0].startswith(b'"') else ""
        after = _after_all_space(text, item.end())
        if not is_array or text[after : after + 1] != b",":
            return
        position = _after_all_space(text, after + 1)


def _after_all_space(text: bytes, position: int) -> int:
    while (after := after_space(text, position)) > position:
        position = after
    return position
