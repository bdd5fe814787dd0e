"""Measure the product beside nginx (where installed), another proxy (`--against`), a bare loop, and no proxy at all.

    python -m benchmarks                         everything; writes docs/performance.rst and its plots
    python -m benchmarks --only swap,small       some measures, printed only
    python -m benchmarks --only small --without direct_write
                                                 the same, and the product without a fast path (see benchmarks.without)
    python -m benchmarks --against 'other --config {config} --listen 127.0.0.1:{port}'
    python -m benchmarks --only gateway1,gateway16,gateway64 --against litellm --csv gateway.csv
                                                 the latency that each adds, as gateways publish it

Rounds are interleaved and the median is quoted; what counts are the ratios within one run, never one absolute
figure. Nothing has to be built; `nginx` is used where it is on the path.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

from benchmarks import report, swap
from benchmarks.subjects import OTHER_CORE, ROOT, Command, Direct, LiteLLM, Nginx, Product, Relay, free_port, server

# measure: (words for benchmarks.load, what one unit of work is)
MEASURES = {
    "small": (["requests", "--connections", 16, "--seconds", 3, "--size", 1024], "requests"),
    "single": (["requests", "--connections", 1, "--seconds", 3, "--size", 1024], "requests"),
    "gateway1": (["requests", "--connections", 1, "--seconds", 5, "--size", 1024], "requests"),
    "gateway16": (["requests", "--connections", 16, "--seconds", 5, "--size", 1024], "requests"),
    "gateway64": (["requests", "--connections", 64, "--seconds", 5, "--size", 1024], "requests"),
    "many": (["requests", "--connections", 128, "--seconds", 3, "--size", 1024], "requests"),
    "medium": (["requests", "--connections", 16, "--seconds", 3, "--size", 102400], "requests"),
    "streams1": (["streams", "--connections", 1, "--count", 150, "--pause", 0.02, "--size", 128], "chunks"),
    "streams50": (["streams", "--connections", 50, "--count", 100, "--pause", 0.04, "--size", 128], "chunks"),
    "streams500": (["streams", "--connections", 500, "--count", 60, "--pause", 0.1, "--size", 128], "chunks"),
    "streams2000": (["streams", "--connections", 2000, "--count", 16, "--pause", 0.5, "--size", 128], "chunks"),
    # The same streams with a tenth of the chunks, for what the begin and the end of a stream cost.
    "streams50short": (["streams", "--connections", 50, "--count", 10, "--pause", 0.04, "--size", 128], "chunks"),
    "streams500short": (["streams", "--connections", 500, "--count", 6, "--pause", 0.1, "--size", 128], "chunks"),
    "upload": (["up", "--mb", 256], ""),
    "download": (["down", "--mb", 256], ""),
}


def load(words, port):
    """One run of the load on the other core; its figures."""
    command = ["taskset", "-c", str(OTHER_CORE), sys.executable, "-m", "benchmarks.load"]
    command += [*map(str, words), "--port", str(port)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout)


def one_round(subject, words, unit):
    """The load's figures, with CPU microseconds per unit of work and the memory afterwards."""
    before = subject.process.cpu() if subject.process else 0.0
    figures = load(words, subject.port)
    if subject.process:
        figures["rss_mb"] = subject.process.rss() / 1e6
        figures["peak_mb"] = subject.process.peak() / 1e6
        if unit:
            figures["cpu_us"] = 1e6 * (subject.process.cpu() - before) / max(1, figures[unit])
    return figures


def median(rounds):
    """Each figure's median over the rounds."""
    return {name: statistics.median(row[name] for row in rounds) for name in rounds[0]}


def run(subjects, names, rounds):
    """{measure: {subject: figures}}, plus the memory and start-up figures of each subject."""
    upstream = free_port()
    backend = server(upstream)
    results, about = {}, {}
    try:
        for subject in subjects:
            subject.start(upstream)
            if subject.process:
                load(["requests", "--connections", 1, "--seconds", 0.2], subject.port)  # loads the model
                time.sleep(0.5)
                about[subject.name] = {"startup_s": subject.startup, "idle_rss_mb": subject.process.rss() / 1e6}
        for name in names:
            words, unit = MEASURES[name]
            rows = {subject.name: [] for subject in subjects}
            for _ in range(rounds):
                for subject in subjects:
                    rows[subject.name].append(one_round(subject, words, unit))
            results[name] = {who: median(figures) for who, figures in rows.items()}
            print(name, json.dumps(results[name]), flush=True)
        for subject in subjects:
            if subject.process:
                about[subject.name]["rss_after_mb"] = subject.process.rss() / 1e6
    finally:
        for subject in subjects:
            if hasattr(subject, "folder"):
                subject.stop()
        backend.stop()
    return results, about


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="comma-separated measures: swap, " + ", ".join(MEASURES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", action="append", default=[], help="another proxy's command line")
    parser.add_argument("--reactor", action="append", default=[], help="the product on another reactor too")
    parser.add_argument("--without", action="append", default=[], help="the product without these fast paths too")
    parser.add_argument("--csv", metavar="FILE", help="write the added latency of the gateway measures to this file")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else ["swap", *MEASURES]
    if "litellm" in options.against and not LiteLLM.path():
        parser.error("litellm is not on the path: pip install 'litellm[proxy]', perhaps in a virtualenv of its own")
    unknown = [name for name in names if name != "swap" and name not in MEASURES]
    if unknown:
        parser.error(f"no such measure: {', '.join(unknown)}")
    subjects = [Product(), *(Product(name) for name in options.reactor)]
    subjects += [Product(without=names) for names in options.without]
    peers = [command for command in options.against if command != "litellm"]
    subjects += [Command(command, f"peer{number}") for number, command in enumerate(peers, 1)]
    subjects += [LiteLLM()] if "litellm" in options.against else []
    if Nginx.path():
        subjects.append(Nginx())
    else:
        print("nginx is not installed: no ratios against it")
    subjects += [Relay(), Direct()]
    swaps = []
    if "swap" in names:
        for who, command in [("llamaswap", swap.PRODUCT), *((f"peer{n}", c) for n, c in enumerate(peers, 1))]:
            for ready_after in (0.0, 0.2, 1.0):
                swaps.append({"subject": who, **swap.measure(command, ready_after, 15 if ready_after < 1 else 7)})
                print("swap", json.dumps(swaps[-1]), flush=True)
    wanted = [name for name in names if name != "swap"]
    results, about = run(subjects, wanted, options.rounds) if wanted else ({}, {})
    if options.csv:
        report.write_gateways(options.csv, results)
    if options.only:
        print(report.table(results, about, swaps))
    else:
        print(report.write(results, about, swaps))


if __name__ == "__main__":
    main()
