"""What was written: the last bytes of each log, and whoever wants to read along.

A monitor takes raw bytes (a model's output is never parsed, cut into lines or decoded here), keeps the last
100 KiB and tells its subscribers. Writing never waits: a reader that is slow loses bytes and is told how many.
This module must not know HTTP, files or the reactor. It belongs to the reactor's thread.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping

from attrs import Factory, define, field
from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from zope.interface import implementer

HISTORY = 102_400  # bytes a monitor remembers; the size readers of /logs are used to
MARK = 1.0  # seconds between two places in a log of which the time is known
READER_BOUND = 256 * 1024  # bytes kept for one paused reader: more than a whole history, and no more

log = Logger()


def dropped_marker(count: int) -> bytes:
    """The line a reader finds where bytes are missing."""
    return f"\n\N{EM DASH} {count} bytes dropped \N{EM DASH}\n".encode()


class RingBuffer:
    """The last `capacity` bytes of everything added; may begin in the middle of a line."""

    __slots__ = ("_buffer", "_capacity", "_limit")

    def __init__(self, capacity: int = HISTORY) -> None:
        self._capacity = capacity
        # Trimming only every half capacity makes the copying cost a constant per byte, whatever the chunk size.
        self._limit = capacity + capacity // 2
        self._buffer = bytearray()

    def add(self, data: bytes) -> None:
        """Append; the oldest bytes go."""
        if len(data) >= self._capacity:
            self._buffer = bytearray(data[-self._capacity :])
            return
        self._buffer += data
        if len(self._buffer) > self._limit:
            del self._buffer[: -self._capacity]

    def content(self) -> bytes:
        """What is remembered, oldest first."""
        return bytes(self._buffer[-self._capacity :])

    def clear(self) -> None:
        """Forget everything."""
        self._buffer = bytearray()


@implementer(IPushProducer)
@define(eq=False)
class Subscription:
    """One reader of a monitor: a push producer, so that a socket's transport can pause it.

    While paused, up to `bound` bytes wait; what is beyond is dropped, newest first, and the reader finds a
    marker with the number of missing bytes where they would have been.
    """

    _deliver: Callable[[bytes], None]
    _leave: Callable[[Subscription], None]
    _bound: int = READER_BOUND
    dropped: int = field(default=0, init=False)
    _missing: int = field(default=0, init=False)
    _paused: bool = field(default=False, init=False)
    _closed: bool = field(default=False, init=False)
    _waiting: deque[bytes] = field(factory=deque, init=False)
    _waiting_bytes: int = field(default=0, init=False)

    def offer(self, data: bytes) -> None:
        """New bytes of the monitor: delivered at once, kept, or counted as lost."""
        if self._closed:
            return
        if not self._paused:
            self._deliver(data)
        elif self._missing or self._waiting_bytes + len(data) > self._bound:
            # Once something is missing, later bytes are too, until the reader is back: the gap stays one gap.
            self._missing += len(data)
            self.dropped += len(data)
        else:
            self._waiting.append(data)
            self._waiting_bytes += len(data)

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        held = b"".join(self._waiting)
        self._waiting.clear()
        self._waiting_bytes = 0
        if self._missing:
            held += dropped_marker(self._missing)
            self._missing = 0
        if held and not self._closed:
            self._deliver(held)

    def stopProducing(self) -> None:
        self.close()

    def close(self) -> None:
        """Read no further. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._waiting.clear()
        self._leave(self)


