"""${env.NAME}: variables of the environment, put into a file before it is parsed as YAML."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from itertools import count

from llamaswap.config.diagnostics import Diagnostics, fail
from llamaswap.config.nodes import SourceLocation

PLACEHOLDER = re.compile(r"\$\{env\.([A-Za-z_][A-Za-z0-9_]*)\}")
MAX_TEXT = 32 * 1024 * 1024  # characters; a longer file is a mistake, and would be in memory several times


def unexpanded() -> Mapping[str, str]:
    """An environment in which each variable is another number, to parse a text without the real values.

    The problems of such a text reveal neither a value nor whether a variable is set.
    """
    numbers = count(10001)
    return defaultdict(lambda: str(next(numbers)))


def names_in(text: str) -> frozenset[str]:
    return frozenset(PLACEHOLDER.findall(text))


def substitute(text: str, file: str, environ: Mapping[str, str], names: Collection[str]) -> str:
    """Replace the placeholders with these names.

    Raises ConfigError for a name that is not set or whose value would break the line.
    """
    report = Diagnostics()
    values: dict[str, str] = {}
    for name in sorted(names):
        at = SourceLocation(file, _line_of(text, name))
        try:
            value = environ[name]
        except KeyError:
            report.error(f"environment variable {name} is not set", at=at, hint=f"export {name}, or remove it here")
            continue
        if any(char in value for char in "\n\r\0"):
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
