"""Regular expressions of a configuration: RE2, which matches in linear time, the dialect files are written in."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from attrs import frozen


class PatternError(ValueError):
    """The text is no RE2 expression; `str()` says what is wrong."""


@lru_cache(maxsize=256)
def _compiled(text: str) -> Any:
    import re2  # 2.6 MB: the usual configuration has no expression of its own, and the built-in one is rarely asked

    options = re2.Options()
    options.log_errors = False  # it would print to stderr, and we raise
    try:
        return re2.compile(text, options)
    except (re2.error, UnicodeError) as error:
        reason = error.args[0] if error.args else error
        raise PatternError(reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason))


@frozen
class PathPattern:
    """An expression known as good, compiled when it is first used; equal to another of the same text."""

    text: str

    @classmethod
    def compile(cls, text: str) -> PathPattern:
        """Raises PatternError."""
        _compiled(text)
        return cls(text)

    def search(self, path: str) -> bool:
        """Does the expression match anywhere in `path`?"""
        try:
            return _compiled(self.text).search(path) is not None
        except UnicodeError:  # lone surrogates cannot be told to the C++ side
            return False
