"""Counts the calls of Python functions that a request, a stream and a chunk cost.

    python -m benchmarks.calls                   the three counts
    python -m benchmarks.calls --functions 40    and the functions that are called most often

The service runs as for the other benchmarks, with cProfile on while the load runs over one connection at a time. The
counts hardly vary, so they show a change that the noise of a busy machine would hide. C functions are not counted: most
are cheap, and how many there are depends on the version of Python.
"""

import argparse
import cProfile
import json
import signal
import sys
import time
from pathlib import Path

from benchmarks.__main__ import load
from benchmarks.subjects import Product
from llamaswap.proxy.fastpath.lazy_tls import import_reactor_without_tls

SHORT, LONG = 10, 510  # chunks of a stream
STREAMS = 20
SETTLE = 0.5  # seconds in which the last requests are recorded


class Counted(Product):
    """The product with a profiler that SIGUSR1 turns on, and off again."""

    @property
    def output(self):
        return Path(self.folder.name) / "calls"

    def program(self):
        return ["benchmarks.calls", "--serve", self.output]

    def count(self, words, unit):
        """The calls of each function for one `unit` of this load."""
        self.process.child.send_signal(signal.SIGUSR1)
        figures = load(words, self.port)
        time.sleep(SETTLE)
        self.process.child.send_signal(signal.SIGUSR1)
        until = time.monotonic() + 10
        while not self.output.exists() and time.monotonic() < until:
            time.sleep(0.01)
        counts = json.loads(self.output.read_text())
        self.output.unlink()
        return {name: count / figures[unit] for name, count in counts.items()}


def serve(output, arguments):
    """Run the service; write the calls counted to `output`."""
    import_reactor_without_tls()  # before anything imports the reactor
    profiler = None

    def toggled(signum, frame):
        nonlocal profiler
        if profiler is None:
            profiler = cProfile.Profile()
            profiler.enable()
            return
        profiler.disable()
        counts = {}
        for entry in profiler.getstats():
            if not isinstance(entry.code, str):
                code = entry.code
                name = f"{code.co_filename.rpartition('site-packages/')[2]}:{code.co_firstlineno} {code.co_name}"
                counts[name] = counts.get(name, 0) + entry.callcount
        profiler = None
        whole = Path(f"{output}.part")
        whole.write_text(json.dumps(counts))
        whole.rename(output)

    signal.signal(signal.SIGUSR1, toggled)

    from twisted.application.twist._twist import Twist

    Twist.main(["twist", *arguments])


def streams(connections, count):
    """The words for a load of streams with so many chunks."""
    return ["streams", "--connections", connections, "--count", count, "--pause", 0.005, "--size", 128]


def main():
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--functions", type=int, default=0)
    options = parser.parse_args()
    product = Counted()
    product.start(None)
    try:
        warm = ["requests", "--connections", 1, "--seconds", 1, "--size", 1024]
        load(warm, product.port)
        request = product.count(["requests", "--connections", 1, "--seconds", 3, "--size", 1024], "requests")
        load(streams(1, SHORT), product.port)
        short, long = (product.count(streams(1, count), "complete") for count in (SHORT, LONG))
        chunk = {name: (count - short.get(name, 0)) / (LONG - SHORT) for name, count in long.items()}
        stream = product.count(streams(STREAMS, 1), "complete")
    finally:
        product.stop()
    print(f"request {sum(request.values()):.0f}")
    print(f"stream  {sum(stream.values()):.0f} with one chunk")
    print(f"chunk   {sum(chunk.values()):.1f}")
    for kind, counts in (("request", request), ("stream", stream), ("chunk", chunk)):
        for name, count in sorted(counts.items(), key=lambda item: -item[1])[: options.functions]:
            if count > 0.05:
                print(f"{count:7.2f} {kind} {name}")


if __name__ == "__main__":
    main()
