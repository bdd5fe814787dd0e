"""Collecting what is wrong, so that one load tells everything a stage found and not only the first of it."""

from __future__ import annotations

from collections.abc import Collection
from difflib import SequenceMatcher, get_close_matches

from attrs import Factory, define

from llamaswap.config.nodes import NOWHERE, Node, SourceLocation
from llamaswap.errors import ConfigError, Problem

MOST_TOLD = 50  # beyond that nobody reads on; a count says the rest


@define
class Diagnostics:
    """Errors and warnings of one load. A `patient` one lets later stages look as well, for what they can find: what
    they say of a place that an earlier one refused comes of that, and is left out."""

    patient: bool = False
    errors: list[Problem] = Factory(list)
    warnings: list[Problem] = Factory(list)
    _refused: set[str] = Factory(set)

    def error(self, message: str, path: str = "", at: Node | SourceLocation | None = None, hint: str = "") -> None:
        if path and path in self._refused:
            return
        self.errors.append(_problem(message, path, at, hint))

    def warn(self, message: str, path: str = "", at: Node | SourceLocation | None = None, hint: str = "") -> None:
        self.warnings.append(_problem(message, path, at, hint))

    def settle(self) -> None:
        """Raise ConfigError if anything is wrong so far: later stages build on what earlier ones checked."""
        if not self.patient:
            self.end()
        self._refused.update(problem.path for problem in self.errors)

    def end(self) -> None:
        """Raise ConfigError if anything is wrong; each thing is told once."""
        if not self.errors:
            return
        self.errors = list(dict.fromkeys(self.errors))
        told = self.errors[:MOST_TOLD]
        if len(self.errors) > MOST_TOLD:
            told.append(Problem(f"and {len(self.errors) - MOST_TOLD} more problems"))
        raise ConfigError(told, self.told_warnings())

    def told_warnings(self) -> tuple[Problem, ...]:
        if len(self.warnings) <= MOST_TOLD:
            return tuple(self.warnings)
        rest = Problem(f"and {len(self.warnings) - MOST_TOLD} more warnings")
        return (*self.warnings[:MOST_TOLD], rest)


def _problem(message: str, path: str, at: Node | SourceLocation | None, hint: str) -> Problem:
    place = NOWHERE if at is None else at if isinstance(at, SourceLocation) else at.place
    return Problem(message, path, place.file, place.line, hint)


def fail(message: str, path: str = "", at: Node | SourceLocation | None = None, hint: str = "") -> ConfigError:
    """A ConfigError of one problem, to raise where nothing more can be found out."""
    return ConfigError([_problem(message, path, at, hint)])


def nearest(name: str, known: Collection[str]) -> str | None:
    """The known word a mistyped one most likely means."""
    folded = {word.lower().replace("_", "").replace("-", ""): word for word in known}
    typed = name[:80].lower().replace("_", "").replace("-", "")
    close = get_close_matches(typed, folded, n=5, cutoff=0.6)
    # By shared letters alone the best is often a longer word that happens to hold them all.
    return folded[max(close, key=lambda word: _likeness(typed, word))] if close else None


def _likeness(typed: str, meant: str) -> float:
    return SequenceMatcher(None, typed, meant).ratio() - 0.1 * abs(len(typed) - len(meant))


def did_you_mean(name: str, known: Collection[str]) -> str:
    """A hint with the nearest known word, "" where none is near."""
    close = nearest(name, known)
    return f"did you mean `{close}`?" if close is not None else ""
