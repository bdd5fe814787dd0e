"""Regular expressions of a configuration, in the syntax of RE2, which matches in linear time."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from attrs import frozen


class PatternError(ValueError):
    """The text is not an RE2 expression; `str()` says why."""


@lru_cache(maxsize=256)
def _compiled(text: str) -> Any:
    import re2  # here, because it takes 2.6 MB and most configurations never match an expression

    options = re2.Options()
    options.log_errors = False  # else it prints to stderr as well
    try:
        return re2.compile(text, options)
    except (re2.error, UnicodeError) as error:
        reason = error.args[0] if error.args else error
        raise PatternError(reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason))


@frozen
class PathPattern:
    """A valid expression, compiled by its first use; equal to another with the same text."""

    text: str

    @classmethod
    def compile(cls, text: str) -> PathPattern:
        """A pattern of this text. Raises PatternError."""
        _compiled(text)
        return cls(text)

    def search(self, path: str) -> bool:
        """Whether the expression matches anywhere in `path`."""
        try:
            return _compiled(self.text).search(path) is not None
        except UnicodeError:  # the C++ library cannot take lone surrogates
            return False
