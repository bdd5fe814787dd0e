"""One thread that does blocking work in order: the store, parsing, compressing, the machine's meters.

Results come back on the reactor's thread. Must not know what the work is.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from queue import SimpleQueue
from typing import Protocol, TypeVar

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.python.failure import Failure

from llamaswap.observe.batch_writer import Start, daemon

T = TypeVar("T")


class RunBlocking(Protocol):
    """Does `work` somewhere it may block; the Deferred fires on the reactor's thread."""

    def __call__(self, work: Callable[[], T], /) -> Deferred[T]: ...


def at_once(work: Callable[[], T], /) -> Deferred[T]:
    """A `RunBlocking` that does the work before it returns, on the caller's thread."""
    return maybeDeferred(work)


class WorkerThread:
    """A `RunBlocking` with a thread of its own, started by the first work.

    `from_thread` is the reactor's callFromThread. The thread is a daemon: `close` waits for its work, but
    a disk that hangs does not keep the process from ending. With `collect` False cyclic garbage is not collected during
    the work: a collection over a large result that is being built stops all threads for more than 100 ms.
    """

    def __init__(
        self,
        name: str,
        from_thread: Callable[[Callable[[], None]], object],
        start: Start | None = None,
        *,
        collect: bool = True,
    ) -> None:
        self._name = name
        self._from_thread = from_thread
        self._start = start or daemon(name)
        self._collect = collect
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._started = False
        self._closed = False

    def __call__(self, work: Callable[[], T], /) -> Deferred[T]:
        if self._closed:
            raise RuntimeError(f"the {self._name} worker is closed")
        if not self._started:
            self._started = True
            self._start(self._loop)
        done: Deferred[T] = Deferred()

        def job() -> None:
            try:
                result = work()
            except BaseException:  # whatever it is belongs to whoever asked
                failure = Failure()
                self._from_thread(lambda: done.errback(failure))
            else:
                self._from_thread(lambda: done.callback(result))

        self._queue.put(job)
        return done

    def close(self) -> Deferred[None]:
        """Fires after everything queued is done; nothing is taken any more. Idempotent."""
        if self._closed or not self._started:
            self._closed = True
            return succeed(None)
        last = self(lambda: None)
        self._closed = True
        self._queue.put(None)
        return last

    def _loop(self) -> None:
        while (job := self._queue.get()) is not None:
            paused = not self._collect and gc.isenabled()
            if paused:
                gc.disable()
            try:
                job()
            finally:
                if paused:
                    gc.enable()
