"""The one configuration file as an editor sees it: read, checked as the loader would, replaced in one step."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from attrs import define, evolve
from twisted.logger import Logger

from llamaswap.config import Config, ConfigText, diff, load
from llamaswap.config.environment import Unexpanded, names_in
from llamaswap.config.ports import keep
from llamaswap.config.private_files import create
from llamaswap.errors import ConfigError, Problem
from llamaswap.web.config_api import CheckedConfig
from llamaswap.web.config_history import ConfigHistory, ConfigVersion, VersionAuthor
from llamaswap.web.secret_masking import MASK, SHORTEST_SECRET

log = Logger()

UNEXPANDED = Problem(
    "environment variables are not expanded without --allow-config-edit: each counts as a number here, and a model "
    "that uses one as changed"
)


def _hiding(values: Sequence[str]) -> Callable[[str], str]:
    """Takes these values out of a text, in whatever case the loader repeats them."""
    long = sorted((value for value in values if len(value) >= SHORTEST_SECRET), key=len, reverse=True)
    if not long:
        return lambda text: text
    pattern = re.compile("|".join(map(re.escape, long)), re.IGNORECASE)
    return lambda text: pattern.sub(MASK, text)


def _without(hide: Callable[[str], str], problem: Problem) -> Problem:
    return evolve(problem, message=hide(problem.message), path=hide(problem.path), hint=hide(problem.hint))


@define(eq=False)
class ConfigFile:
    """`path` None: the configuration comes from a folder or from nowhere, and is only shown as far as `sources` reads.

    `sources` gives the texts in force on disk, `others` those that are loaded beside the file; `reload` has the
    files loaded again. `allowed` is the operator's word, `wall` gives unix seconds.
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
        """Whether PUT may do anything."""
        return self.allowed and self.path is not None

    def read(self) -> str:
        """The file's text; of several files, all of them as YAML documents with their names."""
        if self.path is not None:
            return self.path.read_text(encoding="utf-8")
        return "---\n".join(f"# {source.path}\n{source.text.rstrip()}\n" for source in self.sources())

    def check(self, text: str) -> CheckedConfig:
        """What the loader says of the text, and what it would touch; ConfigError where it refuses it.

        The text may name any variable of the environment. Without edit rights none is expanded; with them their
        values are hidden in what is said, since it goes to whoever has a key.
        """
        if not self.editable:
            return self._checked(text, Unexpanded(), (UNEXPANDED,) if names_in(text) else ())
        hide = _hiding([self.environ.get(name, "") for name in names_in(text)])
        try:
            checked = self._checked(text, self.environ)
        except ConfigError as error:
            raise ConfigError([_without(hide, problem) for problem in error.problems]) from None
        return CheckedConfig(
            [_without(hide, problem) for problem in checked.warnings],
            *(tuple(map(hide, names)) for names in (checked.added, checked.removed, checked.restarted)),
        )

    def _checked(self, text: str, environ: Mapping[str, str], notes: Sequence[Problem] = ()) -> CheckedConfig:
        name = "config" if self.path is None else str(self.path)
        # The files of a folder beside the one edited take part in the whole, so they do in the check.
        others = [source for source in self.sources() if source.path != name] if self.path is not None else []
        loaded = load([ConfigText(name, text), *others], environ)
        old = self.config()
        plan = diff(old, keep(old, loaded.config))
        return CheckedConfig([*notes, *loaded.warnings], plan.added, plan.removed, plan.restarted)

    def write(self, text: str, author: VersionAuthor, restored: str = "") -> None:
        """Replace the file in one step and load it; what was in it is kept, as the `.bak` beside it too."""
        path = self.path
        if path is None:
            raise FileNotFoundError("there is no single configuration file")
        # Through a symlink the file it points to is replaced, not the link.
        target = path.resolve()
        like = target.stat()
        backup, fresh = (target.with_name(target.name + suffix) for suffix in (".bak", ".new"))
        earlier, old, new = ConfigHistory(target, self.wall), target.read_bytes(), text.encode()
        # A text that nobody saved here: an operator's own, so it must not be lost by an edit of the page's.
        earlier.keep(old, like, "found")
        for place, content in ((backup, old), (fresh, new)):
            create(place, content, like, sync=True)
        os.replace(fresh, target)
        try:
            earlier.keep(new, like, "restored" if restored else "saved", author, restored)
        except OSError as error:  # the file is written all the same, and what was in it before is kept
            log.error("no version could be kept of the new configuration: {error}", error=error)
        self.reload()

    def versions(self) -> Sequence[ConfigVersion]:
        """The texts that were in the file, newest first."""
        return self._versions().beside(self.path.read_bytes()) if self.path is not None else ()

    def version(self, identity: str) -> str | None:
        """One of these texts."""
        content = self._versions().read(identity) if self.path is not None else None
        return None if content is None else content.decode("utf-8", "replace")

    def _versions(self) -> ConfigHistory:
        assert self.path is not None
        return ConfigHistory(self.path.resolve(), self.wall)
