"""Readings of the GPUs, and the choice between several sources of them.

A source is read on a worker's thread and may block. This module must not know who shows the readings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import define, field, frozen
from twisted.logger import Logger

RETRY_DELAY = 60.0  # seconds between searches for a source that works: most machines have no GPU

log = Logger()


@frozen
class GpuReading:
    """One GPU at one moment; a value that the source does not give is 0.

    `pci` is its address, if the source knows it. The memory of a `unified` GPU is the machine's. Neither is shown.
    """

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
    pci: str = field(default="", eq=False)
    unified: bool = field(default=False, eq=False)

    @property
    def mem_util_pct(self) -> float:
        """How full the memory is."""
        return self.mem_used_mb / self.mem_total_mb * 100 if self.mem_total_mb else 0.0


@frozen
class GpuSource:
    """One way to read GPUs. `read` may block; it raises an exception if the source does not work here, or stopped
    working. `close` closes what is open, and `read` may open it again."""

    name: str
    read: Callable[[], Sequence[GpuReading]]
    close: Callable[[], None] = lambda: None


@define(eq=False)
class GpuReader:
    """Reads the first of `sources` that works, and searches for another when that one stops working."""

    sources: Sequence[GpuSource]
    seconds: Callable[[], float]
    _chosen: GpuSource | None = field(default=None, init=False)
    _search_at: float = field(default=float("-inf"), init=False)

    def read(self) -> Sequence[GpuReading]:
        """The readings; none if no source works. Blocks; never raises."""
        if self._chosen is not None:
            found = _try(self._chosen)
            if found is not None:
                return found
            log.warn("GPU source {name} stopped; trying another", name=self._chosen.name)
            self._chosen = None
        elif self.seconds() < self._search_at:
            return ()
        for source in self.sources:
            found = _try(source)
            if found:
                self._chosen = source
                log.info("reading GPUs through {name}", name=source.name)
                return found
        self._search_at = self.seconds() + RETRY_DELAY
        return ()

    def close(self) -> None:
        """Close the source until the next reading."""
        if self._chosen is not None:
            self._chosen.close()


def _try(source: GpuSource) -> Sequence[GpuReading] | None:
    try:
        return source.read()
    except Exception as error:  # drivers fail in many ways; the next source may work
        log.debug("GPU source {name}: {error}", name=source.name, error=error)
        source.close()
        return None
