"""The GPUs' readings, and which of several ways to get them is used.

A source is asked on a worker's thread and may block. Must not know who shows the readings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from attrs import frozen
from twisted.logger import Logger

RETRY = 60.0  # seconds between looks for a source while none works: most machines simply have no GPU

log = Logger()


@frozen
class GpuReading:
    """One GPU at one moment; a value a source cannot tell is 0."""

    id: int
    name: str
    uuid: str = ""
    temp_c: float = 0
    vram_temp_c: float = 0
    gpu_util_pct: float = 0
    mem_used_mb: int = 0
    mem_total_mb: int = 0
    fan_speed_pct: float = 0
    power_draw_w: float = 0

    @property
    def mem_util_pct(self) -> float:
        """How full the memory is."""
        return self.mem_used_mb / self.mem_total_mb * 100 if self.mem_total_mb else 0.0


class GpuSource(Protocol):
    """One way to read GPUs."""

    name: str

    def read(self) -> Sequence[GpuReading]:
        """All GPUs now; raises when this way does not work (here, or any more). May block."""

    def close(self) -> None:
        """Give up what is held open. Idempotent; `read` may open it again."""


class GpuReader:
    """Uses the first source that works, and looks for another when it stops working."""

    def __init__(self, sources: Sequence[GpuSource], seconds: Callable[[], float]) -> None:
        self._sources = tuple(sources)
        self._seconds = seconds
        self._chosen: GpuSource | None = None
        self._look_again = float("-inf")

    def read(self) -> Sequence[GpuReading]:
        """The readings, none when no source works. Blocks; never raises."""
        if self._chosen is not None:
            found = self._try(self._chosen)
            if found is not None:
                return found
            log.warn("GPU source {name} stopped; trying another", name=self._chosen.name)
            self._chosen = None
            self._look_again = float("-inf")
        if self._seconds() < self._look_again:
            return ()
        for source in self._sources:
            found = self._try(source)
            if found:
                self._chosen = source
                log.info("reading GPUs through {name}", name=source.name)
                return found
        self._look_again = self._seconds() + RETRY
        return ()

    def rest(self) -> None:
        """Nobody wants readings for a while: hold nothing open."""
        if self._chosen is not None:
            self._chosen.close()

    @staticmethod
    def _try(source: GpuSource) -> Sequence[GpuReading] | None:
        try:
            return source.read()
        except Exception as error:  # drivers fail in any way they like; the next source may do better
            log.debug("GPU source {name}: {error}", name=source.name, error=error)
            source.close()
            return None
