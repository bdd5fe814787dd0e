"""Regular expressions of a configuration: RE2, which matches in linear time, the dialect files are written in."""

from __future__ import annotations

from typing import Any

import re2
from attrs import field, frozen


class PatternError(ValueError):
    """The text is no RE2 expression; `str()` says what is wrong."""


def _quiet() -> Any:
    options = re2.Options()
    options.log_errors = False  # it would print to stderr, and we raise
    return options


@frozen
class PathPattern:
    """A compiled expression; equal to another of the same text."""

    text: str
    _compiled: Any = field(eq=False, repr=False)

    @classmethod
    def compile(cls, text: str) -> PathPattern:
        """Raises PatternError."""
        try:
            return cls(text, re2.compile(text, _quiet()))
        except (re2.error, UnicodeError) as error:
            reason = error.args[0] if error.args else error
            raise PatternError(reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason))

    def search(self, path: str) -> bool:
        """Does the expression match anywhere in `path`?"""
        try:
            return self._compiled.search(path) is not None
        except UnicodeError:  # lone surrogates cannot be told to the C++ side
            return False
