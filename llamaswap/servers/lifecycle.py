"""The state machine of one model's server: its states, and what each event does in each state.

Inputs are events and wishes and return None. What runs during a state (readiness checks, a stop) is the state's data,
so that no timer outlives its state. The machine acts through `Actions` alone; it starts no process and reads no clock.
docs/lifecycle.rst contains the drawing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Concatenate, TypeVar

from automat import TypeMachineBuilder
from twisted.internet.defer import Deferred

from llamaswap.config.endpoints import Endpoint
from llamaswap.errors import LlamaswapError
from llamaswap.servers.lifecycle_interfaces import Actions, Inputs, StateTask, StopInProgress

ABORT_GRACE = 5.0  # seconds a server that was never ready may take to stop: it has no work to finish
CRASH_GRACE = 0.0  # processes that a crashed server left are killed at once

STOPPED, STARTING, READY, STOPPING, SHUTDOWN = "stopped", "starting", "ready", "stopping", "shutdown"
SUSPENDED = "asleep"  # shown as stopped, because it uses no memory that another model needs

T = TypeVar("T")


def _data(make: Callable[[Actions], T]) -> Callable[Concatenate[Inputs, Actions, ...], T]:
    """A state's data, made by an action that needs no argument of the input."""
    return lambda inputs, actions, *args, **kwargs: make(actions)


def _suspend(inputs: Inputs, actions: Actions, waiter: object, grace: float = 0.0) -> StateTask:
    return actions.begin_suspend(grace)


builder = TypeMachineBuilder(Inputs, Actions)  # type: ignore[type-abstract]  # Automat takes a Protocol here
_termination = _data(lambda actions: actions.terminate())
_idle = _data(lambda actions: StateTask())

Stopped = builder.state("Stopped")
Starting = builder.state("Starting", _data(lambda actions: actions.begin_start()))
Ready = builder.state("Ready", _idle)
Suspending = builder.state("Suspending", _suspend)
Suspended = builder.state("Suspended", _idle)
Resuming = builder.state("Resuming", _data(lambda actions: actions.begin_resume()))
Stopping = builder.state("Stopping", _termination)


# Down.


@Stopped.upon(Inputs.want_ready).to(Starting)
def _start(inputs: Inputs, actions: Actions, waiter: Deferred[Endpoint]) -> None:
    actions.waiters.add_ready(waiter)
    actions.show(STARTING)


@Stopped.upon(Inputs.want_stopped).loop()
@Stopped.upon(Inputs.want_suspended).loop()
@Suspended.upon(Inputs.want_suspended, nodata=True).loop()
def _already_down(inputs: Inputs, actions: Actions, waiter: Deferred[None], grace: float) -> None:
    actions.waiters.add_stop(waiter)
    actions.waiters.stopped()


@Stopped.upon(Inputs.want_cleaned).to(Stopping)
def _clean_up(inputs: Inputs, actions: Actions, waiter: Deferred[None]) -> None:
    actions.waiters.add_stop(waiter)
    actions.terminate().begin(0.0)


@Stopped.upon(Inputs.adopted).to(Ready)
def _adopt(inputs: Inputs, actions: Actions) -> None:
    actions.show(READY)


@Stopped.upon(Inputs.adopted_suspended).to(Suspended)
def _adopt_suspended(inputs: Inputs, actions: Actions) -> None:
    actions.show(SUSPENDED)


# Up.


@Starting.upon(Inputs.want_ready, nodata=True).loop()
@Resuming.upon(Inputs.want_ready, nodata=True).loop()
@Suspending.upon(Inputs.want_ready, nodata=True).loop()
@Stopping.upon(Inputs.want_ready, nodata=True).loop()
def _wait_for_it(inputs: Inputs, actions: Actions, waiter: Deferred[Endpoint]) -> None:
    actions.waiters.add_ready(waiter)


@Ready.upon(Inputs.want_ready, nodata=True).loop()
def _is_ready(inputs: Inputs, actions: Actions, waiter: Deferred[Endpoint]) -> None:
    actions.waiters.add_ready(waiter)
    actions.waiters.ready(actions.endpoint())


@Suspended.upon(Inputs.want_ready, nodata=True).to(Resuming)
def _resume(inputs: Inputs, actions: Actions, waiter: Deferred[Endpoint]) -> None:
    actions.waiters.add_ready(waiter)
    actions.show(STARTING)


@Starting.upon(Inputs.probe_passed).to(Ready)
@Resuming.upon(Inputs.probe_passed).to(Ready)
def _became_ready(inputs: Inputs, actions: Actions, task: StateTask) -> None:
    task.abandon()
    actions.show(READY)
    actions.waiters.ready(actions.endpoint())


@Starting.upon(Inputs.start_failed).to(Stopping)
def _give_up(inputs: Inputs, actions: Actions, task: StateTask, error: Callable[[], LlamaswapError]) -> None:
    task.abandon()
    actions.waiters.fail_when_stopped(error)
    actions.terminate().begin(ABORT_GRACE)


@Starting.upon(Inputs.exited).to(Stopping)
def _exited_early(inputs: Inputs, actions: Actions, task: StateTask, error: Callable[[], LlamaswapError]) -> None:
    task.abandon()
    actions.waiters.fail_when_stopped(error)
    actions.terminate().begin(CRASH_GRACE)


# The process has ended, or could not be suspended or resumed.


@Ready.upon(Inputs.exited, nodata=True).to(Stopping)
def _crashed(inputs: Inputs, actions: Actions, error: Callable[[], LlamaswapError]) -> None:
    actions.show(STOPPING)
    actions.terminate().begin(CRASH_GRACE)