@define(eq=False)
class LogMonitor:
    """One named log: its history and its readers."""

    name: str
    _ring: RingBuffer = Factory(RingBuffer)
    _readers: tuple[Subscription, ...] = ()
    _feeds: tuple[Callable[[bytes], None], ...] = ()
    _wall: Callable[[], float] = time.time
    _written: int = field(default=0, init=False)
    _marked: float = field(default=0.0, init=False)
    _marks: deque[tuple[int, float]] = field(factory=deque, init=False)

    def write(self, data: bytes) -> None:
        """Remember `data` and pass it on. Never waits, never raises."""
        if not data:
            return
        now = self._wall()
        if not 0 <= now - self._marked < MARK:
            self._mark(now)
        self._written += len(data)
        self._ring.add(data)
        for feed in self._feeds:
            feed(data)
        for reader in self._readers:
            try:
                reader.offer(data)
            except Exception:  # a reader's fault must not reach the server whose output this is
                reader.close()
                log.failure("a reader of the log {name} failed and was dropped", name=self.name)

    def remember(self, data: bytes) -> None:
        """What was written before there was this monitor: it becomes history, nobody is told."""
        self._written += len(data)
        self._ring.add(data)

    def _mark(self, now: float) -> None:
        # What follows was written now. Of the marks before the history one is enough: it tells of the history's start.
        self._marked = now
        self._marks.append((self._written, now))
        start = self._written - HISTORY
        while len(self._marks) > 1 and self._marks[1][0] <= start:
            self._marks.popleft()

    def times(self) -> list[tuple[int, float]]:
        """Places in the history (lines from its beginning, 0 the first) and the unix time at which each was written.

        A line lasts from its mark to the next; lines before the first mark were written nobody knows when.
        """
        history = self.history()
        start = self._written - len(history)
        found: dict[int, float] = {}
        lines, at = 0, 0
        for place, when in self._marks:
            offset = max(0, place - start)
            lines += history.count(b"\n", at, offset)
            at = max(at, offset)
            # A line that was begun earlier keeps the time of its beginning.
            whole = offset == 0 or history[offset - 1 : offset] == b"\n"
            line = lines if whole else lines + 1
            if whole or line not in found:
                found[line] = when
        return sorted(found.items())

    def history(self) -> bytes:
        """The last bytes written, at most the ring's capacity."""
        return self._ring.content()

    def subscribe(self, deliver: Callable[[bytes], None], *, bound: int = READER_BOUND) -> Subscription:
        """Deliver every later write; the subscription pauses, resumes and closes it."""
        reader = Subscription(deliver, self._forget, bound)
        self._readers = (*self._readers, reader)
        return reader

    @property
    def readers(self) -> int:
        """How many read along now."""
        return len(self._readers)

    def feed(self, into: Callable[[bytes], None]) -> None:
        """Wire a permanent receiver (another monitor's `write`, stdout); it must neither wait nor raise."""
        self._feeds = (*self._feeds, into)

    def _forget(self, reader: Subscription) -> None:
        self._readers = tuple(other for other in self._readers if other is not reader)


def _nowhere(data: bytes) -> None:
    """The stdout of a service that has none."""


def _to_no_file(name: str, data: bytes) -> None:
    """Nor files."""


class LogRegistry:
    """All monitors: `proxy` (our own lines), `upstream` (every server's output), `combined`, and one per model.

    `to_stdout` (logToStdout) says what the combined history and stdout get: proxy, upstream, both or none. It
    is fixed for the life of the book. `stdout` must take bytes without waiting (see stdout.StdoutWriter), and so must
    `to_file`, which gets a log's name and its bytes (see logfiles.LogFiles).
    """

    def __init__(
        self,
        *,
        to_stdout: str = "proxy",
        stdout: Callable[[bytes], None] = _nowhere,
        to_file: Callable[[str, bytes], None] = _to_no_file,
    ) -> None:
        self._to_file = to_file
        self.proxy = LogMonitor("proxy")
        self.upstream = LogMonitor("upstream")
        self.combined = LogMonitor("combined")
        self._models: dict[str, LogMonitor] = {}
        if to_stdout in ("proxy", "both"):
            self.proxy.feed(self.combined.write)
        if to_stdout in ("upstream", "both"):
            self.upstream.feed(self.combined.write)
        self.combined.feed(stdout)
        self.proxy.feed(lambda data: to_file("llamaswap", data))

    def model(self, name: str) -> LogMonitor:
        """The model's own log, made when first asked for; it survives unloading."""
        monitor = self._models.get(name)
        if monitor is None:
            monitor = self._models[name] = LogMonitor(name)
            monitor.feed(self.upstream.write)
            monitor.feed(lambda data: self._to_file(f"model-{name}", data))
        return monitor

    def writer(self, name: str) -> Callable[[bytes], None]:
        """Where a model's server writes its output."""
        return self.model(name).write

    def histories(self) -> dict[str, bytes]:
        """What each log remembers; a model's is under "model:" and its name."""
        ours = {monitor.name: monitor.history() for monitor in (self.proxy, self.upstream, self.combined)}
        return ours | {f"model:{name}": monitor.history() for name, monitor in self._models.items()}

    def remember(self, histories: Mapping[str, bytes]) -> None:
        """Begin with what another book remembered (`histories`)."""
        ours = {monitor.name: monitor for monitor in (self.proxy, self.upstream, self.combined)}
        for name, content in histories.items():
            model = name.removeprefix("model:")
            monitor = self.model(model) if model != name else ours.get(name)
            if monitor is not None:
                monitor.remember(content)

    def retain(self, models: Iterable[str]) -> None:
        """After a reload: forget the logs of models that are configured no more, unless somebody reads them."""
        keep = set(models)
        for name in [name for name, monitor in self._models.items() if name not in keep and not monitor.readers]:
            del self._models[name]
