"""Hooks: commands and URLs of the configuration that run when models are loaded and unloaded.

Loads wait for `before_load` and stops for `before_unload`, each entry at most `hooks.timeout`; the others run in the
background. A hook that fails is logged and changes nothing else, because a client waits for the model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

from attrs import define, field
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.defer import TimeoutError as HookTimeout
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from llamaswap.config.command_line import split
from llamaswap.config.schema import HookSettings
from llamaswap.events import EventBus, StateChanged, SwapEnded
from llamaswap.http_client import RequestFailed, SendRequest
from llamaswap.servers.command import CommandFailed, start_command
from llamaswap.servers.launcher import Launcher
from llamaswap.servers.prepared_supervisor import Preparation
from llamaswap.servers.spawn import say_status
from llamaswap.servers.supervisor_protocol import ServerStatus

log = Logger()

OUTPUT_KEPT = 2000  # bytes of a command's output that accompany its failure


@define(eq=False)
class HookRunner:
    """Runs hooks. `hooks` gives the present settings, `send` makes requests, `launcher` runs commands."""

    _clock: IReactorTime
    _hooks: Callable[[], HookSettings]
    _launcher: Launcher
    _send: SendRequest
    _running: set[Deferred[None]] = field(factory=set, init=False)

    @property
    def busy(self) -> bool:
        """Whether a hook is running."""
        return bool(self._running)

    def when_idle(self) -> Deferred[None]:
        """Fires when no hook is running. Cancelling it ends the wait, not the hooks."""
        idle: Deferred[None] = Deferred()
        self._fire_when_idle(idle)
        return idle

    def _fire_when_idle(self, idle: Deferred[None]) -> None:
        if self.busy:
            DeferredList(self._running).addCallback(lambda _: self._fire_when_idle(idle))
        elif not idle.called:
            idle.callback(None)

    def run(self, event: str, model: str, error: str = "") -> Deferred[None]:
        """Run all entries of an event at once. Fires when each has ended or used up its time; never fails."""
        hooks = self._hooks()
        entries: Sequence[str] = getattr(hooks, event)
        facts = {"event": event, "model": model, "error": error}
        running = [Deferred.fromCoroutine(self._run(entry, facts, hooks.timeout)) for entry in entries]
        for one in running:
            self._running.add(one)
            one.addCallback(lambda _, ended: self._running.discard(ended), one)
        return DeferredList(running).addCallback(lambda _: None)

    async def _run(self, entry: str, facts: Mapping[str, str], timeout: float) -> None:
        log.debug("hook {event} for {model}: {entry}", event=facts["event"], model=facts["model"], entry=entry)
        try:
            if entry.startswith(("http://", "https://")):
                await self._post(entry, facts, timeout)
            else:
                await self._command(entry, facts, timeout)
        except Exception as error:  # a server starts or stops meanwhile, and that must not fail
            log.error(
                "hook {event} for {model} failed: {error}", event=facts["event"], model=facts["model"], error=error
            )

    async def _post(self, url: str, facts: Mapping[str, str], timeout: float) -> None:
        response = await self._send("POST", url, timeout=timeout, body=json.dumps(facts).encode())
        if response.status >= 300:  # a redirect is not followed: the hook was not run
            raise RequestFailed(f"{url} answered {response.status}")

    async def _command(self, entry: str, facts: Mapping[str, str], timeout: float) -> None:
        """Run an entry with the whole environment, keys included: a hook may have to send requests to this proxy."""
        environ = {**self._launcher.environ, **{f"LLAMASWAP_{name.upper()}": value for name, value in facts.items()}}
        output = bytearray()

        def collect(data: bytes) -> None:
            output[:] = (output + data)[-OUTPUT_KEPT:]

        pairs = [f"{name}={value}" for name, value in environ.items()]
        _, ended = start_command(self._launcher, split(entry), pairs, collect)
        try:
            status = await ended.addTimeout(timeout, self._clock)
        except HookTimeout:
            raise CommandFailed("it took too long")
        if status:
            raise CommandFailed(f"{say_status(status)} {output.decode('utf-8', 'replace').strip()}".strip())

    def listen(self, bus: EventBus) -> None:
        """Run the hooks of events: no load or stop waits for them."""
        bus.subscribe(StateChanged, self._changed)
        bus.subscribe(SwapEnded, self._ended)

    def _changed(self, event: StateChanged) -> None:
        if event.new == "ready":
            self.run("after_ready", event.model)
        elif event.new == "stopped" and event.old != "starting":
            self.run("after_unload", event.model)

    def _ended(self, event: SwapEnded) -> None:
        if event.error is not None:
            self.run("on_failure", event.model, event.error)


@define(eq=False)
class HookPreparation(Preparation):
    """Loads and stops of a model wait for hooks."""

    _model: str
    _runner: HookRunner

    async def before_load(self) -> None:
        await self._runner.run("before_load", self._model)

    async def before_stop(self, status: ServerStatus, grace: float | None) -> None:
        await self._runner.run("before_unload", self._model)

    async def before_suspend(self) -> None:
        """A suspended model gives up its memory too."""
        await self._runner.run("before_unload", self._model)
