"""The logs: the last bytes of each, and its readers.

A monitor takes raw bytes (a model's output is not parsed, split or decoded here), keeps the last 100 KiB and passes
them to its readers. Writing never waits: a slow reader loses bytes, and gets their number. This module must not know
HTTP, files or the reactor. Use it only in the reactor's thread.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping

from attrs import Factory, define, field
from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from zope.interface import implementer

HISTORY_SIZE = 102_400  # bytes that a monitor keeps, as the Go program does
MARK_INTERVAL = 1.0  # seconds between two offsets in a log whose time is recorded
READER_BOUND = 256 * 1024  # bytes kept for one paused reader: more than a history

log = Logger()


def dropped_marker(count: int) -> bytes:
    """The line that replaces missing bytes."""
    return f"\n\N{EM DASH} {count} bytes dropped \N{EM DASH}\n".encode()


class RingBuffer:
    """The last `capacity` of the bytes added; it may begin in the middle of a line."""

    __slots__ = ("_buffer", "_capacity", "_limit")

    def __init__(self, capacity: int = HISTORY_SIZE) -> None:
        self._capacity = capacity
        # It is only trimmed after half a capacity more, so that copying costs the same per byte for any chunk size.
        self._limit = capacity + capacity // 2
        self._buffer = bytearray()

    def add(self, data: bytes) -> None:
        """Append bytes and drop the oldest."""
        if len(data) >= self._capacity:
            self._buffer = bytearray(data[-self._capacity :])
            return
        self._buffer += data
        if len(self._buffer) > self._limit:
            del self._buffer[: -self._capacity]

    def content(self) -> bytes:
        """The kept bytes, oldest first."""
        return bytes(self._buffer[-self._capacity :])


@implementer(IPushProducer)
@define(eq=False)
class Subscription:
    """One reader of a monitor: a push producer, so that a socket's transport can pause it.

    While paused, it keeps up to `bound` bytes; later bytes are dropped, and a line with their number replaces them.
    """

    _deliver: Callable[[bytes], None]
    _leave: Callable[[Subscription], None]
    _bound: int = READER_BOUND
    _missing: int = field(default=0, init=False)
    _paused: bool = field(default=False, init=False)
    _closed: bool = field(default=False, init=False)
    _held: bytearray = field(factory=bytearray, init=False)

    def offer(self, data: bytes) -> None:
        """Deliver new bytes of the monitor, keep them, or count them as dropped."""
        if self._closed:
            return
        if not self._paused:
            self._deliver(data)
        elif self._missing or len(self._held) + len(data) > self._bound:
            # After the first dropped bytes all are dropped until the reader resumes, so that there is one gap.
            self._missing += len(data)
        else:
            self._held += data

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        held, self._held = bytes(self._held), bytearray()
        if self._missing:
            held += dropped_marker(self._missing)
            self._missing = 0
        if held and not self._closed:
            self._deliver(held)

    def stopProducing(self) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._held.clear()
        self._leave(self)


@define(eq=False)
class LogMonitor:
    """One named log: its history and its readers."""

    name: str
    _ring: RingBuffer = Factory(RingBuffer)
    _readers: tuple[Subscription, ...] = ()
    _feeds: tuple[Callable[[bytes], None], ...] = ()
    _wall: Callable[[], float] = time.time
    written: int = field(default=0, init=False)
    """The number of bytes written since the program began, with the remembered ones."""
    _marked: float = field(default=0.0, init=False)
    _marks: deque[tuple[int, float]] = field(factory=deque, init=False)

    def write(self, data: bytes) -> None:
        """Keep `data` and pass it on. Never waits, never raises."""
        if not data:
            return
        now = self._wall()
        if not 0 <= now - self._marked < MARK_INTERVAL:
            self._mark(now)
        self.written += len(data)
        self._ring.add(data)
        for feed in self._feeds:
            feed(data)
        for reader in self._readers:
            try:
                reader.offer(data)
            except Exception:  # a fault in a reader must not reach the server that wrote this
                reader.close()
                log.failure("a reader of the log {name} failed and was dropped", name=self.name)

    def remember(self, data: bytes) -> None:
        """Add earlier output to the history, without passing it to readers."""
        self.written += len(data)
        self._ring.add(data)

    def _mark(self, now: float) -> None:
        # Later bytes were written at `now`. Of the marks before the history only the last is needed, for its beginning.
        self._marked = now
        self._marks.append((self.written, now))
        start = self.written - HISTORY_SIZE
        while len(self._marks) > 1 and self._marks[1][0] <= start:
            self._marks.popleft()

    def times(self) -> list[tuple[int, float]]:
        """Lines of the history, counted from 0, with the unix time at which each was written.

        The lines up to the next one have the same time; the time of lines before the first one is unknown.
        """
        history = self.history()
        start = self.written - len(history)
        found: dict[int, float] = {}
        lines, at = 0, 0
        for written, when in self._marks:
            offset = max(0, written - start)
            lines += history.count(b"\n", at, offset)
            at = max(at, offset)
            # A line that began earlier keeps the time of its beginning.
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
        """The number of readers."""
        return len(self._readers)

    def feed(self, into: Callable[[bytes], None]) -> None:
        """Add a permanent receiver (another monitor's `write`, stdout), which must neither wait nor raise."""
        self._feeds = (*self._feeds, into)

    def _forget(self, reader: Subscription) -> None:
        self._readers = tuple(other for other in self._readers if other is not reader)


class LogRegistry:
    """All monitors: `proxy` (our own lines), `upstream` (every server's output), `combined`, and one per model.

    `to_stdout` (logToStdout) says what the combined history and stdout get: proxy, upstream, both or none. `stdout`
    (see stdout.StdoutWriter) and `to_file`, which gets a log's name and bytes (see logfiles.LogFiles), must not wait.
    """

    def __init__(
        self,
        *,
        to_stdout: str = "proxy",
        stdout: Callable[[bytes], None] = lambda data: None,
        to_file: Callable[[str, bytes], None] = lambda name, data: None,
    ) -> None:
        self._to_file = to_file
        self.proxy = LogMonitor("proxy")
        self.upstream = LogMonitor("upstream")
        self.combined = LogMonitor("combined")
        self.built_in = {monitor.name: monitor for monitor in (self.proxy, self.upstream, self.combined)}
        self._models: dict[str, LogMonitor] = {}
        if to_stdout in ("proxy", "both"):
            self.proxy.feed(self.combined.write)
        if to_stdout in ("upstream", "both"):
            self.upstream.feed(self.combined.write)
        self.combined.feed(stdout)
        self.proxy.feed(lambda data: to_file("llamaswap", data))

    def model(self, name: str) -> LogMonitor:
        """The model's log, made by the first call; it survives unloading."""
        monitor = self._models.get(name)
        if monitor is None:
            monitor = self._models[name] = LogMonitor(name)
            monitor.feed(self.upstream.write)
            monitor.feed(lambda data: self._to_file(f"model-{name}", data))
        return monitor

    def _all(self) -> dict[str, LogMonitor]:
        """Each log by its name; a model's is under "model:" and its name."""
        return self.built_in | {f"model:{name}": monitor for name, monitor in self._models.items()}

    def histories(self) -> dict[str, bytes]:
        """The history of each log."""
        return {name: monitor.history() for name, monitor in self._all().items()}

    def remember(self, histories: Mapping[str, bytes]) -> None:
        """Begin with the `histories` of another registry."""
        for name in histories:
            if name.startswith("model:"):
                self.model(name.removeprefix("model:"))
        monitors = self._all()
        for name in histories.keys() & monitors.keys():
            monitors[name].remember(histories[name])

    def retain(self, models: Iterable[str]) -> None:
        """After a reload: drop the logs of models that are not configured any more and have no reader."""
        keep = set(models)
        for name in [name for name, monitor in self._models.items() if name not in keep and not monitor.readers]:
            del self._models[name]
