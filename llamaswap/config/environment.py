"""${env.NAME}: variables of the environment, put into a file before it is parsed as YAML."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping

from llamaswap.config.diagnostics import Diagnostics, fail
from llamaswap.config.nodes import SourceLocation

PLACEHOLDER = re.compile(r"\$\{env\.([A-Za-z_][A-Za-z0-9_]*)\}")
MAX_TEXT = 32 * 1024 * 1024  # characters; a longer file is a mistake, and would be in memory several times


class Unexpanded(Mapping[str, str]):
    """An environment in which each variable is another number, to parse a text without the real values.

    The problems of such a text reveal neither a value nor whether a variable is set.
    """

    FIRST = 10001

    def __init__(self) -> None:
        self._numbers: dict[str, str] = {}

    def __getitem__(self, name: str) -> str:
        return self._numbers.setdefault(name, str(self.FIRST + len(self._numbers)))

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)


def names_in(text: str) -> frozenset[str]:
    return frozenset(PLACEHOLDER.findall(text))


def substitute(text: str, file: str, environ: Mapping[str, str], required: Callable[[str], Collection[str]]) -> str:
    """Replace every placeholder, twice, because a value may contain one.

    `required(text)` returns the names that are replaced: those outside YAML comments. Raises ConfigError for a name
    that is not set or whose value would break the line.
    """
    for _ in range(2):
        if "${env." not in text:
            break
        text = _once(text, file, environ, frozenset(required(text)))
    return text


def _once(text: str, file: str, environ: Mapping[str, str], names: frozenset[str]) -> str:
    report = Diagnostics()
    values: dict[str, str] = {}
    for name in sorted(names):
        value = environ.get(name)
        at = SourceLocation(file, _line_of(text, name))
        if value is None:
            report.error(f"environment variable {name} is not set", at=at, hint=f"export {name}, or remove it here")
        elif any(char in value for char in "\n\r\0"):
            report.error(
                f"the value of environment variable {name} contains newlines or null bytes, which would break the file",
                at=at,
            )
        else:
            values[name] = value.replace("\\", "\\\\").replace('"', '\\"')
    report.raise_if_errors()
    grown = sum(len(values.get(name, "")) for name in PLACEHOLDER.findall(text))
    if grown > MAX_TEXT:
        raise fail(f"environment variables make the file longer than {MAX_TEXT} characters", at=SourceLocation(file))
    return PLACEHOLDER.sub(lambda match: values.get(match.group(1), match.group(0)), text)


def _line_of(text: str, name: str) -> int:
    return text.count("\n", 0, max(text.find("${env." + name + "}"), 0)) + 1
