"""Learns what the servers of models use: which measurements count, under which key, and whether a server was squeezed.

A server is squeezed if it adapted itself to the memory that was free when it was loaded, as llama.cpp does: it then
uses less than it would. Keys and the store block: their work is done by `run`, one job after the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from attrs import define, field, frozen
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from llamaswap.memory.footprints import Footprint, FootprintStore, Measurement
from llamaswap.memory.measure import ModelUse
from llamaswap.memory.needs import anonymous, total_of
from llamaswap.scheduling.memory import RAM, MemoryNeed

SECOND_MEASUREMENT = 3.0  # seconds after readiness: some engines allocate more when they are ready
REQUEST_INTERVAL = 5.0  # seconds between two measurements after requests
SHRUNK = 0.85  # of the expected GPU memory; a server that uses less, while less was free, is squeezed

log = Logger()
T = TypeVar("T")

_OFFLOADED = re.compile(rb"offloaded (\d+)/(\d+) layers")
_NO_ROOM = b"cannot meet free memory target"
_LAYER_OPTIONS = ("-ngl", "--gpu-layers", "--n-gpu-layers")


class RunInThread(Protocol):
    """Does `work` on a thread that may block; the Deferred fires on the reactor's thread."""

    def __call__(self, work: Callable[[], T], /) -> Deferred[T]: ...


@frozen
class GpuRoom:
    """MiB on all GPUs: `left` by other models and foreign programs, and the `whole` that foreign programs leave."""

    left: int
    whole: int


@define(eq=False)
class _Process:
    """One process of a model's server. `key` is set by the worker."""

    argv: Sequence[str] = ()
    expected: MemoryNeed | None = None
    key: str | None = None
    ready_at: float | None = None
    load_seconds: float | None = None
    measured_at: float = 0.0
    count: int = 0
    asked: bool = False
    squeezed: bool = False


def asked_layers(argv: Sequence[str]) -> int | None:
    """The number of layers that a llama.cpp command wants on GPUs; None for all of them."""
    for at, word in enumerate(argv):
        option, equals, value = word.partition("=")
        if option in _LAYER_OPTIONS:
            value = value if equals else "".join(argv[at + 1 : at + 2])
            return int(value) if value.isdigit() else None
    return None


def says_squeezed(output: bytes, argv: Sequence[str]) -> bool:
    """Whether a llama.cpp server says in its output that it adapted itself to little memory."""
    if _NO_ROOM in output:
        return True
    found = _OFFLOADED.findall(output)
    if not found:
        return False
    loaded, layers = map(int, found[-1])
    asked = asked_layers(argv)
    return loaded < (layers if asked is None else min(layers, asked))


@define(eq=False, kw_only=True)
class Learner:
    """Learns for the models of the configuration. `footprints` is what is known of each.

    `key_of` returns a function that makes a model's key and may block; `chosen` says whether llamaswap chooses the GPUs
    of a model, `output` gives what its server has printed since its start. `changed` is called after `footprints`.
    """

    run: RunInThread
    seconds: Callable[[], float]
    store: FootprintStore
    key_of: Callable[[str], Callable[[], str]]
    chosen: Callable[[str], bool]
    output: Callable[[str], bytes]
    changed: Callable[[], None]
    footprints: dict[str, Footprint] = field(factory=dict, init=False)
    _processes: dict[str, _Process] = field(factory=dict, init=False)

    def look_up(self, models: Sequence[str]) -> Deferred[None]:
        """Find what is known of these models, which are all of the configuration."""
        keys = {model: self.key_of(model) for model in models}
        store = self.store

        def find() -> dict[str, Footprint]:
            found = {model: store.find(model, make_key()) for model, make_key in keys.items()}
            return {model: footprint for model, footprint in found.items() if footprint is not None}

        def keep(found: dict[str, Footprint]) -> None:
            self.footprints = found
            self.changed()

        return self.run(find).addCallbacks(keep, _log_failure)

    def keep_in(self, store: FootprintStore) -> None:
        """Use another store from now on."""
        old, self.store = self.store, store
        self.run(old.close).addErrback(_log_failure)

    # -- a server ------------------------------------------------------------------------------------------

    def started(self, model: str, argv: Sequence[str], expected: MemoryNeed | None) -> None:
        """A process of the model was started. `expected` is what is known of its need."""
        process = self._processes[model] = _Process(argv, expected)
        make_key, store = self.key_of(model), self.store

        def find() -> Footprint | None:
            process.key = make_key()
            return store.find(model, process.key)

        self.run(find).addCallbacks(lambda found: self._found(model, found), _log_failure)

    def ready(self, model: str, load_seconds: float | None, *, has_gpus: bool) -> None:
        """The process is ready, after a load that took so long."""
        process = self._processes.get(model)
        if process is not None and process.ready_at is None:
            process.ready_at, process.load_seconds = self.seconds(), load_seconds
            process.squeezed = has_gpus and says_squeezed(self.output(model), process.argv)

    def request_ended(self, model: str) -> None:
        """A request was served: the server may use more than before."""
        process = self._processes.get(model)
        if process is not None:
            process.asked = True

    def ended(self, model: str) -> None:
        """The process has ended, or was suspended."""
        self._processes.pop(model, None)

    def due(self, model: str) -> bool:
        """Whether the next measurement of the model counts."""
        process = self._processes.get(model)
        if process is None or process.ready_at is None:
            return False
        now = self.seconds()
        if process.count < 2 and now >= process.ready_at + SECOND_MEASUREMENT * process.count:
            return True
        return process.asked and now >= process.measured_at + REQUEST_INTERVAL

    def measured(self, model: str, use: ModelUse, room: GpuRoom | None, *, final: bool = False) -> None:
        """Learn from a measurement. `room` is that of the model on the GPUs, None without GPUs; `final` says that the
        server is being stopped."""
        process = self._processes.get(model)
        if process is None or process.ready_at is None:
            return
        first = not process.count
        if first and not process.squeezed:
            process.squeezed = _is_shrunk(process.expected, use, room)
        process.count += 1
        process.measured_at, process.asked = self.seconds(), False
        sizes = anonymous(use.sizes) if self.chosen(model) else use.sizes
        seconds = process.load_seconds if first else None
        measurement = Measurement(sizes, use.source, first, final and not first, process.squeezed, seconds)
        store = self.store

        def add() -> Footprint | None:
            return store.add(model, process.key, measurement) if process.key is not None else None

        self.run(add).addCallbacks(lambda found: self._found(model, found), _log_failure)

    def _found(self, model: str, found: Footprint | None) -> None:
        if found is not None:
            self.footprints[model] = found
            self.changed()


def _is_shrunk(expected: MemoryNeed | None, use: ModelUse, room: GpuRoom | None) -> bool:
    """Whether a server uses clearly less than expected, because others left too little for that.

    An expectation that the empty machine could not meet was wrong: what the server uses then is learned.
    """
    if expected is None or room is None:
        return False
    wanted = total_of(expected)
    return room.left < wanted <= room.whole and on_gpus(use.sizes) < wanted * SHRUNK


def on_gpus(sizes: Mapping[str, int]) -> int:
    """MiB on all GPUs."""
    return sum(size for device, size in sizes.items() if device != RAM)


def _log_failure(failure: Failure) -> None:
    log.failure("a footprint could not be kept", failure)
