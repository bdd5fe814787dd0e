"""Launches the children of all models, with one session leader waiting ahead of need."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Protocol

from attrs import define, field
from twisted.internet.interfaces import IDelayedCall, IReactorProcess, IReactorTime
from twisted.logger import Logger

from llamaswap.servers import procfs, sessionleader
from llamaswap.servers.environment import server_environment
from llamaswap.servers.procfs import MARK
from llamaswap.servers.server_snapshot import Adopted
from llamaswap.servers.spawn import Child, ChildRecord, Kernel

SPARE_DELAY = 1.0  # seconds before the next session leader starts: the model of this one begins to load now

_log = Logger()


class ChildWatcher(Protocol):
    """Keeps a record of the servers, so that they can be ended when this process no longer can."""

    def started(self, record: ChildRecord) -> None: ...
    def ended(self, record: ChildRecord) -> None: ...


@define(eq=False)
class Launcher:
    """Launches children. `environ` is the proxy's own environment; a server does not get the values in `secrets`.

    `token` differs in each run of the proxy: it is part of the mark in each child's environment.
    """

    processes: IReactorProcess
    clock: IReactorTime
    environ: Mapping[str, str]
    token: str
    kernel: Kernel = field(default=procfs)
    watchers: Sequence[ChildWatcher] = ()
    which: Callable[[str, str], str | None] = lambda name, path: shutil.which(name, path=path)
    adoption: Callable[..., Adopted] = Adopted
    secrets: Callable[[], Collection[str]] = tuple
    _spare: Child | None = None
    _warming: IDelayedCall | None = None
    _count: int = 0
    _closed: bool = False

    def find(self, name: str) -> str | None:
        """The file that a command's first word names, looked up in llamaswap's PATH, not in that of the model's env."""
        return self.which(name, self.environ.get("PATH", os.defpath))

    def environment(self, env: Iterable[str], policy: str) -> dict[str, str]:
        """The environment of a server with `env` under `policy`, without the mark of a process."""
        return server_environment(self.environ, policy, self.secrets(), env)

    def launch(
        self,
        executable: str,
        argv: Sequence[str],
        env: Iterable[str],
        *,
        model: str = "",
        port: int | None = None,
        policy: str = "inherit",
        stop_words: Sequence[str] = (),
    ) -> Child:
        """Run `argv` in a new session, with `env` (K=V, later ones win) over what `policy` passes of the environment.

        `model` names the model of a server: the watchers learn of it before it runs, so it cannot outlive the proxy,
        and of `stop_words`, the stop command that runs if the proxy dies. Raises OSError if a process cannot be made.
        """
        env = tuple(env)
        spare, self._spare = self._spare, None
        child = spare if spare is not None and spare.status is None else self._start_leader()
        environment = self.environment(env, policy) | {MARK: child.mark}
        pairs = [f"{key}={value}" for key, value in environment.items()]
        try:
            instruction = sessionleader.instruct(
                os.fsencode(executable), [os.fsencode(word) for word in argv], [os.fsencode(pair) for pair in pairs]
            )
        except ValueError as error:  # a NUL or a lone surrogate: an argument cannot contain these
            child.dismiss()
            raise OSError(errno.EINVAL, f"{error}") from error
        if model:
            self._watch(
                child,
                ChildRecord(
                    child.pid, child.start, child.mark, model, port, tuple(stop_words), env if stop_words else ()
                ),
            )
        child.instruct(instruction)
        self.warm(SPARE_DELAY)
        return child

    def adopt(self, record: ChildRecord, output: int | None) -> Child:
        """Take over a child of the previous program of this process; `Child.watch` it when it has an owner.

        `output` is the descriptor its output comes from. Raises OSError if the child does not exist.
        """
        child = Child(self.clock, self.kernel, record.mark)
        reading = {} if output is None else {1: output}
        self.adoption(self.processes, record.pid, child, reading=reading, writing={})
        child.start = record.start
        self._watch(child, record)
        return child

    def _watch(self, child: Child, record: ChildRecord) -> None:
        child.record = record
        for watcher in self.watchers:
            watcher.started(record)

    def ended(self, child: Child) -> None:
        """No process of the child is left."""
        record, child.record = child.record, None
        if record is not None:
            for watcher in self.watchers:
                watcher.ended(record)

    # -- the spare -----------------------------------------------------------------------------------------

    def warm(self, delay: float = 0.0) -> None:
        """Start a spare session leader, for the next start of a server, in `delay` seconds at the latest."""
        if self._spare is not None or self._closed:
            return
        if self._warming is None:
            self._warming = self.clock.callLater(delay, self._start_spare)
        elif self._warming.getTime() > self.clock.seconds() + delay:
            self._warming.reset(delay)

    def stop_spare(self) -> Child | None:
        """Stop the spare process until the next `warm`. Returns it, because it takes a moment to exit."""
        spare = self._spare
        self.close()
        self._closed = False
        return spare

    def close(self) -> None:
        """End the spare for good. Running children belong to their supervisors."""
        self._closed = True
        if self._warming is not None:
            self._warming.cancel()
            self._warming = None
        if self._spare is not None:
            self._spare.dismiss()
            self._spare = None

    def _start_spare(self) -> None:
        self._warming = None
        try:
            self._spare = spare = self._start_leader()
        except OSError as error:
            _log.warn("could not start a spare process: {error}", error=str(error))
            return
        spare.attend(on_exit=lambda status: self._spare_exited(spare))

    def _spare_exited(self, spare: Child) -> None:
        if self._spare is spare:
            self._spare = None

    def _start_leader(self) -> Child:
        """A session leader that waits for its instruction. Its stdout carries both streams; 2 is for its own errors."""
        self._count += 1
        child = Child(self.clock, self.kernel, f"{self.token}.{self._count}")
        python = sys.executable or "python3"
        self.processes.spawnProcess(
            child,
            python,
            [python, "-I", "-S", sessionleader.__file__, str(os.getpid())],
            env=dict(self.environ),
            childFDs={0: "w", 1: "r", 2: "r"},
        )
        return child
