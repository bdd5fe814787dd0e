"""The newest readings of the machine as metric families. Existing dashboards rely on the names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from llamaswap.observe.exposition import MetricFamily
from llamaswap.observe.gpus import GpuReading
from llamaswap.wire.byte_budget import MIB

if TYPE_CHECKING:
    from llamaswap.observe.machine import SystemReading

_GPU: Sequence[tuple[str, str, Callable[[GpuReading], float]]] = (
    ("temperature_celsius", "Temperature of the GPU.", lambda gpu: gpu.temp_c),
    ("vram_temperature_celsius", "Temperature of the GPU's memory.", lambda gpu: gpu.vram_temp_c),
    ("util_percent", "How busy the GPU is.", lambda gpu: gpu.gpu_util_pct),
    ("memory_util_percent", "How full the GPU's memory is.", lambda gpu: gpu.mem_util_pct),
    ("memory_used_bytes", "GPU memory in use.", lambda gpu: gpu.mem_used_mb * MIB),
    ("memory_total_bytes", "GPU memory there is.", lambda gpu: gpu.mem_total_mb * MIB),
    ("fan_speed_percent", "Speed of the GPU's fan.", lambda gpu: gpu.fan_speed_pct),
    ("power_draw_watts", "Power the GPU draws.", lambda gpu: gpu.power_draw_w),
)


def machine_families(system: SystemReading, gpus: Sequence[GpuReading]) -> Iterator[MetricFamily]:
    """The families of the system, then those of the GPUs."""
    cpu = MetricFamily("gauge", "cpu_util_percent", "How busy each core is.", "core")
    cpu.values = {(str(core),): share for core, share in enumerate(system.cpu_util_per_core)}
    yield cpu
    for name, help_text, megabytes in (
        ("memory_total", "Memory there is.", system.mem_total_mb),
        ("memory_used", "Memory in use.", system.mem_used_mb),
        ("memory_free", "Memory nobody uses.", system.mem_free_mb),
        ("swap_total", "Swap space there is.", system.swap_total_mb),
        ("swap_used", "Swap space in use.", system.swap_used_mb),
    ):
        size = MetricFamily("gauge", f"{name}_bytes", help_text)
        size.values[()] = megabytes * MIB
        yield size
    load = MetricFamily("gauge", "load_average", "Processes that want to run.", "interval")
    load.values = {(interval,): value for interval, value in zip(("1m", "5m", "15m"), system.load_avg, strict=True)}
    yield load
    network = MetricFamily("counter", "network_bytes", "Bytes that passed an interface.", "interface", "direction")
    for interface, received, sent in system.net_io:
        network.values[interface, "recv"] = received
        network.values[interface, "sent"] = sent
    yield network
    for name, help_text, value_of in _GPU:
        family = MetricFamily("gauge", f"gpu_{name}", help_text, "id", "name", "uuid")
        for gpu in gpus:
            family.values[(str(gpu.id), gpu.name, gpu.uuid) if gpu.uuid else (str(gpu.id), gpu.name)] = value_of(gpu)
        yield family
