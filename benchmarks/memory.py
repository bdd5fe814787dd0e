"""Load seconds of `routing.memory: on` beside those of the default group, for the same requests to real models.

    python -m benchmarks.memory                  six llama.cpp models of 200 to 900 MB, five minutes for each policy
    python -m benchmarks.memory --seconds 40 --sizes 40,60,80,100,140,180 --budget 400

The models are generated, and llama.cpp serves them without mmap, so that their weights are in RAM; a budget of RAM
stands for the machine's memory. The requests come in sessions, as agents and people make them: some models are used
often, others now and then. Needs the extra `llamaswap[llamacpp]`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

from tests.live.product import ROOT, Product, free_range

SERVER = f"{sys.executable} {ROOT}/tests/live/llama_server.py"
SHARES = (8, 5, 4, 3, 2, 1)  # how often a session asks for the first, second, ... model of a shuffled order
PAUSE = 0.4  # seconds between two requests of a session, on average


@frozen
class TimedRequest:
    """A request that is sent `at` seconds after the start."""

    at: float
    model: str


@define
class Outcome:
    """What one policy made of the traffic. Times in seconds; `learned` and `measured` are MiB of RAM by model."""

    requests: int = 0
    failures: list[str] = field(factory=list)
    waits: list[float] = field(factory=list)
    swaps: list[dict[str, Any]] = field(factory=list)
    learned: dict[str, int] = field(factory=dict)
    measured: dict[str, int] = field(factory=dict)

    @property
    def load_seconds(self) -> float:
        return sum(phase["seconds"] for swap in self.swaps for phase in swap["phases"] if phase["name"] == "start")

    @property
    def unexplained(self) -> list[dict[str, Any]]:
        """Swaps that evicted a model without saying what memory it costs."""
        return [swap for swap in self.swaps if swap["evicted"] and "memory: it needs" not in swap["reason"]]

    def figures(self) -> dict[str, float]:
        waits = sorted(self.waits)
        return {
            "requests": self.requests,
            "failed": len(self.failures),
            "loads": len(self.swaps),
            "load_seconds": round(self.load_seconds, 1),
            "p50_seconds": round(statistics.median(waits), 3),
            "p95_seconds": round(waits[int(len(waits) * 0.95)], 3),
        }


def traffic(models: Sequence[str], seconds: float, seed: int = 7) -> list[TimedRequest]:
    """Sessions of one to eight requests each, a few of them at a time, until `seconds` are over."""
    rng = random.Random(seed)
    order = rng.sample(list(models), len(models))
    requests, start = [], 0.0
    while start < seconds:
        model, at = rng.choices(order, SHARES[: len(order)])[0], start
        for _ in range(rng.randint(1, 8)):
            if at < seconds:
                requests.append(TimedRequest(at, model))
            at += rng.expovariate(1 / PAUSE)
        start += rng.expovariate(1 / 1.5)
    return sorted(requests, key=lambda one: one.at)


def make_models(folder: Path, sizes: Sequence[int]) -> Iterator[str]:
    """Write a model of each size (MB); the names of the models."""
    sys.path.insert(0, str(ROOT / "tests" / "live"))
    import tiny_gguf

    for size in sizes:
        tiny_gguf.make(["chat", str(folder / f"m{size}.gguf"), "--size-mb", str(size), "--reply", f"This is {size}."])
        yield f"m{size}"


def configuration(folder: Path, models: Sequence[str], routing: str) -> str:
    """A configuration of these models."""
    lines = ["healthCheckTimeout: 60", f"startPort: {free_range()}", routing, "models:"]
    for model in models:
        lines.append(f"  {model}: {{cmd: '{SERVER} -m {folder}/{model}.gguf --no-mmap -c 512 --port ${{PORT}}'}}")
    return "\n".join(lines) + "\n"


def run(config: str, requests: Sequence[TimedRequest], models: Sequence[str]) -> Outcome:
    """Send the requests at their times to a service with this configuration."""
    outcome, lock = Outcome(requests=len(requests)), threading.Lock()
    with Product(config) as product:
        began = time.monotonic()

        def send(request: TimedRequest) -> None:
            time.sleep(max(0.0, began + request.at - time.monotonic()))
            body = {"model": request.model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}
            sent = time.monotonic()
            status, _, data = product.ask("/v1/chat/completions", body, timeout=300)
            with lock:
                outcome.waits.append(time.monotonic() - sent)
                if status != 200 or request.model.removeprefix("m") not in str(data):
                    outcome.failures.append(f"{request.model}: {status} {data[:200]!r}")

        threads = [threading.Thread(target=send, args=(request,)) for request in requests]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for model in models:  # each is measured, whatever the traffic was
            product.ask("/v1/chat/completions", {"model": model, "messages": [], "max_tokens": 1}, timeout=300)
        time.sleep(4.0)
        outcome.swaps = [swap for swap in product.json("/api/swaps?limit=1000") if not swap.get("error")]
        memory = product.json("/api/memory")
        outcome.learned = {
            model: need["ram_mib"] for model, need in memory["needs"].items() if need["source"] == "learned"
        }
        outcome.measured = resident(product)
    return outcome


def resident(product: Product) -> dict[str, int]:
    """MiB of RAM that each running server has for itself, read from the kernel."""
    found = {}
    for row in product.json("/running")["running"]:
        pid = product.json(f"/api/models/{row['model']}")["pid"]
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        sizes = dict(line.split(":", 1) for line in lines if ":" in line)
        kib = sum(int(sizes[name].split()[0]) for name in ("RssAnon", "RssShmem", "VmSwap"))
        found[row["model"]] = kib // 1024
    return found


def compare(seconds: float, sizes: Sequence[int], budget: int) -> tuple[Outcome, Outcome]:
    """(outcome of the default group, outcome of memory) for the same requests."""
    with tempfile.TemporaryDirectory(prefix="llamaswap-memory-") as name:
        folder = Path(name)
        models = list(make_models(folder, sizes))
        requests = traffic(models, seconds)
        group = run(configuration(folder, models, ""), requests, models)
        routing = f"routing: {{memory: {{mode: on, hold: 1s, budget: {{ram: {budget}MiB}}}}}}"
        memory = run(configuration(folder, models, routing), requests, models)
    return group, memory


def main() -> None:
    """Print the figures of both policies."""
    options = argparse.ArgumentParser()
    options.add_argument("--seconds", type=float, default=300.0)
    options.add_argument("--sizes", default="200,300,400,500,700,900")
    options.add_argument("--budget", type=int, default=2048, help="MiB of RAM")
    chosen = options.parse_args()
    group, memory = compare(chosen.seconds, [int(size) for size in chosen.sizes.split(",")], chosen.budget)
    saved = 1 - memory.load_seconds / group.load_seconds if group.load_seconds else 0.0
    errors = {
        model: round(memory.learned[model] / size - 1, 3)
        for model, size in memory.measured.items()
        if model in memory.learned
    }
    print(
        json.dumps(
            {
                "group": group.figures(),
                "memory": memory.figures(),
                "saved": round(saved, 3),
                "unexplained": len(memory.unexplained),
                "learned_error": errors,
                "learned": memory.learned,
                "evictions": Counter(victim for swap in memory.swaps for victim in swap["evicted"]),
                "failures": (group.failures + memory.failures)[:5],
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
