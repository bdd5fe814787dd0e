"""One server's life as a machine: which states there are, what may happen in each, and who is answered when.

Inputs are past facts and wishes and return None. What a state owns (a probe, a ladder) is its data, so that no
timer outlives its state. Everything the machine does, it does through `Actions`; it starts no process and reads no
clock itself. `describe` writes the drawing in docs/lifecycle.rst.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from attrs import Factory, define, frozen
from automat import TypeMachineBuilder
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from llamaswap.config.endpoints import Endpoint
from llamaswap.errors import LlamaswapError, ModelUnloaded, ShuttingDown

ABORT_GRACE = 5.0  # seconds a server may take to stop that was never ready: nothing of worth is lost
CRASH_GRACE = 0.0  # what a crashed leader left is not asked

STOPPED, STARTING, READY, STOPPING, SHUTDOWN = "stopped", "starting", "ready", "stopping", "shutdown"
ASLEEP = "asleep"  # told outside as stopped, since it takes up no room, with a fact beside it


class Inputs(Protocol):
    """What may happen to a server."""

    def want_ready(self, waiter: Deferred[Endpoint]) -> None:
        """Somebody needs it. `waiter` gets the endpoint, or why not."""

    def want_stopped(self, waiter: Deferred[None], grace: float) -> None:
        """Somebody wants it gone; `waiter` fires when nothing is left of it."""

    def want_cleaned(self, waiter: Deferred[None]) -> None:
        """It is down, and its stop command has to run; `waiter` fires when that has ended."""

    def want_asleep(self, waiter: Deferred[None], grace: float) -> None:
        """Its room is wanted. `waiter` fires when it sleeps, or is gone because it could not: within `grace` then."""

    def fell_asleep(self) -> None:
        """It has given back what it held."""

    def sleep_failed(self) -> None:
        """It could not be put to sleep, or not in time."""

    def wake_failed(self) -> None:
        """It does not wake up, or not in time. A fresh start is worth a try."""

    def probe_passed(self) -> None:
        """It answers as a ready server does."""

    def start_failed(self, error: Callable[[], LlamaswapError]) -> None:
        """It could not be started, or not in time. `error` is asked when its last words are in."""

    def port_lost(self) -> None:
        """It went at once because somebody else had its port; another one is worth a try."""

    def exited(self, error: Callable[[], LlamaswapError]) -> None:
        """The process ended; `error` says how, to those who wait for it to be ready."""

    def drained(self) -> None:
        """Nothing of it is left, or what is left was declared lost."""

    def closing(self, waiter: Deferred[None], grace: float) -> None:
        """It shall stop and never start again."""

    def adopted(self) -> None:
        """It is there and ready already: an earlier program of this process started it."""

    def adopted_asleep(self) -> None:
        """It is there and sleeps."""


# -- what the states own -----------------------------------------------------------------------------------


@frozen
class StartInProgress:
    """A start under way; `abandon` ends its probing and its deadline, not its process."""

    abandon: Callable[[], None]


@frozen
class Serving:
    """A server that is ready."""

    endpoint: Endpoint


@frozen
class SuspendInProgress:
    """A way into sleep under way; `abandon` ends the asking. `grace` is for the way down where it does not succeed."""

    abandon: Callable[[], None]
    grace: float


@frozen
class StopInProgress:
    """A way down under way. `hasten(grace)` for the less patient, `leader_gone()` when the process ended."""

    go: Callable[[float], None]
    hasten: Callable[[float], None]
    leader_gone: Callable[[], None]


class Actions(Protocol):
    """What the machine needs done. Nothing here may call an input before the next turn of the reactor."""

    @property
    def waiters(self) -> LifecycleWaiters: ...

    def begin(self) -> StartInProgress: ...

    def serve(self) -> Serving: ...

    def doze(self, grace: float) -> SuspendInProgress:
        """The way into sleep that is under way, or else a fresh one."""

    def wake(self) -> StartInProgress:
        """Have a sleeping server woken up and probed."""

    def descend(self) -> StopInProgress:
        """The way down that is under way, or else a fresh one for the child there is."""

    def show(self, word: str) -> None:
        """The state as the outside sees it is now `word`."""


@define(eq=False)
class LifecycleWaiters:
    """Who waits for what. They are told on a later turn, never inside an input: they may well call one."""

    clock: IReactorTime
    model: str
    _for_ready: list[Deferred[Endpoint]] = Factory(list)
    _for_stop: list[Deferred[None]] = Factory(list)
    _doomed: list[tuple[Deferred[Endpoint], Callable[[], LlamaswapError]]] = Factory(list)
    _tellings: list[Callable[[], None]] = Factory(list)

    def add_ready(self, waiter: Deferred[Endpoint]) -> None:
        self._for_ready.append(waiter)

    def add_stop(self, waiter: Deferred[None]) -> None:
        self._for_stop.append(waiter)

    def ready(self, endpoint: Endpoint) -> None:
        """All who wait for it get it."""
        waiting, self._for_ready = self._for_ready, []
        for waiter in waiting:
            self._later(_calling(waiter, endpoint))

    def doom(self, error: Callable[[], LlamaswapError]) -> None:
        """Those who wait now will be told `error`, but not before the process is gone and its room is free."""
        self._doomed += [(waiter, error) for waiter in self._for_ready]
        self._for_ready = []

    def abort(self) -> None:
        """Those who wait now will hear that it was stopped meanwhile."""
        self.doom(lambda: ModelUnloaded(self.model))

    def gone(self) -> None:
        """It is down: tell those who wanted that, and those whose start failed."""
        doomed, self._doomed = self._doomed, []
        for waiter, error in doomed:
            self._later(_failing(waiter, error()))
        stopped, self._for_stop = self._for_stop, []
        for done in stopped:
            self._later(_calling(done, None))

    def refuse(self, waiter: Deferred[Endpoint]) -> None:
        """Nothing is started any more."""
        self._later(_failing(waiter, ShuttingDown(self.model)))

    def shut_down(self) -> None:
        """Those who wait to be served now will hear that nothing is started any more."""
        self.doom(lambda: ShuttingDown(self.model))

    def _later(self, telling: Callable[[], None]) -> None:
        if not self._tellings:
            self.clock.callLater(0, self._tell)
        self._tellings.append(telling)

    def _tell(self) -> None:
        tellings, self._tellings = self._tellings, []
        for telling in tellings:
            telling()


def _calling(waiter: Deferred[Any], value: object) -> Callable[[], None]:
    """A waiter may have been cancelled by its owner, who then was told already."""

    def tell() -> None:
        if not waiter.called:
            waiter.callback(value)

    return tell


def _failing(waiter: Deferred[Any], error: Exception) -> Callable[[], None]:
    def tell() -> None:
        if not waiter.called:
            waiter.errback(error)

    return tell


# -- the machine -------------------------------------------------------------------------------------------


def _begin(inputs: Inputs, hands: Actions, *args: Any, **kwargs: Any) -> StartInProgress:
    return hands.begin()


def _serve(inputs: Inputs, hands: Actions, *args: Any, **kwargs: Any) -> Serving:
    return hands.serve()


def _descend(inputs: Inputs, hands: Actions, *args: Any, **kwargs: Any) -> StopInProgress:
    return hands.descend()


def _doze(inputs: Inputs, hands: Actions, waiter: object, grace: float = 0.0) -> SuspendInProgress:
    return hands.doze(grace)


def _wake(inputs: Inputs, hands: Actions, *args: Any, **kwargs: Any) -> StartInProgress:
    return hands.wake()


builder = TypeMachineBuilder(Inputs, Actions)  # type: ignore[type-abstract]  # a Protocol is what Automat wants here

Stopped = builder.state("Stopped")
Starting = builder.state("Starting", _begin)
Ready = builder.state("Ready", _serve)
Suspending = builder.state("Suspending", _doze)
SuspendingThenResume = builder.state("SuspendingThenResume", _doze)
Suspended = builder.state("Suspended")
Resuming = builder.state("Resuming", _wake)
Stopping = builder.state("Stopping", _descend)
Restarting = builder.state("Restarting", _descend)
Closing = builder.state("Closing", _descend)
Closed = builder.state("Closed")


# It is down.


@Stopped.upon(Inputs.want_ready).to(Starting)
def _start(inputs: Inputs, hands: Actions, waiter: Deferred[Endpoint]) -> None:
    hands.waiters.add_ready(waiter)
    hands.show(STARTING)


@Stopped.upon(Inputs.want_stopped).loop()
@Stopped.upon(Inputs.want_asleep).loop()
@Closed.upon(Inputs.want_stopped).loop()
@Closed.upon(Inputs.want_asleep).loop()
@Suspended.upon(Inputs.want_asleep).loop()
def _already_down(inputs: Inputs, hands: Actions, waiter: Deferred[None], grace: float) -> None:
    hands.waiters.add_stop(waiter)
    hands.waiters.gone()


@Stopped.upon(Inputs.want_cleaned).to(Stopping)
def _clean_up(inputs: Inputs, hands: Actions, waiter: Deferred[None]) -> None:
    hands.waiters.add_stop(waiter)
    hands.descend().go(0.0)


@Stopped.upon(Inputs.adopted).to(Ready)
def _take_over(inputs: Inputs, hands: Actions) -> None:
    hands.show(READY)


@Stopped.upon(Inputs.adopted_asleep).to(Suspended)
def _take_over_asleep(inputs: Inputs, hands: Actions) -> None:
    hands.show(ASLEEP)


@Stopped.upon(Inputs.closing).to(Closed)
def _close_at_once(inputs: Inputs, hands: Actions, waiter: Deferred[None], grace: float) -> None:
    hands.show(SHUTDOWN)
    hands.waiters.add_stop(waiter)
    hands.waiters.gone()


# It starts.


@Starting.upon(Inputs.want_ready, nodata=True).loop()
@Resuming.upon(Inputs.want_ready, nodata=True).loop()
@Suspending.upon(Inputs.want_ready, nodata=True).to(SuspendingThenResume)
@SuspendingThenResume.upon(Inputs.want_ready, nodata=True).loop()
@Stopping.upon(Inputs.want_ready, nodata=True).to(Restarting)
@Restarting.upon(Inputs.want_ready, nodata=True).loop()
def _wait_for_it(inputs: Inputs, hands: Actions, waiter: Deferred[Endpoint]) -> None:
    hands.waiters.add_ready(waiter)


@Starting.upon(Inputs.probe_passed).to(Ready)
@Resuming.upon(Inputs.probe_passed).to(Ready)
def _became_ready(inputs: Inputs, hands: Actions, attempt: StartInProgress) -> None:
    attempt.abandon()
    hands.show(READY)
    hands.waiters.ready(hands.serve().endpoint)


@Starting.upon(Inputs.want_stopped).to(Stopping)
@Starting.upon(Inputs.want_asleep).to(Stopping)
@Resuming.upon(Inputs.want_stopped).to(Stopping)
def _abort(inputs: Inputs, hands: Actions, attempt: StartInProgress, waiter: Deferred[None], grace: float) -> None:
    attempt.abandon()
    hands.waiters.abort()
    hands.waiters.add_stop(waiter)
    hands.descend().go(min(grace, ABORT_GRACE))


@Starting.upon(Inputs.start_failed).to(Stopping)
def _give_up(inputs: Inputs, hands: Actions, attempt: StartInProgress, error: Callable[[], LlamaswapError]) -> None:
    attempt.abandon()
    hands.waiters.doom(error)
    hands.descend().go(ABORT_GRACE)


@Starting.upon(Inputs.exited).to(Stopping)
def _exited_early(
    inputs: Inputs, hands: Actions, attempt: StartInProgress, error: Callable[[], LlamaswapError]
) -> None:
    attempt.abandon()
    hands.waiters.doom(error)
    hands.descend().go(CRASH_GRACE)


@Starting.upon(Inputs.port_lost).to(Restarting)
def _try_another_port(inputs: Inputs, hands: Actions, attempt: StartInProgress) -> None:
    attempt.abandon()
    hands.descend().go(CRASH_GRACE)


@Starting.upon(Inputs.closing).to(Closing)
@Resuming.upon(Inputs.closing).to(Closing)
def _close_start(
    inputs: Inputs, hands: Actions, attempt: StartInProgress, waiter: Deferred[None], grace: float
) -> None:
    attempt.abandon()
    hands.show(SHUTDOWN)
    hands.waiters.shut_down()
    hands.waiters.add_stop(waiter)
    hands.descend().go(min(grace, ABORT_GRACE))


# It serves.


@Ready.upon(Inputs.want_ready).loop()
def _is_ready(inputs: Inputs, hands: Actions, serving: Serving, waiter: Deferred[Endpoint]) -> None:
    hands.waiters.add_ready(waiter)
    hands.waiters.ready(serving.endpoint)


@Ready.upon(Inputs.want_stopped, nodata=True).to(Stopping)
def _stop(inputs: Inputs, hands: Actions, waiter: Deferred[None], grace: float) -> None:
    hands.show(STOPPING)
    hands.waiters.add_stop(waiter)
    hands.descend().go(grace)


@Ready.upon(Inputs.exited, nodata=True).to(Stopping)
def _crashed(inputs: Inputs, hands: Actions, error: Callable[[], LlamaswapError]) -> None:
    hands.show(STOPPING)
    hands.descend().go(CRASH_GRACE)


@Ready.upon(Inputs.closing, nodata=True).to(Closing)
def _close(inputs: Inputs, hands: Actions, waiter: Deferred[None], grace: float) -> None:
    hands.show(SHUTDOWN)
    hands.waiters.add_stop(waiter)
    hands.descend().go(grace)


# It goes to sleep, sleeps, wakes up.


@Ready.upon(Inputs.want_asleep, nodata=True).to(Suspending)
def _fall_asleep(inputs: Inputs, hands: Actions, waiter: Deferred[None], grace: float) -> None:
    hands.show(STOPPING)
    hands.waiters.add_stop(waiter)


@Suspending.upon(Inputs.want_asleep, nodata=True).loop()
def _dozes_already(inputs: Inputs, hands: Actions, waiter: Deferred[None], grace: float) -> None:
    hands.waiters.add_stop(waiter)


@SuspendingThenResume.upon(Inputs.want_asleep, nodata=True).to(Suspending)
def _sleep_after_all(inputs: Inputs, hands: Actions, waiter: Deferred[None], grace: float) -> None:
    hands.waiters.abort()
    hands.waiters.add_stop(waiter)


@Suspending.upon(Inputs.fell_asleep).to(Suspended)
def _asleep(inputs: Inputs, hands: Actions, doze: SuspendInProgress) -> None:
    hands.show(ASLEEP)
    hands.waiters.gone()


@SuspendingThenResume.upon(Inputs.fell_asleep, nodata=True).to(Resuming)
def _wake_at_once(inputs: Inputs, hands: Actions) -> None:
    hands.show(ASLEEP)
    hands.show(STARTING)
    hands.waiters.gone()


@Suspending.upon(Inputs.sleep_failed).to(Stopping)
@SuspendingThenResume.upon(Inputs.sleep_failed).to(Restarting)
def _stop_instead(inputs: Inputs, hands: Actions, doze: SuspendInProgress) -> None:
    hands.descend().go(doze.grace)


@Suspending.upon(Inputs.exited).to(Stopping)
@SuspendingThenResume.upon(Inputs.exited).to(Restarting)
def _exited_dozing(
    inputs: Inputs, hands: Actions, doze: SuspendInProgress, error: Callable[[], LlamaswapError]
) -> None:
    doze.abandon()
    hands.descend().go(CRASH_GRACE)


@Suspending.upon(Inputs.want_stopped).to(Stopping)
@SuspendingThenResume.upon(Inputs.want_stopped).to(Stopping)
def _stop_dozing(inputs: Inputs, hands: Actions, doze: SuspendInProgress, waiter: Deferred[None], grace: float) -> None:
    doze.abandon()
    hands.waiters.abort()
    hands.waiters.add_stop(waiter)
    hands.descend().go(grace)


@Suspending.upon(Inputs.closing).to(Closing)
@SuspendingThenResume.upon(Inputs.closing).to(Closing)
def _close_dozing(
    inputs: Inputs, hands: Actions, doze: SuspendInProgress, waiter: Deferred[None], grace: float
) -> None:
    doze.abandon()
    hands.show(SHUTDOWN)
    hands.waiters.shut_down()
    hands.waiters.add_stop(waiter)
    hands.descend().go(grace)


@Suspended.upon(Inputs.want_ready).to(Resuming)
def _wake_up(inputs: Inputs, hands: Actions, waiter: Deferred[Endpoint]) -> None:
    hands.waiters.add_ready(waiter)
    hands.show(STARTING)


@Suspended.upon(Inputs.want_stopped).to(Stopping)
def _stop_asleep(inputs: Inputs, hands: Actions, waiter: Deferred[None], grace: float) -> None:
    hands.waiters.add_stop(waiter)
    hands.descend().go(grace)


@Suspended.upon(Inputs.exited).to(Stopping)
def _died_asleep(inputs: Inputs, hands: Actions, error: Callable[[], LlamaswapError]) -> None:
    hands.descend().go(CRASH_GRACE)


@Suspended.upon(Inputs.closing).to(Closing)
def _close_asleep(inputs: Inputs, hands: Actions, waiter: Deferred[None], grace: float) -> None:
    hands.show(SHUTDOWN)
    hands.waiters.add_stop(waiter)
    hands.descend().go(grace)


@Resuming.upon(Inputs.want_asleep).to(Suspending)
def _sleep_again(
    inputs: Inputs, hands: Actions, attempt: StartInProgress, waiter: Deferred[None], grace: float
) -> None:
    attempt.abandon()
    hands.show(STOPPING)
    hands.waiters.abort()
    hands.waiters.add_stop(waiter)


@Resuming.upon(Inputs.wake_failed).to(Restarting)
def _start_instead(inputs: Inputs, hands: Actions, attempt: StartInProgress) -> None:
    attempt.abandon()
    hands.descend().go(ABORT_GRACE)


@Resuming.upon(Inputs.exited).to(Restarting)
def _exited_waking(
    inputs: Inputs, hands: Actions, attempt: StartInProgress, error: Callable[[], LlamaswapError]
) -> None:
    attempt.abandon()
    hands.descend().go(CRASH_GRACE)


# It stops.


@Stopping.upon(Inputs.want_stopped).loop()
@Stopping.upon(Inputs.want_asleep).loop()
@Closing.upon(Inputs.want_stopped).loop()
@Closing.upon(Inputs.want_asleep).loop()
@Closing.upon(Inputs.closing).loop()
def _stop_too(inputs: Inputs, hands: Actions, descent: StopInProgress, waiter: Deferred[None], grace: float) -> None:
    hands.waiters.add_stop(waiter)
    descent.hasten(grace)


@Restarting.upon(Inputs.want_stopped).to(Stopping)
@Restarting.upon(Inputs.want_asleep).to(Stopping)
def _stop_after_all(
    inputs: Inputs, hands: Actions, descent: StopInProgress, waiter: Deferred[None], grace: float
) -> None:
    hands.waiters.abort()
    hands.waiters.add_stop(waiter)
    descent.hasten(grace)


@Stopping.upon(Inputs.closing).to(Closing)
@Restarting.upon(Inputs.closing).to(Closing)
def _close_after_stop(
    inputs: Inputs, hands: Actions, descent: StopInProgress, waiter: Deferred[None], grace: float
) -> None:
    hands.show(SHUTDOWN)
    hands.waiters.shut_down()
    hands.waiters.add_stop(waiter)
    descent.hasten(grace)


@Stopping.upon(Inputs.exited).loop()
@Restarting.upon(Inputs.exited).loop()
@Closing.upon(Inputs.exited).loop()
def _leader_gone(inputs: Inputs, hands: Actions, descent: StopInProgress, error: Callable[[], LlamaswapError]) -> None:
    descent.leader_gone()


@Stopping.upon(Inputs.drained).to(Stopped)
def _down(inputs: Inputs, hands: Actions, descent: StopInProgress) -> None:
    hands.show(STOPPED)
    hands.waiters.gone()


@Restarting.upon(Inputs.drained, nodata=True).to(Starting)
def _start_again(inputs: Inputs, hands: Actions) -> None:
    hands.show(STOPPED)
    hands.show(STARTING)
    hands.waiters.gone()


@Closing.upon(Inputs.drained).to(Closed)
def _closed(inputs: Inputs, hands: Actions, descent: StopInProgress) -> None:
    hands.waiters.gone()


# It is closed, or closing.


@Closing.upon(Inputs.want_ready, nodata=True).loop()
@Closed.upon(Inputs.want_ready).loop()
def _refuse(inputs: Inputs, hands: Actions, waiter: Deferred[Endpoint]) -> None:
    hands.waiters.refuse(waiter)


@Closed.upon(Inputs.closing).loop()
def _closed_already(inputs: Inputs, hands: Actions, waiter: Deferred[None], grace: float) -> None:
    hands.waiters.add_stop(waiter)
    hands.waiters.gone()


# News that comes too late: what it tells of is over. Its sender could not know.

_ON_THE_WAY_UP = (Inputs.probe_passed, Inputs.start_failed, Inputs.port_lost, Inputs.wake_failed)
_INTO_SLEEP = (Inputs.fell_asleep, Inputs.sleep_failed)
_ONLY_STOPPED = (Inputs.adopted, Inputs.adopted_asleep, Inputs.want_cleaned)
_late: dict[Any, tuple[Any, ...]] = {
    Stopped: (*_ON_THE_WAY_UP, *_INTO_SLEEP, Inputs.exited, Inputs.drained),
    Starting: (*_INTO_SLEEP, *_ONLY_STOPPED, Inputs.wake_failed, Inputs.drained),
    Ready: (*_ON_THE_WAY_UP, *_INTO_SLEEP, *_ONLY_STOPPED, Inputs.drained),
    Suspending: (*_ON_THE_WAY_UP, *_ONLY_STOPPED, Inputs.drained),
    SuspendingThenResume: (*_ON_THE_WAY_UP, *_ONLY_STOPPED, Inputs.drained),
    Suspended: (*_ON_THE_WAY_UP, *_INTO_SLEEP, *_ONLY_STOPPED, Inputs.drained),
    Resuming: (*_INTO_SLEEP, *_ONLY_STOPPED, Inputs.start_failed, Inputs.port_lost, Inputs.drained),
    Stopping: (*_ON_THE_WAY_UP, *_INTO_SLEEP, *_ONLY_STOPPED),
    Restarting: (*_ON_THE_WAY_UP, *_INTO_SLEEP, *_ONLY_STOPPED),
    Closing: (*_ON_THE_WAY_UP, *_INTO_SLEEP, *_ONLY_STOPPED),
    Closed: (*_ON_THE_WAY_UP, *_INTO_SLEEP, *_ONLY_STOPPED, Inputs.exited, Inputs.drained),
}
_BARE = (Stopped, Suspended, Closed)  # own no data
for _state, _inputs in _late.items():
    for _input in _inputs:
        if _state in _BARE:
            _state.upon(_input).loop().returns(None)
        else:
            _state.upon(_input, nodata=True).loop().returns(None)

machine = builder.build()


# -- the drawing -------------------------------------------------------------------------------------------

_LATE = "returns(None)"


def describe() -> str:
    """The machine drawn with Graphviz in reStructuredText, and as a table; without late news, which changes nothing."""
    moves = sorted(
        (old.name, name, new.name)
        for old, name, new, outputs in machine.__automat_automaton__.allTransitions()
        if outputs[-1].name != _LATE
    )
    arrows: dict[tuple[str, str], list[str]] = {}
    for old, name, new in moves:
        arrows.setdefault((old, new), []).append(name)
    lines = [".. graphviz::", "", "   digraph lifecycle {"]
    lines += [f'      {old} -> {new} [label="{", ".join(names)}"];' for (old, new), names in arrows.items()]
    lines += ["   }", "", ".. list-table::", "   :header-rows: 1", ""]
    for row in (("in state", "upon", "goes to"), *moves):
        lines += [f"   * - {row[0]}", f"     - {row[1]}", f"     - {row[2]}"]
    return "\n".join(lines) + "\n"
