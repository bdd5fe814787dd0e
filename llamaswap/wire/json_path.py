"""Paths into a JSON document, as the configuration writes them."""

from __future__ import annotations

import re
from functools import lru_cache

from attrs import field, frozen


@frozen
class PathStep:
    """One component of a path. `index` is set if it can address an array, `glob` if it matches several keys."""

    key: str
    index: int | None = None
    glob: re.Pattern[str] | None = field(default=None, eq=False)


@lru_cache(maxsize=1024)  # filters use the same few paths for every request
def parse_path(path: str) -> tuple[PathStep, ...]:
    """The components of `a.b.0`. A backslash escapes the next character; a leading colon makes a number a key."""
    steps: list[PathStep] = []
    key: list[str] = []
    pattern: list[str] = []
    wild = forced = escaped = False

    def finish() -> None:
        text = "".join(key)
        index = None if forced or not (text.isascii() and (text.isdigit() or text == "-1")) else int(text)
        glob = re.compile("".join(pattern), re.DOTALL) if wild else None
        steps.append(PathStep(text, index, glob))

    for character in path:
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = True
            continue
        elif character == ".":
            finish()
            key, pattern, wild, forced = [], [], False, False
            continue
        elif character == ":" and not key and not forced:
            forced = True
            continue
        elif character in "*?":
            wild = True
            key.append(character)
            pattern.append(".*" if character == "*" else ".")
            continue
        key.append(character)
        pattern.append(re.escape(character))
    finish()
    return tuple(steps)
