"""The configuration of the soak, with a stand-in engine for each kind of behaviour, and what disturbs its servers."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from tests.live.podman import IMAGE
from tests.soak.clients import TOKENS

ENGINE = Path(__file__).parent.parent / "live" / "engine.py"

# name: (flags, keys). Two groups: the first swaps, the second keeps its members together beside it.
MODELS = {
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


def boxed(podman):
    """A model whose engine runs in a container, with the machine's own Python."""
    python = os.path.realpath(sys.executable)
    folders = {"/usr", "/lib", "/lib64", sys.base_prefix, str(ENGINE.parent)}
    volumes = [f"-v {folder}:{folder}:ro" for folder in sorted(folders) if Path(folder).exists()]
    command = [*podman.command, "run --rm --replace --network=host --name boxed", *volumes, IMAGE]
    engine = [python, "-I", "-S", str(ENGINE), "--port ${PORT} --name boxed", f"--tokens {TOKENS}"]
    stop = " ".join([*podman.command, "stop -t 2 boxed"])
    return {"cmd": " ".join([*command, *engine]), "cmdStop": stop, "unloadTimeout": 20}


def configuration(start_port, changed=False, podman=None):
    """The text of the configuration; a `changed` one differs in what reloads may change. With a podman, one model
    runs in a container."""
    models = {}
    for name, (flags, keys) in MODELS.items():
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
    if podman is not None:
        models["boxed"] = boxed(podman)
    if changed:
        models["swift"]["env"] = ["CHANGED=1"]
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


class Disturber(threading.Thread):
    """Kills servers, reloads, unloads and more, at random; `done` counts each."""

    def __init__(self, product, chance, start_port, pause, upgrades=False, podman=None):
        super().__init__(daemon=True, name="disturber")
        self.product, self.chance, self.start_port, self.pause = product, chance, start_port, pause
        self.over = threading.Event()
        self.done = {"kill": 0, "reload": 0, "unload": 0, "load": 0, "profile": 0, "upgrade": 0}
        self.upgrades, self.podman = upgrades, podman
        self.changed = False
        self.failures = []

    def run(self):
        while not self.over.wait(self.pause * (0.5 + self.chance.random())):
            actions = [self.kill, self.kill, self.kill, self.reload, self.unload, self.load, self.profile]
            action = self.chance.choice([*actions, self.upgrade] if self.upgrades else actions)
            try:
                action()
            except Exception as error:
                self.failures.append(f"{action.__name__}: {type(error).__name__}: {error}")

    def kill(self):
        """One server is ended by a signal."""
        victims = servers(self.product.process.pid)
        if victims:
            number = self.chance.choice((signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM))
            try:
                os.kill(self.chance.choice(victims), number)
            except ProcessLookupError:
                return
            self.done["kill"] += 1

    def reload(self):
        self.changed = not self.changed
        self.product.config.write_text(configuration(self.start_port, self.changed, self.podman), encoding="utf-8")
        self.product.process.send_signal(signal.SIGHUP)
        self.done["reload"] += 1

    def unload(self):
        name = self.chance.choice([None, *MODELS])
        status, _, body = self.product.ask("/api/models/unload" + (f"/{name}" if name else ""), b"", method="POST")
        if status not in (200, 404):
            raise AssertionError(f"{status} {body!r}")
        self.done["unload"] += 1

    def load(self):
        status, _, body = self.product.ask(f"/api/models/load/{self.chance.choice([*MODELS])}", b"", method="POST")
        if status not in (202, 404):
            raise AssertionError(f"{status} {body!r}")
        self.done["load"] += 1

    def profile(self):
        """Another profile becomes active, or none."""
        name = self.chance.choice(("work", ""))
        status, _, body = self.product.ask("/api/profiles/active", {"name": name}, method="PUT")
        if status != 200:
            raise AssertionError(f"{status} {body!r}")
        self.done["profile"] += 1

    def upgrade(self):
        """The program replaces itself; the requests in progress go on or are waited for."""
        self.product.process.send_signal(signal.SIGUSR2)
        self.done["upgrade"] += 1

    def end(self):
        self.over.set()
        self.join(30)
        if self.changed:
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
