"""Command text to an argument list, without a shell: comments, continued lines, POSIX quotes."""

from __future__ import annotations

from collections.abc import Iterator


class EmptyCommand(ValueError):
    """Nothing is left to run once comments and blanks are gone."""

    def __str__(self) -> str:
        return "empty command"


def strip_comments(text: str) -> str:
    """The text without lines that begin with #; all other lines stay as they are."""
    if "#" not in text:
        return text
    return "\n".join(line for line in text.split("\n") if not line.strip().startswith("#"))


def split(text: str) -> list[str]:
    """The arguments of a `cmd` (macros already expanded). Raises EmptyCommand."""
    lines = [_open_ended(line) for line in strip_comments(text).split("\n")]
    found = list(_words("\n".join(lines)))
    if not found:
        raise EmptyCommand
    return found


def render_stop(text: str, pid: int) -> list[str]:
    """The arguments of a `cmdStop` for the server with this process ID. Raises EmptyCommand."""
    return split(text.replace("${PID}", str(pid)))


def _open_ended(line: str) -> str:
    """A backslash at a line's end separates, as the line break itself does."""
    trimmed = line.strip()
    return trimmed[:-1] + " " if trimmed.endswith("\\") else line


def _words(text: str) -> Iterator[str]:
    word: list[str] | None = None
    quote = ""
    at = 0
    while at < len(text):
        char = text[at]
        at += 1
        if quote == "'":
            if char == "'":
                quote = ""
            else:
                word = _append(word, char)
        elif char == "\\":
            follower = text[at : at + 1]
            at += 1
            if follower == "\n" or (not follower and not quote):
                continue
            if quote and follower not in ("$", "`", '"', "\\"):
                word = _append(word, char)
            word = _append(word, follower)
        elif quote:
            if char == quote:
                quote = ""
            else:
                word = _append(word, char)
        elif char in "'\"":
            quote = char
            word = _append(word, "")
        elif char in " \t\n":
            if word is not None:
                yield "".join(word)
            word = None
        else:
            word = _append(word, char)
    if word is not None:
        yield "".join(word)


def _append(word: list[str] | None, piece: str) -> list[str]:
    word = [] if word is None else word
    word.append(piece)
    return word
