"""Command text to an argument list, without a shell: comments, continued lines, POSIX quotes."""

from __future__ import annotations

import re
from collections.abc import Iterator

from attrs import frozen

_PIECE = re.compile(
    r"""'(?P<single>[^']*)'?
      | "(?P<double>(?:[^"\\]|\\.)*)(?:"|\\?\Z)
      | \\(?P<escaped>.?)
      | (?P<blank>[ \t\n]+)
      | (?P<plain>[^'"\\ \t\n]+)""",
    re.DOTALL | re.VERBOSE,
)
_ESCAPE_IN_QUOTES = re.compile(r'\\(?:\n|([$`"\\]))')


class EmptyCommand(ValueError):
    """The command has no words besides comments and blanks."""

    def __str__(self) -> str:
        return "empty command"


@frozen
class Word:
    """An argument, whether a part of it was quoted, and whether a quote in it was not closed."""

    text: str
    quoted: bool
    unclosed: bool = False


def strip_comments(text: str) -> str:
    """The text without lines that begin with #; all other lines are unchanged."""
    if "#" not in text:
        return text
    return "\n".join(line for line in text.split("\n") if not line.strip().startswith("#"))


def split(text: str) -> list[str]:
    """The arguments of a `cmd` (macros already expanded). Raises EmptyCommand."""
    found = [word.text for word in words(text)]
    if not found:
        raise EmptyCommand
    return found


def render_stop(text: str, pid: int) -> list[str]:
    """The arguments of a `cmdStop` for the server with this process ID. Raises EmptyCommand."""
    return split(text.replace("${PID}", str(pid)))


def words(text: str) -> Iterator[Word]:
    """The arguments of a command. A quote that is not closed ends with the text."""
    word: str | None = None
    quoted = unclosed = False
    for piece in _PIECE.finditer("\n".join(map(_continued, strip_comments(text).split("\n")))):
        kind = piece.lastgroup or ""
        part = piece[kind]
        if kind == "blank":
            if word is not None:
                yield Word(word, quoted)
            word, quoted = None, False
        elif kind != "escaped" or part not in ("", "\n"):
            word = (word or "") + (_ESCAPE_IN_QUOTES.sub(r"\1", part) if kind == "double" else part)
            quoted = quoted or kind != "plain"
            unclosed = kind in ("single", "double") and len(piece[0]) < len(part) + 2
    if word is not None:
        yield Word(word, quoted, unclosed)


def _continued(line: str) -> str:
    """A backslash at a line's end separates words, as the line break does."""
    trimmed = line.strip()
    return trimmed[:-1] + " " if trimmed.endswith("\\") else line
