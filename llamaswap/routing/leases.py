"""A request's right to use a model's server, and the wait for that right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from llamaswap.config.endpoints import Endpoint
from llamaswap.errors import LlamaswapError, RequestError
from llamaswap.scheduling.effects import Ticket


@define(eq=False)
class ProcessInstance:
    """One process of a model, from ready until it has exited. `unloaded`: an operator stopped it; `unreachable`: its
    host may have ended, see `HostFacts`."""

    endpoint: Endpoint
    generation: int
    lost: bool = False
    unloaded: bool = False
    unreachable: bool = False


class LeaseOwner(Protocol):
    """Receives the events of a lease."""

    def lease_released(self, lease: Lease) -> None: ...

    def reader_stalled(self, lease: Lease, since: float | None) -> None: ...


@define(eq=False)
class Lease:
    """The right to use a model's server. It keeps the model loaded, so release it in a `finally`.

    `interrupt` is called with the reason: another request needs the memory and the client has read nothing for too
    long, or the host of the server is offline.
    """

    ticket: Ticket
    _process: ProcessInstance = field(repr=False)
    _owner: LeaseOwner | None = field(repr=False)
    interrupt: Callable[[LlamaswapError], None] | None = field(default=None, init=False, repr=False)

    @property
    def endpoint(self) -> Endpoint:
        """Where the server listens."""
        return self._process.endpoint

    @property
    def lost(self) -> bool:
        """Whether the server's process has exited."""
        return self._process.lost

    @property
    def may_have_ended(self) -> bool:
        """Whether the server's host may have ended, which is known in some seconds."""
        return self._process.unreachable and not self._process.lost and not self._process.unloaded

    @property
    def unloaded(self) -> bool:
        """Whether an operator unloaded the server: its requests are then not repeated on another process."""
        return self._process.unloaded

    def release(self) -> None:
        """The request has ended. Idempotent."""
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.lease_released(self)

    def reader_stalled(self, since: float | None) -> None:
        """The client has read nothing of its response since then; None: it reads again."""
        if self._owner is not None:
            self._owner.reader_stalled(self, since)


@define(eq=False)
class PendingLease:
    """A request that waits for its lease. `refusal` and `ready` are final when the router returns it.

    `ready`: the model was ready and could be used at once, so `granted` has fired already. `on_position` receives the
    request's 1-based positions in the queue, `number` is that of its ticket.
    """

    model: str
    _leave_queue: Callable[[], None] = field(repr=False)
    on_position: Callable[[int], None] | None = field(default=None, repr=False)
    number: int = 0
    refusal: RequestError | None = field(default=None, init=False)
    ready: bool = field(default=False, init=False)
    _outcome: Lease | Failure | None = field(default=None, init=False)
    _granted: Deferred[Lease] | None = field(default=None, init=False)
    _cancelled: bool = field(default=False, init=False)

    @property
    def granted(self) -> Deferred[Lease]:
        """Fires with the lease or fails with a RequestError; always the same Deferred, cancelling it is `cancel`."""
        if self._granted is None:
            self._granted = Deferred(lambda _: self.cancel())
            self._fire()
        return self._granted

    def cancel(self) -> None:
        """Leave the queue, or release the lease if it was granted. Idempotent, in every phase."""
        if self._cancelled:
            return
        self._cancelled = True
        if isinstance(self._outcome, Lease):
            self._outcome.release()
        elif self._outcome is None:
            self._outcome = Failure(CancelledError())
            self._leave_queue()
            self._fire()

    def settle(self, outcome: Lease | RequestError) -> None:
        """Set the outcome. Only the first one counts; a later lease is released."""
        if self._outcome is not None:
            if isinstance(outcome, Lease):
                outcome.release()
            return
        self._outcome = outcome if isinstance(outcome, Lease) else Failure(outcome)
        self._fire()

    def transfer(self, on_position: Callable[[int], None] | None) -> PendingLease:
        """A second wait for the same ticket; the caller settles this one."""
        return PendingLease(self.model, self._leave_queue, on_position, self.number)

    def _fire(self) -> None:
        if self._granted is not None and self._outcome is not None and not self._granted.called:
            if isinstance(self._outcome, Failure):
                self._granted.errback(self._outcome)
            else:
                self._granted.callback(self._outcome)
