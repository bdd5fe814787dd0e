"""The machine's newest readings as Prometheus families; their names are those dashboards already know."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from llamaswap.observe.gpus import GpuReading

MIB = 1024 * 1024


class SystemMetrics(Protocol):
    """What is needed of a system reading."""

    @property
    def cpu_util_per_core(self) -> Sequence[float]: ...
    @property
    def mem_total_mb(self) -> int: ...
    @property
    def mem_used_mb(self) -> int: ...
    @property
    def mem_free_mb(self) -> int: ...
    @property
    def swap_total_mb(self) -> int: ...
    @property
    def swap_used_mb(self) -> int: ...
    @property
    def load_avg(self) -> tuple[float, float, float]: ...
    @property
    def net_io(self) -> Sequence[tuple[str, int, int]]: ...


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


def families(system: SystemMetrics, gpus: Sequence[GpuReading]) -> Iterable[Metric]:
    """Every family that has a value."""
    cpu = GaugeMetricFamily("llamaswap_cpu_util_percent", "How busy each core is.", labels=["core"])
    for core, share in enumerate(system.cpu_util_per_core):
        cpu.add_metric([str(core)], share)
    yield cpu
    for name, text, megabytes in (
        ("memory_total", "Memory there is.", system.mem_total_mb),
        ("memory_used", "Memory in use.", system.mem_used_mb),
        ("memory_free", "Memory nobody uses.", system.mem_free_mb),
        ("swap_total", "Swap space there is.", system.swap_total_mb),
        ("swap_used", "Swap space in use.", system.swap_used_mb),
    ):
        yield GaugeMetricFamily(f"llamaswap_{name}_bytes", text, value=megabytes * MIB)
    load = GaugeMetricFamily("llamaswap_load_average", "Processes that want to run.", labels=["interval"])
    for interval, value in zip(("1m", "5m", "15m"), system.load_avg, strict=True):
        load.add_metric([interval], value)
    yield load
    network = CounterMetricFamily(
        "llamaswap_network_bytes", "Bytes that passed an interface.", labels=["interface", "direction"]
    )
    for interface, received, sent in system.net_io:
        network.add_metric([interface, "recv"], received)
        network.add_metric([interface, "sent"], sent)
    yield network
    for name, text, value_of in _GPU:
        family = GaugeMetricFamily(f"llamaswap_gpu_{name}", text)
        for gpu in gpus:
            labels = {"id": str(gpu.id), "name": gpu.name, **({"uuid": gpu.uuid} if gpu.uuid else {})}
            family.add_sample(family.name, labels, value_of(gpu))
        yield family
