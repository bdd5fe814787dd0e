"""The soak: the product under mixed traffic, kills, reloads and leaving clients, for as long as one likes.

    python -m tests.soak                  an hour, about 10,000 swaps
    python -m tests.soak --seconds 120    the short version
    python -m tests.soak --swaps 10000    until so many servers were started

Afterwards every request has had exactly one end, no request waits or is served, and descriptors, threads, memory and
children are what they were after the first moments. The last line reads `N passed, N failed`; --seed repeats a run's
choices.
"""

import argparse
import random
import re
import signal
import sys
import time

from tests.live.podman import Podman
from tests.live.product import Product, alive, free_range
from tests.soak.clients import PATIENCE, Client, Tally
from tests.soak.world import MODELS, Disturber, children, configuration, holdings

RSS_SLACK = 24  # MiB: what a heap keeps of its busiest moment
SETTLE = 20.0  # seconds after the last request within which everything must be idle


def quiet(product, clients):
    """Let everybody pause, stop all servers, and see what the product still holds."""
    for client in clients:
        client.idle.clear()
        client.resting.set()
    for client in clients:
        client.idle.wait(PATIENCE)
    product.ask("/unload", timeout=60)
    deadline = time.monotonic() + SETTLE
    while True:
        ready = product.json("/readyz")
        held = holdings(product.process.pid)
        books = {name: ready[name] for name in ("waiting", "serving", "loading", "running")}
        if not any(books.values()) and (not clients or held["descriptors"] < 100 or time.monotonic() > deadline):
            time.sleep(2.5)  # the spare process and late descriptors find their places
            return holdings(product.process.pid), books
        if time.monotonic() > deadline:
            return held, books
        time.sleep(0.1)


def swaps(product):
    """How many loads there were, by the product's log; its counter begins at zero again after an upgrade."""
    return sum("] loading " in line for line in list(product.lines))


def metered(product, name):
    """The sum of one of the product's counters."""
    text = product.ask("/metrics")[2].decode()
    found = re.findall(rf"^llamaswap_{name}_total\{{.*\}} (\S+)$", text, re.MULTILINE)
    return int(sum(map(float, found)))


def soak(options, podman=None):
    chance = random.Random(options.seed)
    start_port = free_range()
    verdicts = []
    tally = Tally()

    def check(name, good, detail=""):
        verdicts.append(good)
        print(f"{'ok  ' if good else 'FAIL'} {name}{': ' + str(detail) if detail != '' else ''}", flush=True)

    models = [*MODELS, *(["boxed"] if podman else [])]
    env = podman.env if podman else None
    with Product(configuration(start_port, podman=podman), env=env) as product:
        port = int(product.url.rpartition(":")[2])
        clients = [
            Client(number, port, random.Random(chance.random()), tally, models) for number in range(options.clients)
        ]
        disturber = Disturber(
            product, random.Random(chance.random()), start_port, options.pause, options.upgrades, podman
        )
        began = time.monotonic()
        for client in clients:
            client.start()
        disturber.start()
        time.sleep(min(30.0, options.seconds / 4))  # caches, rings and the heap are filled first
        before, _ = quiet(product, clients)
        print(f"after {time.monotonic() - began:.0f} s: {before}, {swaps(product)} swaps", flush=True)
        for client in clients:
            client.resting.clear()
        last_word = time.monotonic()
        while time.monotonic() - began < options.seconds and (not options.swaps or swaps(product) < options.swaps):
            time.sleep(1.0)
            if product.process.poll() is not None:
                break
            if time.monotonic() - last_word > 60:
                last_word = time.monotonic()
                held = holdings(product.process.pid)
                print(
                    f"{last_word - began:.0f} s: {swaps(product)} swaps, {tally.total()} requests, {held}", flush=True
                )
        check("the service is alive", product.process.poll() is None)
        if product.process.poll() is None:
            disturber.end()
            after, books = quiet(product, clients)
            count = swaps(product)
            for client in clients:
                client.over.set()
            for client in clients:
                client.join(PATIENCE)
            for (kind, end), number in sorted(tally.ends.items()):
                print(f"     {kind:10} {end:14} {number}")
            print(f"     {disturber.done}, {count} swaps, {tally.total()} requests, slowest {tally.slowest:.1f} s")
            check("each request had one proper end", not tally.faults, "\n       ".join(tally.faults[:20]))
            # What names its model in its body is metered; the product must have counted each of them once.
            asked = sum(count for (kind, _), count in tally.ends.items() if kind in ("plain", "streamed", "leaving"))
            ended = metered(product, "requests")
            if not options.upgrades:  # a new program counts from zero
                check("the product saw each of them end once", ended == asked, f"{asked} asked, {ended} ended")
            check("nearly all that could be whole was", tally.total("whole") > 0.3 * tally.total())
            check("each disturbance was answered", not disturber.failures, "; ".join(disturber.failures[:5]))
            check("no request waits or is served, and no model loads", not any(books.values()), books)
            # The spare process may be there or not, with its three pipes. A program that was upgraded just before the
            # first count has no worker threads yet either; their wake-up descriptors come with the first request.
            slack = 8 if options.upgrades else 4
            for name in ("descriptors", "threads", "children"):
                good = after[name] <= before[name] + slack
                check(f"{name} are what they were", good, f"{before[name]} -> {after[name]}")
            grown = after["rss"] - before["rss"]
            check("memory is what it was", grown <= RSS_SLACK, f"{before['rss']} -> {after['rss']} MiB")
            check("the service ends in order", ends(product))
            if podman:
                check("no container is left", not podman.names(), podman.names())
        odd = [line for line in product.lines if "Traceback" in line or "Unhandled" in line]
        check("no traceback in the log", not odd, "".join(product.lines[-60:]) if odd else "")
    print(f"{sum(verdicts)} passed, {len(verdicts) - sum(verdicts)} failed")
    return 0 if all(verdicts) else 1


def ends(product):
    """Whether SIGTERM ends it (`twist` then dies of the signal itself, as is its custom) and no server is left."""
    left = list(children(product.process.pid))
    product.process.terminate()
    status = product.process.wait(30)
    deadline = time.monotonic() + 5.0
    while any(map(alive, left)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return status in (0, -signal.SIGTERM) and not any(map(alive, left))


def main(words):
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=3600.0, help="length of the run (3600)")
    parser.add_argument("--swaps", type=int, default=0, help="end after so many loads, if that comes first")
    parser.add_argument("--clients", type=int, default=12, help="clients that send requests at the same time (12)")
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between two disturbances (0.5)")
    parser.add_argument("--upgrades", action="store_true", help="upgrade the program in place now and then, too")
    parser.add_argument("--containers", action="store_true", help="one model runs in a container, by podman")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="repeats the choices of a run")
    options = parser.parse_args(words)
    print(f"seed {options.seed}", flush=True)
    if not options.containers:
        return soak(options)
    podman = Podman()
    try:
        return soak(options, podman)
    finally:
        podman.clean()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
