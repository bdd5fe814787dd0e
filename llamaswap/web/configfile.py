"""The configuration file as an editor needs it: read, checked as the loader does, and replaced in one step."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from attrs import define, evolve, frozen
from twisted.logger import Logger

from llamaswap.config import Config, ConfigText, diff, load
from llamaswap.config.environment import names_in, unexpanded
from llamaswap.config.ports import keep
from llamaswap.config.private_files import create
from llamaswap.discover.missing import findings
from llamaswap.errors import ConfigError, Problem
from llamaswap.web.config_history import ConfigHistory, VersionEntry, VersionSource
from llamaswap.web.secret_masking import MASK, SHORTEST_SECRET

log = Logger()

UNEXPANDED = Problem(
    "environment variables are not expanded without --allow-config-edit: each counts as a number here, and a model "
    "that uses one as changed"
)


@frozen
class ProblemDocument:
    """A mistake in a configuration."""

    message: str
    path: str
    file: str | None
    line: int | None
    col: int | None
    hint: str

    @classmethod
    def of(cls, problem: Problem) -> ProblemDocument:
        """The problem as a document."""
        return cls(problem.message, problem.path, problem.file, problem.line, None, problem.hint)


@frozen
class ImpactModels:
    """The models that a text would change."""

    restart: list[str]
    add: list[str]
    remove: list[str]


@frozen
class Impact:
    """The effect of a text that can be used."""

    warnings: list[ProblemDocument]
    impact: ImpactModels


def _hiding(values: Sequence[str]) -> Callable[[str], str]:
    """A function that masks these values in a text, in upper or lower case, as the loader may repeat them."""
    long = sorted((value for value in values if len(value) >= SHORTEST_SECRET), key=len, reverse=True)
    if not long:
        return lambda text: text
    pattern = re.compile("|".join(map(re.escape, long)), re.IGNORECASE)
    return lambda text: pattern.sub(MASK, text)


def _without(hide: Callable[[str], str], problem: Problem) -> Problem:
    return evolve(problem, message=hide(problem.message), path=hide(problem.path), hint=hide(problem.hint))


@define(eq=False)
class ConfigFile:
    """The files behind the configuration in force.

    `path` None: the configuration does not come from one file, so it is only shown. `sources` gives the texts on disk,
    `reload` loads the files again, `allowed` says whether the operator allows edits, and `wall` gives unix seconds.
    """

    path: Path | None
    environ: Mapping[str, str]
    config: Callable[[], Config]
    sources: Callable[[], list[ConfigText]]
    reload: Callable[[], object]
    allowed: bool = False
    wall: Callable[[], float] = time.time

    @property
    def editable(self) -> bool:
        """Whether the configuration is one file and the operator allows edits."""
        return self.allowed and self.path is not None

    def read(self) -> str:
        """The file's text; of several files, all of them as YAML documents with their names."""
        if self.path is not None:
            return self.path.read_text(encoding="utf-8")
        return "---\n".join(f"# {source.path}\n{source.text.rstrip()}\n" for source in self.sources())

    def check(self, text: str, *, find_missing: bool = True) -> Impact:
        """The effect of the text; ConfigError if the loader refuses it.

        The text may name any variable of the environment. If edits are not allowed, no variable is expanded and no file
        looked for; otherwise the variables' values are masked in the messages, because every client with a key can read
        these. Without `find_missing` no file is looked for: the client may not edit, and could ask which files exist.
        """
        variables = names_in(text)
        if not self.editable:
            return self._impact(text, unexpanded(), str, False, (UNEXPANDED,) if variables else ())
        hide = _hiding([self.environ.get(name, "") for name in variables])
        try:
            return self._impact(text, self.environ, hide, find_missing)
        except ConfigError as error:
            raise ConfigError([_without(hide, problem) for problem in error.problems]) from None

    def _impact(
        self,
        text: str,
        environ: Mapping[str, str],
        hide: Callable[[str], str],
        find_missing: bool,
        notes: Sequence[Problem] = (),
    ) -> Impact:
        name = "config" if self.path is None else str(self.path)
        # The other files of the configuration are loaded together with the edited one.
        others = [source for source in self.sources() if source.path != name] if self.path is not None else []
        loaded = load([ConfigText(name, text), *others], environ)
        old = self.config()
        plan = diff(old, keep(old, loaded.config))
        changed = [loaded.config.models[name] for name in (*plan.restarted, *plan.added)]
        missing = map(Problem, findings(changed) if find_missing else ())
        warnings = [ProblemDocument.of(_without(hide, problem)) for problem in (*notes, *loaded.warnings, *missing)]
        models = ImpactModels(*(list(map(hide, names)) for names in (plan.restarted, plan.added, plan.removed)))
        return Impact(warnings, models)

    def write(self, text: str, source: VersionSource) -> None:
        """Replace the file in one step and load it; its old text is kept in the history and as the `.bak` beside it,
        unless it was empty."""
        assert self.path is not None
        # Through a symlink the file it points to is replaced, not the link.
        target = self.path.resolve()
        like = target.stat()
        backup, fresh = (target.with_name(target.name + suffix) for suffix in (".bak", ".new"))
        earlier, old, new = ConfigHistory(target, self.wall), target.read_bytes(), text.encode()
        # The operator may have written this text by hand, so an edit over HTTP must not lose it.
        if old:
            earlier.keep(old, like, VersionSource("found"))
            create(backup, old, like, sync=True)
        create(fresh, new, like, sync=True)
        os.replace(fresh, target)
        try:
            earlier.keep(new, like, source)
        except OSError as error:  # the file is written, and its old text is kept
            log.error("the new configuration is used, but not in the history: {error}", error=error)
        self.reload()

    def versions(self) -> Sequence[VersionEntry]:
        """The texts that were in the file, newest first."""
        return self._versions().beside(self.path.read_bytes()) if self.path is not None else ()

    def version(self, identity: str) -> str | None:
        """One of these texts."""
        content = self._versions().read(identity) if self.path is not None else None
        return None if content is None else content.decode("utf-8", "replace")

    def _versions(self) -> ConfigHistory:
        assert self.path is not None
        return ConfigHistory(self.path.resolve(), self.wall)
