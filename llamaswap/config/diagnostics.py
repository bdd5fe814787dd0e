"""Collects the problems of a configuration, so that one load reports all that a stage finds, not only the first."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from difflib import SequenceMatcher, get_close_matches

from attrs import Factory, define, evolve

from llamaswap.config.nodes import NOWHERE, MappingNode, Node, SourceLocation, locate
from llamaswap.errors import ConfigError, Problem

MAX_REPORTED = 50  # problems that are reported one by one; the others are counted


@define
class Diagnostics:
    """Errors and warnings of one load. A problem without a location gets that of its `path` in the document `root`.

    With `collect_all` later stages run in spite of errors. Their errors at a path that an earlier stage refused are
    left out, because they follow from that.
    """

    collect_all: bool = False
    root: MappingNode | None = None
    errors: list[Problem] = Factory(list)
    warnings: list[Problem] = Factory(list)
    _refused: set[str] = Factory(set)

    def error(self, message: str, path: str = "", at: Node | SourceLocation | None = None, hint: str = "") -> None:
        if not path or path not in self._refused:
            self.errors.append(_problem(message, path, at, hint))

    def warn(self, message: str, path: str = "", at: Node | SourceLocation | None = None, hint: str = "") -> None:
        self.warnings.append(_problem(message, path, at, hint))

    def raise_if_errors(self) -> None:
        """Raise ConfigError after errors, unless all are collected: later stages rely on earlier ones' checks."""
        if not self.collect_all:
            self.finish()
        self._refused.update(problem.path for problem in self.errors)

    def finish(self) -> None:
        """Raise ConfigError after errors; each error is reported once."""
        if self.errors:
            raise ConfigError(self._reported(list(dict.fromkeys(self.errors)), "problems"), self.reported_warnings())

    def reported_warnings(self) -> tuple[Problem, ...]:
        return tuple(self._reported(self.warnings, "warnings"))

    def _reported(self, problems: Sequence[Problem], noun: str) -> list[Problem]:
        reported = [located(problem, self.root) for problem in problems[:MAX_REPORTED]]
        if len(problems) > MAX_REPORTED:
            reported.append(Problem(f"and {len(problems) - MAX_REPORTED} more {noun}"))
        return reported


def located(problem: Problem, root: MappingNode | None) -> Problem:
    """The problem with the location of its path in the document `root`, if it has none."""
    if root is None or not problem.path or problem.file is not None:
        return problem
    location = locate(root, problem.path)
    return evolve(problem, file=location.file, line=location.line)


def _problem(message: str, path: str, at: Node | SourceLocation | None, hint: str) -> Problem:
    location = NOWHERE if at is None else at if isinstance(at, SourceLocation) else at.place
    return Problem(message, path, location.file, location.line, hint)


def fail(message: str, path: str = "", at: Node | SourceLocation | None = None, hint: str = "") -> ConfigError:
    """A ConfigError of one problem, to raise if nothing more can be checked."""
    return ConfigError([_problem(message, path, at, hint)])


def nearest(name: str, known: Collection[str]) -> str | None:
    """The known word that a mistyped one most likely means."""
    folded = {word.lower().replace("_", "").replace("-", ""): word for word in known}
    typed = name[:80].lower().replace("_", "").replace("-", "")
    close = get_close_matches(typed, folded, n=5, cutoff=0.6)
    # By shared letters alone the best is often a longer word that happens to contain them all.
    return folded[max(close, key=lambda word: _likeness(typed, word))] if close else None


def _likeness(typed: str, meant: str) -> float:
    return SequenceMatcher(None, typed, meant).ratio() - 0.1 * abs(len(typed) - len(meant))


def did_you_mean(name: str, known: Collection[str]) -> str:
    """A hint with the nearest known word, "" if none is near."""
    close = nearest(name, known)
    return f"did you mean `{close}`?" if close is not None else ""
