"""NVML, the library of NVIDIA's driver: its optional Python binding, opened when it is needed. Blocks."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from attrs import define, field


def binding() -> ModuleType:
    """NVML's Python binding, which is optional: most machines have no NVIDIA GPU."""
    import pynvml  # type: ignore[import-untyped,import-not-found,unused-ignore]  # it ships no types

    return pynvml  # type: ignore[no-any-return,unused-ignore]


@define(eq=False)
class NvmlLibrary:
    """Opens and closes the library. `load` imports the binding, which may raise ImportError."""

    load: Callable[[], ModuleType] = binding
    _opened: ModuleType | None = field(default=None, init=False)

    def open(self) -> ModuleType:
        """The binding; the first call opens the library."""
        if self._opened is None:
            nvml = self.load()
            nvml.nvmlInit()
            self._opened = nvml
        return self._opened

    def close(self) -> None:
        """Close the library until the next `open`, so that GPUs can sleep. Idempotent."""
        if self._opened is not None:
            nvml, self._opened = self._opened, None
            try:
                nvml.nvmlShutdown()
            except nvml.NVMLError:
                pass  # an unloaded driver has nothing to shut down
