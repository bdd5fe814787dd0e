"""One thread that does blocking work in order: the store, parsing, compressing, the machine's meters.

Results come back on the reactor's thread. This module must not know what the work is.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from functools import partial
from traceback import clear_frames
from typing import Protocol, TypeVar

from attrs import Factory, define, field
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

T = TypeVar("T")


class RunBlocking(Protocol):
    """Does `work` on a thread that may block; the Deferred fires on the reactor's thread."""

    def __call__(self, work: Callable[[], T], /) -> Deferred[T]: ...


def at_once(work: Callable[[], T], /) -> Deferred[T]:
    """A `RunBlocking` that does the work before it returns, on the caller's thread."""
    return maybeDeferred(work)


@define(eq=False)
class WorkerThread:
    """A `RunBlocking` with one thread, which the first work starts.

    The thread is a daemon: `close` waits for its work, but a disk that hangs does not keep the process from ending.
    With `collect` False cyclic garbage is not collected during the work: a collection over a large result that is
    being built stops all threads for more than 100 ms.
    """

    name: str
    reactor: IReactorFromThreads
    _pool: ThreadPool = field(default=Factory(lambda self: ThreadPool(0, 1, self.name), takes_self=True))
    _collect: bool = field(default=True, kw_only=True)
    _started: bool = field(default=False, init=False)
    _closed: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._pool.threadFactory = partial(threading.Thread, daemon=True)  # type: ignore[assignment]

    def __call__(self, work: Callable[[], T], /) -> Deferred[T]:
        if self._closed:
            raise RuntimeError(f"the {self.name} worker is closed")
        if not self._started:
            self._started = True
            self._pool.start()
        only = [work if self._collect else partial(_uncollected, work)]
        return deferToThreadPool(self.reactor, self._pool, _take_and_do, only)

    def close(self) -> Deferred[None]:
        """Fires after all queued work is done; later work is refused. Idempotent."""
        if self._closed or not self._started:
            self._closed = True
            return succeed(None)
        last = self(lambda: None)
        self._closed = True
        return last.addCallback(lambda _: self._pool.stop())


def _take_and_do(only: list[Callable[[], T]]) -> T:
    """Do the work that the list contains, and take it out.

    The thread pool keeps a Failure in a frame to which the error's traceback leads. What else the frames of this cycle
    refer to, a request's body for example, would stay in memory until a full garbage collection.
    """
    try:
        return only.pop()()
    except BaseException as error:
        chain: list[BaseException | None] = [error]
        while chain[-1] is not None and chain[-1] not in chain[:-1]:
            clear_frames(chain[-1].__traceback__)
            chain.append(chain[-1].__context__)
        raise


def _uncollected(work: Callable[[], T]) -> T:
    paused = gc.isenabled()
    gc.disable()
    try:
        return work()
    finally:
        if paused:
            gc.enable()
