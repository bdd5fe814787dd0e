"""Readings of the GPUs, and the choice between several sources of them.

A source is read on a worker's thread and may block. This module must not know who shows the readings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from attrs import frozen
from twisted.logger import Logger

RETRY_DELAY = 60.0  # seconds between searches for a source that works: most machines have no GPU

log = Logger()


@frozen
class GpuReading:
    """One GPU at one moment; a value that the source does not give is 0."""

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
        """All GPUs now. Raises if this source does not work here, or stopped working. May block."""

    def close(self) -> None:
        """Close what is open. Idempotent; `read` may open it again."""
        return


class GpuReader:
    """Reads the first source that works, and searches for another when that one stops working."""

    def __init__(self, sources: Sequence[GpuSource], seconds: Callable[[], float]) -> None:
        self._sources = tuple(sources)
        self._seconds = seconds
        self._chosen: GpuSource | None = None
        self._search_at = float("-inf")

    def read(self) -> Sequence[GpuReading]:
        """The readings; none if no source works. Blocks; never raises."""
        if self._chosen is not None:
            found = self._try(self._chosen)
            if found is not None:
                return found
            log.warn("GPU source {name} stopped; trying another", name=self._chosen.name)
            self._chosen = None
        elif self._seconds() < self._search_at:
            return ()
        for source in self._sources:
            found = self._try(source)
            if found:
                self._chosen = source
                log.info("reading GPUs through {name}", name=source.name)
                return found
        self._search_at = self._seconds() + RETRY_DELAY
        return ()

    def close(self) -> None:
        """Close the source until the next reading."""
        if self._chosen is not None:
            self._chosen.close()

    @staticmethod
    def _try(source: GpuSource) -> Sequence[GpuReading] | None:
        try:
            return source.read()
        except Exception as error:  # drivers fail in many ways; the next source may work
            log.debug("GPU source {name}: {error}", name=source.name, error=error)
            source.close()
            return None
