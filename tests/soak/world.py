"""The world of the soak: a configuration of stand-in engines of every temper, and what befalls them."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from tests.soak.clients import TOKENS

ENGINE = Path(__file__).parent.parent / "live" / "engine.py"

# name: (flags, keys). Two groups: the first swaps, the second keeps its members together beside it.
TEMPERS = {
    "swift": ("", {}),
    "slow-start": ("--ready-after 0.4", {}),
    "slow-stop": ("--term-after 0.2", {}),
    "stubborn": ("--ignore-term", {"unloadTimeout": 1}),
    "family": ("--grandchild", {}),
    "idle": ("", {"ttl": 1}),
    "dies": ("--crash-at 3", {}),
    "tired": ("--max-requests 7", {}),
    "flaky": ("--crash-before-head", {}),
    "broken": ("--exit-at-once", {}),
    "shows": ("--ready-after 0.3 --interval 0.02", {"sendLoadingState": True}),
    "wordy": ("--flood 3000000 --interval 0.01", {}),
    "left": ("", {}),
    "right": ("--interval 0.02", {}),
}
TOGETHER = ("left", "right")


def configuration(start_port, odd=False):
    """The text of the configuration; `odd` ones differ in what reloads may change."""
    models = {}
    for name, (flags, keys) in TEMPERS.items():
        words = [
            sys.executable,
            "-I",
            "-S",
            str(ENGINE),
            "--port ${PORT}",
            f"--name {name}",
            f"--tokens {TOKENS}",
            flags,
        ]
        models[name] = {"cmd": " ".join(words), **keys}
    if odd:
        models["swift"]["env"] = ["ODD=1"]
        models["slow-start"]["description"] = "only a word changed"
        del models["tired"]
    members = [name for name in models if name not in TOGETHER]
    groups = {
        "swapping": {"swap": True, "exclusive": False, "members": members},
        "together": {"swap": False, "exclusive": False, "members": list(TOGETHER)},
    }
    return json.dumps(
        {
            "healthCheckTimeout": 15,
            "unloadTimeout": 2,
            "startPort": start_port,
            "logLevel": "info",
            "metricsMaxInMemory": 100,
            "captureBuffer": 1,
            "models": models,
            "groups": groups,
            "profiles": {"work": {"pins": {"pinned": "swift"}}},
            "routing": {"scheduler": {"settings": {"fifo": {"patience": "1s", "backoffMax": "2s"}}}},
        }
    )


class Fate(threading.Thread):
    """Kills servers, reloads, unloads; `deeds` counts what it did."""

    def __init__(self, product, chance, start_port, pause, upgrades=False):
        super().__init__(daemon=True, name="fate")
        self.product, self.chance, self.start_port, self.pause = product, chance, start_port, pause
        self.over = threading.Event()
        self.deeds = {"kill": 0, "reload": 0, "unload": 0, "load": 0, "profile": 0, "upgrade": 0}
        self.upgrades = upgrades
        self.odd = False
        self.trouble = []

    def run(self):
        while not self.over.wait(self.pause * (0.5 + self.chance.random())):
            deeds = [self.kill, self.kill, self.kill, self.reload, self.unload, self.load, self.profile]
            deed = self.chance.choice([*deeds, self.upgrade] if self.upgrades else deeds)
            try:
                deed()
            except Exception as error:
                self.trouble.append(f"{deed.__name__}: {type(error).__name__}: {error}")

    def kill(self):
        """One server dies of a signal nobody sent politely."""
        victims = servers(self.product.process.pid)
        if victims:
            number = self.chance.choice((signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM))
            try:
                os.kill(self.chance.choice(victims), number)
            except ProcessLookupError:
                return
            self.deeds["kill"] += 1

    def reload(self):
        self.odd = not self.odd
        self.product.config.write_text(configuration(self.start_port, self.odd), encoding="utf-8")
        self.product.process.send_signal(signal.SIGHUP)
        self.deeds["reload"] += 1

    def unload(self):
        name = self.chance.choice([None, *TEMPERS])
        status, _, body = self.product.ask("/api/models/unload" + (f"/{name}" if name else ""), b"", method="POST")
        if status not in (200, 404):
            raise AssertionError(f"{status} {body!r}")
        self.deeds["unload"] += 1

    def load(self):
        status, _, body = self.product.ask(f"/api/models/load/{self.chance.choice([*TEMPERS])}", b"", method="POST")
        if status not in (202, 404):
            raise AssertionError(f"{status} {body!r}")
        self.deeds["load"] += 1

    def profile(self):
        """Another profile becomes active, or none."""
        name = self.chance.choice(("work", ""))
        status, _, body = self.product.ask("/api/profiles/active", {"name": name}, method="PUT")
        if status != 200:
            raise AssertionError(f"{status} {body!r}")
        self.deeds["profile"] += 1

    def upgrade(self):
        """The program replaces itself; the requests in progress go on or are waited for."""
        self.product.process.send_signal(signal.SIGUSR2)
        self.deeds["upgrade"] += 1

    def end(self):
        self.over.set()
        self.join(30)
        if self.odd:
            self.reload()
            time.sleep(0.5)


# -- what a process has ------------------------------------------------------------------------------------------


def children(pid):
    """The living children of a process: {pid: command words}."""
    found = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            stat = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            if int(stat[1]) == pid and stat[0] not in ("Z", "X"):
                found[int(name)] = Path(f"/proc/{name}/cmdline").read_text().split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def servers(pid):
    """The stand-in engines among its children."""
    return [one for one, words in children(pid).items() if str(ENGINE) in words]


def holdings(pid):
    """What must not grow: open descriptors, threads, resident memory in MiB, child processes."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return {
        "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": int(status["Threads"]),
        "rss": int(status["VmRSS"].split()[0]) // 1024,
        "children": len(children(pid)),
    }
