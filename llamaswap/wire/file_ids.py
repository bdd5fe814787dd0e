"""The files that a JSON body names: `file_id` and `file_ids`, at any depth, in the APIs of OpenAI and Anthropic."""

from __future__ import annotations

import re
from collections.abc import Iterator

from llamaswap.wire.json_members import after_space, json_text

# A server reads an escaped letter as the letter.
_LETTERS = b"".join(rb"(?:%c|\\u00(?i:%02x))" % (letter, letter) for letter in b"file_id")
_KEY = re.compile(rb'"%b(?:s|\\u0073)?"' % _LETTERS)
_LONGEST_KEY = 60  # bytes, with every letter escaped
_WINDOW = 1 << 18  # bytes searched at once, some milliseconds if they are all quotation marks: other threads wait
_ITEM = re.compile(rb'"(?:[^"\\]|\\.){0,1600}"|[^ \t\r\n,\]}"\[{]{1,200}', re.DOTALL)  # no ID is longer


def file_ids(text: bytes) -> Iterator[str]:
    """The IDs of files that a JSON text names, those in members of the same name included."""
    for begin in range(0, len(text), _WINDOW):
        for found in _KEY.finditer(text, begin, begin + _WINDOW + _LONGEST_KEY):
            colon = _after_all_space(text, found.end())
            if text[colon : colon + 1] == b":":
                yield from _strings(text, _after_all_space(text, colon + 1))


def _strings(text: bytes, start: int) -> Iterator[str]:
    """The text at `start`, or the texts of the array that begins there."""
    is_array = text[start : start + 1] == b"["
    position = _after_all_space(text, start + 1) if is_array else start
    while (item := _ITEM.match(text, position)) is not None:
        if item[0].startswith(b'"'):
            yield json_text(item[0]) or ""
        after = _after_all_space(text, item.end())
        if not is_array or text[after : after + 1] != b",":
            return
        position = _after_all_space(text, after + 1)


def _after_all_space(text: bytes, position: int) -> int:
    while (after := after_space(text, position)) > position:
        position = after
    return position