@Starting.upon(Inputs.port_lost).to(Stopping)
@Resuming.upon(Inputs.exited).to(Stopping)
@Suspending.upon(Inputs.exited).to(Stopping)
@Suspended.upon(Inputs.exited).to(Stopping)
def _exited(inputs: Inputs, actions: Actions, task: StateTask, error: Callable[[], LlamaswapError]) -> None:
    task.abandon()
    actions.terminate().begin(CRASH_GRACE)


@Resuming.upon(Inputs.resume_failed).to(Stopping)
@Suspending.upon(Inputs.suspend_failed).to(Stopping)
def _stop_instead(inputs: Inputs, actions: Actions, task: StateTask) -> None:
    task.abandon()
    actions.terminate().begin(task.failure_grace)


# A caller wants it suspended.


@Ready.upon(Inputs.want_suspended).to(Suspending)
@Resuming.upon(Inputs.want_suspended).to(Suspending)
def _begin_suspending(inputs: Inputs, actions: Actions, task: StateTask, waiter: Deferred[None], grace: float) -> None:
    task.abandon()
    actions.show(STOPPING)
    actions.waiters.abort()
    actions.waiters.add_stop(waiter)


@Suspending.upon(Inputs.want_suspended, nodata=True).loop()
def _suspend_without_resume(inputs: Inputs, actions: Actions, waiter: Deferred[None], grace: float) -> None:
    actions.waiters.abort()
    actions.waiters.add_stop(waiter)


@Suspending.upon(Inputs.suspended, nodata=True).to(Suspended)
def _is_suspended(inputs: Inputs, actions: Actions) -> None:
    actions.show(SUSPENDED)
    actions.waiters.stopped()


@Suspending.upon(Inputs.suspended_and_wanted, nodata=True).to(Resuming)
def _resume_at_once(inputs: Inputs, actions: Actions) -> None:
    actions.show(SUSPENDED)
    actions.show(STARTING)
    actions.waiters.stopped()


# A caller wants it stopped.


@Ready.upon(Inputs.want_stopped, nodata=True).to(Stopping)
def _stop(inputs: Inputs, actions: Actions, waiter: Deferred[None], grace: float) -> None:
    actions.show(STOPPING)
    actions.waiters.add_stop(waiter)
    actions.terminate().begin(grace)


@Starting.upon(Inputs.want_stopped).to(Stopping)
@Starting.upon(Inputs.want_suspended).to(Stopping)
@Resuming.upon(Inputs.want_stopped).to(Stopping)
@Suspending.upon(Inputs.want_stopped).to(Stopping)
@Suspended.upon(Inputs.want_stopped).to(Stopping)
def _abort(inputs: Inputs, actions: Actions, task: StateTask, waiter: Deferred[None], grace: float) -> None:
    task.abandon()
    actions.waiters.abort()
    actions.waiters.add_stop(waiter)
    actions.terminate().begin(min(grace, task.max_grace))


@Stopping.upon(Inputs.want_stopped).loop()
@Stopping.upon(Inputs.want_suspended).loop()
def _stop_without_restart(
    inputs: Inputs, actions: Actions, stop: StopInProgress, waiter: Deferred[None], grace: float
) -> None:
    actions.waiters.abort()
    actions.waiters.add_stop(waiter)
    stop.shorten_grace(grace)


@Stopping.upon(Inputs.exited).loop()
def _leader_exited(inputs: Inputs, actions: Actions, stop: StopInProgress, error: Callable[[], LlamaswapError]) -> None:
    stop.proceed()


@Stopping.upon(Inputs.drained).to(Stopped)
def _stopped(inputs: Inputs, actions: Actions, stop: StopInProgress) -> None:
    actions.show(STOPPED)
    actions.waiters.stopped()


@Stopping.upon(Inputs.drained_and_wanted, nodata=True).to(Starting)
def _start_again(inputs: Inputs, actions: Actions) -> None:
    actions.show(STOPPED)
    actions.show(STARTING)
    actions.waiters.stopped()


# Every other event comes too late: its sender could not know that the state has changed.

_EVENTS: tuple[Callable[..., None], ...] = (
    *(Inputs.probe_passed, Inputs.start_failed, Inputs.port_lost, Inputs.resume_failed, Inputs.suspended),
    *(Inputs.suspended_and_wanted, Inputs.suspend_failed, Inputs.exited, Inputs.drained, Inputs.drained_and_wanted),
    *(Inputs.adopted, Inputs.adopted_suspended, Inputs.want_cleaned),
)
_HANDLED: dict[Any, tuple[Callable[..., None], ...]] = {
    Stopped: (Inputs.adopted, Inputs.adopted_suspended, Inputs.want_cleaned),
    Starting: (Inputs.probe_passed, Inputs.start_failed, Inputs.port_lost, Inputs.exited),
    Ready: (Inputs.exited,),
    Suspending: (Inputs.suspended, Inputs.suspended_and_wanted, Inputs.suspend_failed, Inputs.exited),
    Suspended: (Inputs.exited,),
    Resuming: (Inputs.probe_passed, Inputs.resume_failed, Inputs.exited),
    Stopping: (Inputs.exited, Inputs.drained, Inputs.drained_and_wanted),
}
for _state, _handled in _HANDLED.items():
    for _event in _EVENTS:
        if _event not in _handled:
            _state.upon(_event).loop().returns(None)

machine = builder.build()
