"""The real scheduler with hundreds of hosts and models, for a day of traffic, on virtual servers.

    python -m benchmarks.scale                   200 hosts of 4 boards, 500 models, a day: less than a minute
    python -m benchmarks.scale --models 1100 --servers 1100 --requests 20000    1,000 models run at a time

Arrivals have the shape that is published for language models in production. BurstGPT (arXiv 2401.17644) models them as
bursts, whose gaps follow a Gamma distribution, and the use of models by Zipf's law; DynamoLLM (arXiv 2408.00741), with
the Azure traces of 2024, has services whose load follows the day. The parameters below are ours, not those of a trace.
Runs do not differ in what is decided, only in how long it takes. Times of decisions are CPU time.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import accumulate
from math import cos, pi

from attrs import define, evolve, field, frozen

from llamaswap.config.schema.hosts import Place
from llamaswap.config.schema.routing import FifoSettings, Selector
from llamaswap.scheduling.effects import Effect, Grant, StartSwap, Ticket
from llamaswap.scheduling.hosts import HostFacts
from llamaswap.scheduling.memory import Device, GpuShare, Ledger, MemoryNeed
from llamaswap.scheduling.scheduler import Scheduler
from llamaswap.scheduling.simulation import RecordedRequest, ServerTimes, Simulation
from llamaswap.scheduling.state import ModelRules, Rules

DAY = 86400.0
GIB = 1024
BOARD = 24 * GIB
RAM = 256 * GIB
BURSTS = 0.25  # the shape of the Gamma distribution of gaps: their coefficient of variation is 2
NIGHT = 0.3  # the load at night, as a part of that at noon
POPULARITY = 0.9  # the exponent of Zipf's law
SERVICE = 8.0  # seconds of a request on average
SIZES = ((3, 1), (5, 1), (8, 1), (14, 1), (20, 1), (20, 2), (20, 4))  # GiB on each of so many boards
WEIGHTS = (20, 25, 25, 15, 8, 5, 2)
SECONDS_PER_GIB = 0.4  # of a load, besides two


@frozen
class Model:
    """A model of the catalogue, with as many servers as its popularity asks for."""

    name: str
    share: int
    boards: int
    servers: int

    @property
    def names(self) -> list[str]:
        return [self.name, *(f"{self.name}.r{number}" for number in range(2, self.servers + 1))]

    @property
    def need(self) -> MemoryNeed:
        return MemoryNeed(GIB, ((GpuShare(self.share * GIB),) * self.boards,), "learned")


class EverythingTogether:
    """A policy that forbids nothing: memory alone decides."""

    def __call__(self, target: str, running: Sequence[str], /) -> tuple[str, ...]:
        return ()

    def protects(self, model: str, target: str, /) -> bool:
        return False

    def explain(self, target: str, running: Sequence[str], /) -> str:
        return "no group"

    def conflict(self, models: Sequence[str], /) -> str:
        return ""


@define(eq=False)
class TimedScheduler(Scheduler):
    """The scheduler with the seconds that each input took, and separately those of inputs that placed models."""

    inputs: list[float] = field(factory=list, init=False)
    placements: list[float] = field(factory=list, init=False)
    largest: int = field(default=0, init=False)

    def _timed(self, began: float, effects: list[Effect], queued: bool) -> list[Effect]:
        seconds = time.thread_time() - began
        self.inputs.append(seconds)
        if queued or any(isinstance(effect, StartSwap) for effect in effects):
            self.placements.append(seconds)
        return effects

    def requested(self, ticket: Ticket, now: float, *, only_if_ready: bool = False) -> list[Effect]:
        began = time.thread_time()
        effects = super().requested(ticket, now, only_if_ready=only_if_ready)
        return self._timed(began, effects, not any(isinstance(effect, Grant) for effect in effects))

    def served(self, ticket: Ticket, now: float) -> list[Effect]:
        began, queued = time.thread_time(), bool(self.queue)
        return self._timed(began, super().served(ticket, now), queued)

    def swap_finished(self, generation: int, error: None, now: float) -> list[Effect]:
        self.largest = max(self.largest, sum(len(servers) for servers in self.occupied.values()))
        began, queued = time.thread_time(), bool(self.queue)
        return self._timed(began, super().swap_finished(generation, error, now), queued)

    def stopped(self, model: str, now: float) -> list[Effect]:
        began, queued = time.thread_time(), bool(self.queue)
        return self._timed(began, super().stopped(model, now), queued)

    def queue_timer_expired(self, now: float) -> list[Effect]:
        began, queued = time.thread_time(), bool(self.queue)
        return self._timed(began, super().queue_timer_expired(now), queued)


@define
class Scale:
    """How much of everything."""

    hosts: int = 200
    boards: int = 4
    models: int = 500
    servers: int = 1400
    requests: int = 200_000
    seed: int = 1


def catalogue(scale: Scale, chance: random.Random) -> list[Model]:
    """The models by popularity, the most popular one first, with `servers` servers in all."""
    popularity = [(rank + 1) ** -POPULARITY for rank in range(scale.models)]
    spare = max(0, scale.servers - scale.models)
    made = []
    for rank in range(scale.models):
        share, boards = chance.choices(SIZES, WEIGHTS)[0]
        servers = 1 + min(63, round(spare * popularity[rank] / sum(popularity)))
        made.append(Model(f"m{rank:04}", share, boards, servers if boards == 1 else 1))
    return made


def traffic(scale: Scale, models: Sequence[Model], chance: random.Random) -> Iterator[RecordedRequest]:
    """A day of requests: bursts whose rate follows working hours, for models by their popularity."""
    names = [model.name for model in models]
    weights = list(accumulate((rank + 1) ** -POPULARITY for rank in range(len(models))))
    mean = (1 + NIGHT) / 2
    gap = DAY / scale.requests
    at = 0.0
    for _ in range(scale.requests):
        rate = (NIGHT + (1 - NIGHT) * (1 - cos(2 * pi * at / DAY)) / 2) / mean
        at += chance.gammavariate(BURSTS, gap / rate / BURSTS)
        yield RecordedRequest(at, chance.choices(names, cum_weights=weights)[0], chance.expovariate(1 / SERVICE))


def cluster(scale: Scale) -> dict[str, HostFacts]:
    """The other hosts, all alike. This machine has no board: it is only the front."""
    boards = {f"gpu{number}": Device(BOARD) for number in range(scale.boards)}
    ledger = Ledger({"ram": Device(RAM), **boards})
    return {name: HostFacts(name, ledger) for name in (f"host{number:03}" for number in range(scale.hosts))}


def simulation(scale: Scale) -> tuple[Simulation, list[TimedScheduler], list[Model]]:
    """The simulation of a day in which a tenth of the hosts vanishes at noon, one after the other, for an hour."""
    models = catalogue(scale, random.Random(scale.seed))
    rules = Rules(
        {name: ModelRules(place=Place()) for model in models for name in model.names},
        EverythingTogether(),
        FifoSettings(),
        by_memory=True,
        several_hosts=True,
    )
    loads = {name: 2 + SECONDS_PER_GIB * model.share * model.boards for model in models for name in model.names}
    needs = {name: model.need for model in models for name in model.names}
    made: list[TimedScheduler] = []

    def make(rules: Rules) -> Scheduler:
        made.append(TimedScheduler(rules))
        return made[0]

    known = cluster(scale)
    changes = [(0.0, dict(known))]
    for number, lost in enumerate(list(known)[: scale.hosts // 10]):
        del known[lost]
        changes.append((DAY / 2 + 60.0 * number, dict(known)))
    changes.append((DAY / 2 + 3600.0, cluster(scale)))
    return (
        Simulation(
            rules,
            Ledger({"ram": Device(2 * GIB)}, needs, load_seconds=loads),
            ServerTimes(lambda model: loads[model]),
            {
                model.name: Selector(model.name, "spillover", tuple(model.names))
                for model in models
                if model.servers > 1
            },
            changes,
            make,
        ),
        made,
        models,
    )


def refresh(scheduler: Scheduler) -> float:
    """The CPU seconds that one host's new readings take at the end of the day, on average."""
    known, now = {name: facts for name, facts in scheduler.hosts.items() if name}, 2 * DAY
    names = list(known)[:50]
    began = time.thread_time()
    for name in names:
        known = {**known, name: evolve(known[name], ledger=evolve(known[name].ledger, hold=9.0))}
        scheduler.hosts_changed(known, now)
    return (time.thread_time() - began) / len(names)


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def report(scale: Scale) -> str:
    """The figures of a day."""
    day, [scheduler], models = simulation(scale)
    began = time.perf_counter()
    result = day.run(traffic(scale, models, random.Random(scale.seed + 1)))
    wall = time.perf_counter() - began
    deciding = sum(scheduler.inputs)
    rows = {
        "hosts x boards": f"{scale.hosts} x {scale.boards}",
        "models, servers": f"{scale.models}, {sum(model.servers for model in models)}",
        "most servers at a time": scheduler.largest,
        "requests": result.requests,
        "loads": result.loads.total(),
        "loads on another host than before": result.moved,
        "requests refused": result.refused.total(),
        "wait p50, p95, p99 (s)": ", ".join(f"{result.waits.quantile(share):.1f}" for share in (0.5, 0.95, 0.99)),
        "decisions": len(scheduler.inputs),
        "decisions per second": round(len(scheduler.inputs) / deciding),
        "placements": len(scheduler.placements),
        "placement p50, p99, longest (ms)": ", ".join(
            f"{1000 * quantile(scheduler.placements, share):.2f}" for share in (0.5, 0.99, 1.0)
        ),
        "new readings of a host (ms)": f"{1000 * refresh(scheduler):.2f}",
        "any decision p99 (ms)": f"{1000 * quantile(scheduler.inputs, 0.99):.3f}",
        "seconds in all": f"{wall:.0f}",
    }
    return "\n".join(f"{name:36}{value}" for name, value in rows.items())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = Scale()
    for name in ("hosts", "boards", "models", "servers", "requests", "seed"):
        parser.add_argument(f"--{name}", type=int, default=getattr(defaults, name))
    given = parser.parse_args()
    print(report(Scale(**vars(given))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
