"""What an operator has done when models come and go: commands and URLs of the configuration's `hooks`.

`before_load` and `before_unload` are waited for, each entry at most `hooks.timeout`; the others run beside. A hook that
fails is a line in the log and changes nothing else: what it prepares is the operator's, the model is the client's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from llamaswap.config import Endpoint
from llamaswap.config.command_line import split
from llamaswap.config.schema import HookSettings
from llamaswap.errors import ModelUnloaded
from llamaswap.events import EventBus, StateChanged, SwapEnded
from llamaswap.http_client import HttpResponse, SendRequest
from llamaswap.servers.command import CommandFailed, start_command
from llamaswap.servers.launcher import Launcher
from llamaswap.servers.spawn import say_status
from llamaswap.servers.supervisor_protocol import PreStopDecorator

log = Logger()

OUTPUT_KEPT = 2000  # bytes of a command's output that accompany its failure


@define(eq=False)
class HookRunner:
    """Runs entries. `hooks` gives those in force, `send` makes requests, `launcher` runs commands."""

    _clock: IReactorTime
    _hooks: Callable[[], HookSettings]
    _launcher: Launcher
    _send: SendRequest
    _under_way: int = field(default=0, init=False)
    _until_idle: list[Deferred[None]] = field(factory=list, init=False)

    @property
    def busy(self) -> bool:
        """Whether one has not ended yet."""
        return self._under_way > 0

    def when_idle(self) -> Deferred[None]:
        """Fires when no hook is running."""
        if not self.busy:
            return succeed(None)
        done: Deferred[None] = Deferred()
        self._until_idle.append(done)
        return done

    def wants(self, event: str) -> bool:
        """Whether anything is to be done."""
        return bool(getattr(self._hooks(), event))

    def run(self, event: str, model: str, error: str = "") -> Deferred[None]:
        """Do all of an event's entries at once. Never fails; fires when each has ended or used up its time."""
        hooks = self._hooks()
        entries: Sequence[str] = getattr(hooks, event)
        doing = [self._one(entry, event, model, error, hooks.timeout) for entry in entries]
        return DeferredList(doing, consumeErrors=True).addCallback(lambda _: None)

    def _one(self, entry: str, event: str, model: str, error: str, timeout: float) -> Deferred[Any]:
        log.debug("hook {event} for {model}: {entry}", event=event, model=model, entry=entry)
        facts = {"event": event, "model": model, "error": error}
        try:
            if entry.startswith(("http://", "https://")):
                doing = self._post(entry, facts, timeout)
            else:
                doing = self._command(entry, facts, timeout)
        except Exception as problem:  # whoever waits for it stops or starts a server, and must not fail for it
            log.error("hook {event}: {entry}: {error}", event=event, entry=entry, error=problem)
            return succeed(None)

        def failed(failure: Failure) -> None:
            reason = failure.getErrorMessage()
            log.error("hook {event} for {model} failed: {error}", event=event, model=model, error=reason)

        def over(result: Any) -> Any:
            self._under_way -= 1
            if not self._under_way:
                waiting, self._until_idle = self._until_idle, []
                for done in waiting:
                    done.callback(None)
            return result

        self._under_way += 1
        return doing.addErrback(failed).addBoth(over)

    def _post(self, url: str, facts: Mapping[str, str], timeout: float) -> Deferred[None]:
        def check(response: HttpResponse) -> None:
            if response.status >= 300:  # a redirect is not followed: the hook was not run
                raise OSError(f"{url} answered {response.status}")

        return self._send("POST", url, timeout=timeout, body=json.dumps(facts).encode()).addCallback(check)

    def _command(self, entry: str, facts: Mapping[str, str], timeout: float) -> Deferred[None]:
        """Run an entry with the whole environment, keys included: a hook may have to send requests to this proxy."""
        environ = {**self._launcher.environ, **{f"LLAMASWAP_{name.upper()}": value for name, value in facts.items()}}
        output = bytearray()

        def collect(data: bytes) -> None:
            output[:] = (output + data)[-OUTPUT_KEPT:]

        def check(status: int) -> None:
            if status:
                raise CommandFailed(f"{say_status(status)} {output.decode('utf-8', 'replace').strip()}".strip())

        pairs = [f"{name}={value}" for name, value in environ.items()]
        _, ended = start_command(self._launcher, split(entry), pairs, collect)
        return ended.addTimeout(timeout, self._clock, onTimeoutCancel=_too_long).addCallback(check)

    def listen(self, bus: EventBus) -> None:
        """Run what nobody waits for."""
        bus.subscribe(StateChanged, self._changed)
        bus.subscribe(SwapEnded, self._ended)

    def _changed(self, news: StateChanged) -> None:
        if news.new == "ready" and self.wants("after_ready"):
            self.run("after_ready", news.model)
        elif news.new == "stopped" and news.old != "starting" and self.wants("after_unload"):
            self.run("after_unload", news.model)

    def _ended(self, news: SwapEnded) -> None:
        if news.error is not None and self.wants("on_failure"):
            self.run("on_failure", news.model, news.error)


def _too_long(result: int | Failure, timeout: float) -> int:
    if isinstance(result, Failure):
        raise TimeoutError("it took too long")
    return result


@define(eq=False)
class HookedSupervisor(PreStopDecorator):
    """A supervisor whose starts and stops wait for hooks. Without any it is the supervisor itself, a call further."""

    model: str
    _runner: HookRunner

    def _start(self) -> Deferred[Endpoint]:
        """Run `before_load` first where a start is needed."""
        if self._stays or not self._runner.wants("before_load"):
            return self._inner.ensure_ready()
        return Deferred.fromCoroutine(self._prepared())

    async def _prepared(self) -> Endpoint:
        wishes = self._wishes
        await self._runner.run("before_load", self.model)
        if wishes != self._wishes:  # unloaded while the hook ran: whoever asked is told so, and nothing is started
            raise ModelUnloaded(self.model)
        return await self._inner.ensure_ready()

    def _before_stop(self, grace: float | None) -> Deferred[None] | None:
        return self._before_sleep()

    def _before_sleep(self) -> Deferred[None] | None:
        """Sleep or not, the model's room is given up."""
        return self._runner.run("before_unload", self.model) if self._runner.wants("before_unload") else None
