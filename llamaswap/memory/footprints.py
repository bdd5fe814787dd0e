"""Footprints: how much memory servers were measured to use, by key, in a file beside the activity store or in memory.

All methods block, and run on one worker's thread. While the file cannot be used, rows are kept in memory; they are
written when it can be used again. This module must not know when measurements are taken.
"""

from __future__ import annotations

import json
import math
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from attrs import Factory, define, evolve, field, frozen

from llamaswap.scheduling.memory import Sizes
from llamaswap.sqlite_file import RETRY_DELAY, connect, is_corrupt, set_aside

STORE_NAME = "footprints.db"  # beside the activity store
MAX_SAMPLES = 200  # of each device and key
MAX_LOADS = 20  # load times of each key
MAX_KEYS = 8  # of one model; the oldest are dropped
MAX_ROWS = 1000  # of all models
MARGIN = 1.02  # measurements are rounded, and the next process is not exactly the same
WRITE_INTERVAL = 30.0  # seconds; the first measurements of a process are written at once
LOCK_TIMEOUT = 1.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS footprints (
    key TEXT PRIMARY KEY,
    model TEXT NOT NULL,
    last REAL NOT NULL,
    squeezed INTEGER NOT NULL,
    content TEXT NOT NULL
)
"""


@frozen
class Footprint:
    """What is known of a server. `sizes` is what to expect of it, MiB by device; empty if nothing was learned.

    `kind` is the source of the newest sample, `n` the number of samples, `peak` the largest of the newest process.
    `squeezed`: the newest process adapted itself to too little memory, and was not learned. `carried`: the values are
    those of an earlier command, file or program of the model.
    """

    key: str
    model: str
    sizes: Sizes = Factory(dict)
    kind: str = ""
    n: int = 0
    p50: Sizes = Factory(dict)
    p95: Sizes = Factory(dict)
    peak: Sizes = Factory(dict)
    squeezed: bool = False
    carried: bool = False
    last: float = 0.0
    load_seconds: float | None = None


@frozen
class Measurement:
    """One measurement of a server. `first`: of its process; then `load_seconds` is how long the load took, if known.

    The last one before a stop (`final`) can only raise the peak, because the process may have begun to free memory.
    """

    sizes: Sizes
    kind: str
    first: bool = False
    final: bool = False
    squeezed: bool = False
    load_seconds: float | None = None


@define
class _Row:
    key: str
    model: str
    last: float = 0.0
    squeezed: bool = False
    kind: str = ""
    n: int = 0
    samples: dict[str, list[int]] = Factory(dict)
    peak: dict[str, int] = Factory(dict)
    loads: list[float] = Factory(list)

    def footprint(self) -> Footprint:
        p50 = {device: int(percentile(values, 0.5)) for device, values in self.samples.items()}
        p95 = {device: int(percentile(values, 0.95)) for device, values in self.samples.items()}
        sizes = {device: round(max(p95.get(device, 0), size) * MARGIN) for device, size in self.peak.items()}
        return Footprint(
            key=self.key,
            model=self.model,
            sizes=sizes,
            kind=self.kind,
            n=self.n,
            p50=p50,
            p95=p95,
            peak=dict(self.peak),
            squeezed=self.squeezed,
            last=self.last,
            load_seconds=percentile(self.loads, 0.5) if self.loads else None,
        )

    def preceded_by(self, other: _Row) -> None:
        """Add what was measured before this row began."""
        devices = {**other.samples, **self.samples}
        before, after = other.samples, self.samples
        self.samples = {one: [*before.get(one, ()), *after.get(one, ())][-MAX_SAMPLES:] for one in devices}
        self.n += other.n
        self.loads = [*other.loads, *self.loads][-MAX_LOADS:]
        self.peak = self.peak or other.peak

    def add(self, measured: Measurement) -> None:
        if measured.load_seconds is not None:
            self.loads = [*self.loads, measured.load_seconds][-MAX_LOADS:]
        if measured.squeezed or measured.first:
            self.squeezed = measured.squeezed
        if measured.squeezed or (measured.final and not self.peak):
            return
        if measured.final:
            self.peak = _larger(self.peak, measured.sizes)
            return
        self.kind, self.n = measured.kind, self.n + 1
        self.peak = dict(measured.sizes) if measured.first else _larger(self.peak, measured.sizes)
        for device, size in measured.sizes.items():
            self.samples[device] = [*self.samples.get(device, ()), size][-MAX_SAMPLES:]


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that is at least as large as this share of them."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def _plausible(number: float) -> float:
    """A number of a file. Raises ValueError if it is negative, infinite or NaN."""
    if not 0 <= number < math.inf:
        raise ValueError("not a size or a time")
    return number


def _larger(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {device: max(one.get(device, 0), other.get(device, 0)) for device in {**one, **other}}


@define(eq=False)
class FootprintStore:
    """The footprints of all models. `say` writes to the log, `seconds` is a monotonic clock, `wall` the time."""

    _path: str | None
    say: Callable[[str], None]
    seconds: Callable[[], float]
    wall: Callable[[], float] = time.time
    stamp: Callable[[], str] = lambda: time.strftime("%Y%m%d-%H%M%S")
    problem: str = field(default="", init=False)
    _rows: dict[str, _Row] = field(factory=dict, init=False)
    _unwritten: set[str] = field(factory=set, init=False)
    _removed: set[str] = field(factory=set, init=False)
    _connection: sqlite3.Connection | None = field(default=None, init=False)
    _write_at: float = field(default=0.0, init=False)
    _retry_at: float = field(default=0.0, init=False)
    _read: bool = field(default=False, init=False)

    def find(self, model: str, key: str) -> Footprint | None:
        """The footprint of this key; else what is carried over from the model's newest other key."""
        if not self._read:
            self._exchange()
        row = self._rows.get(key)
        if row is not None and row.peak:
            return row.footprint()
        others = [other for other in self._rows.values() if other.model == model and other.peak]
        if not others:
            return None if row is None else row.footprint()
        newest = max(others, key=lambda other: other.last)
        squeezed = row is not None and row.squeezed
        return evolve(newest.footprint(), key=key, n=0, squeezed=squeezed, carried=True)

    def add(self, model: str, key: str, measured: Measurement) -> Footprint | None:
        """Learn from a measurement; returns what `find` does."""
        row = self._rows.setdefault(key, _Row(key, model))
        row.model, row.last = model, self.wall()
        row.add(measured)
        self._unwritten.add(key)
        self._prune(model)
        if measured.first or measured.final or measured.squeezed or self.seconds() >= self._write_at:
            self._exchange()
        return self.find(model, key)

    def close(self) -> None:
        """Write what is left, and close the file. Idempotent."""
        if self._unwritten:
            self._retry_at = 0.0
            self._exchange()
        self._disconnect()

    def _prune(self, model: str) -> None:
        newest = sorted(self._rows.values(), key=lambda row: row.last, reverse=True)
        mine = [row for row in newest if row.model == model]
        for key in {row.key for row in (*mine[MAX_KEYS:], *newest[MAX_ROWS:])}:
            del self._rows[key]
            self._unwritten.discard(key)
            self._removed.add(key)

    # -- the file ------------------------------------------------------------------------------------------

    def _exchange(self) -> None:
        """Read the file, unless that was done, and write what is not in it; nothing while it cannot be used."""
        if self._path is None or (self.problem and self.seconds() < self._retry_at):
            self._read = self._path is None
            return
        for _ in range(2):  # the second time with the file that replaces a corrupt one
            try:
                self._read_and_write(self._path)
            except (sqlite3.Error, OSError) as error:
                self._disconnect()
                if is_corrupt(error) and self._replace_corrupt(self._path, error):
                    continue
                self._failed(str(error))
                return
            if self.problem:
                self.problem = ""
                self.say(f"the memory store {self._path} is in use again")
            self._write_at = self.seconds() + WRITE_INTERVAL
            return
        self._failed("it is corrupt again")

    def _read_and_write(self, path: str) -> None:
        if self._connection is None:
            self._connection = connect(path, LOCK_TIMEOUT)
            self._connection.execute(_SCHEMA)
        connection = self._connection
        if not self._read:
            for stored in connection.execute("SELECT key, model, last, squeezed, content FROM footprints"):
                self._restore(*stored)
            self._read = True
        with connection:  # commits, or rolls back after an exception
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("DELETE FROM footprints WHERE key = ?", [(key,) for key in self._removed])
            connection.executemany(
                "INSERT OR REPLACE INTO footprints VALUES (?, ?, ?, ?, ?)",
                [_stored(self._rows[key]) for key in self._unwritten],
            )
        self._unwritten, self._removed = set(), set()

    def _restore(self, key: str, model: str, last: float, squeezed: int, content: str) -> None:
        """Take over a row of the file; one that another program has spoiled is left out."""
        try:
            known = json.loads(content)
            samples = {
                device: [int(_plausible(size)) for size in sizes] for device, sizes in known["samples"].items() if sizes
            }
            peak = {device: int(_plausible(size)) for device, size in known["peak"].items()}
            loads = [float(_plausible(seconds)) for seconds in known["loads"]]
            count = int(_plausible(known["n"]))
            row = _Row(key, model, float(last), bool(squeezed), str(known["kind"]), count, samples, peak, loads)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            return
        if key in self._rows:
            self._rows[key].preceded_by(row)
        elif key not in self._removed:
            self._rows[key] = row

    def _replace_corrupt(self, path: str, error: Exception) -> bool:
        try:
            aside = set_aside(path, self.stamp())
        except OSError:
            return False
        self.say(f"the memory store {path} is corrupt ({error}): it is kept as {aside}, and a new one begins")
        self._read = True
        self._unwritten = set(self._rows)
        return True

    def _failed(self, cause: str) -> None:
        self._retry_at = self.seconds() + RETRY_DELAY
        if not self.problem:
            self.say(
                f"the memory store {self._path} cannot be used: {cause}; what is learned is kept in memory, and the "
                "file is tried again later"
            )
        self.problem = f"the memory store {self._path} cannot be used: {cause}"

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()


def _stored(row: _Row) -> tuple[str, str, float, int, str]:
    content = {"kind": row.kind, "n": row.n, "samples": row.samples, "peak": row.peak, "loads": row.loads}
    return row.key, row.model, row.last, row.squeezed, json.dumps(content)
