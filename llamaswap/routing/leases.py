"""A request's right to use a server, and its way there."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from llamaswap.config.endpoints import Endpoint
from llamaswap.errors import ReaderStalled, RequestError
from llamaswap.scheduling.effects import Ticket


@define(eq=False)
class ProcessInstance:
    """One process of a model, from ready until it is gone."""

    endpoint: Endpoint
    generation: int
    lost: bool = False
    unloaded: bool = False


@define(eq=False)
class Lease:
    """The right to use a model's server now. Whoever holds one keeps the model loaded: release it in a `finally`.

    `interrupt` is called when the room is needed and the client has stood still for too long.
    """

    ticket: Ticket
    endpoint: Endpoint
    generation: int
    _incarnation: ProcessInstance = field(repr=False)
    _ended: Callable[[Lease], None] | None = field(repr=False)
    _stalled: Callable[[Lease, float | None], None] = field(repr=False)
    interrupt: Callable[[ReaderStalled], None] | None = field(default=None, init=False, repr=False)

    @property
    def model(self) -> str:
        """The model it is for."""
        return self.ticket.model

    @property
    def priority(self) -> int:
        """The request's priority."""
        return self.ticket.priority

    @property
    def lost(self) -> bool:
        """Whether the server it was granted on has exited."""
        return self._incarnation.lost

    @property
    def unloaded(self) -> bool:
        """Whether an operator unloaded the server it was granted on: its requests are not repeated on another."""
        return self._incarnation.unloaded

    def release(self) -> None:
        """The request has ended. Idempotent."""
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(self)

    def reader_stalled(self, since: float | None) -> None:
        """The client has read nothing of its response since then; None: it reads again."""
        if self._ended is not None:
            self._stalled(self, since)


@define(eq=False)
class Acquisition:
    """A request's way to a lease. `refusal` and `ready` are settled when it is handed out.

    `ready` says that the model was ready and free to use: `granted` has fired already.
    """

    model: str
    _leave: Callable[[], None] = field(repr=False)
    on_place: Callable[[int], None] | None = field(default=None, repr=False)
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
            self._tell()
        return self._granted

    def cancel(self) -> None:
        """Nobody wants it any more: leave the queue, or give the lease back. Idempotent, in every phase."""
        if self._cancelled:
            return
        self._cancelled = True
        if isinstance(self._outcome, Lease):
            self._outcome.release()
        elif self._outcome is None:
            self._outcome = Failure(CancelledError())
            self._leave()
            self._tell()

    def settle(self, outcome: Lease | RequestError) -> None:
        """The router's answer; one, ever."""
        if self._outcome is not None:
            if isinstance(outcome, Lease):
                outcome.release()
            return
        self._outcome = outcome if isinstance(outcome, Lease) else Failure(outcome)
        self._tell()

    def _tell(self) -> None:
        if self._granted is not None and self._outcome is not None and not self._granted.called:
            if isinstance(self._outcome, Failure):
                self._granted.errback(self._outcome)
            else:
                self._granted.callback(self._outcome)
