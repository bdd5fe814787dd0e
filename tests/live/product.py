"""The product as a process of its own, for the live tests: on a free port, ended with everything it started."""

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


class Product:
    """`twist llamaswap` on a configuration text (None: none given); use as a context manager.

    `url` is its base URL, `lines` what it printed so far. Leaving the block ends it and its whole process group.
    """

    def __init__(self, config=None, *args, env=None, cwd=None, program=("-m", "twisted", "llamaswap")):
        self._home = tempfile.TemporaryDirectory(prefix="llamaswap-live-")
        self.home = Path(self._home.name)
        self.words = [sys.executable, *program]
        if config is not None:
            self.config = self.home / "config.yaml"
            self.config.write_text(config, encoding="utf-8")
            self.words += ["--config", str(self.config)]
        if "--listen" not in args and "-listen" not in args:
            self.words += ["--listen", "127.0.0.1:0"]
        self.words += args
        self.env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **(env or {})}
        self.cwd = cwd or self.home
        self.lines = []
        self._listening = threading.Event()
        self.url = ""

    def __enter__(self):
        self.process = subprocess.Popen(
            self.words,
            cwd=self.cwd,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        if not self._listening.wait(30) or not self.url:
            self.__exit__()
            raise AssertionError("it never listened:\n" + "".join(self.lines))
        return self

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line)
            found = re.search(r"listening on (https?://\S+)", line)
            if found and not self.url:
                self.url = found[1]
                self._listening.set()
        self._listening.set()

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                pass
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait(10)
        self.reader.join(5)
        self.process.stdout.close()
        self.remove_home()

    def remove_home(self):
        self._home.cleanup()

    @property
    def output(self):
        return "".join(self.lines)

    def ask(self, path, body=None, *, method=None, headers=None, timeout=30):
        """(status, headers, bytes) of one request; `body` is sent as JSON. Error statuses are answers too."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, method=method, headers=headers or {})
        if data is not None and not request.has_header("Content-type"):
            request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read()

    def json(self, path, body=None, **more):
        """The parsed answer of a request that succeeds."""
        status, _, data = self.ask(path, body, **more)
        if status >= 400:
            raise AssertionError(f"{path}: {status} {data!r}\n{self.output[-4000:]}")
        return json.loads(data)

    def running(self):
        """{model: state} of what is loaded."""
        return {row["model"]: row["state"] for row in self.json("/running")["running"]}


PORTS = range(10_000, 32_000)  # below those that the kernel gives to connections: none of them takes one meanwhile
SPAN = 20
_turn = itertools.count()


def free_range():
    """The first of 20 free ports; parallel test processes get different ones."""
    spans = len(PORTS) // SPAN
    for _ in range(spans):
        start = PORTS[(os.getpid() % 50 + 50 * next(_turn)) % spans * SPAN]
        if all(map(_free, range(start, start + SPAN))):
            return start
    raise AssertionError("no free ports")


def _free(port):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def wait_for(condition, seconds=10.0, what="condition"):
    """Poll a truth that another process brings about; it is given `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come within {seconds} s")
        time.sleep(0.01)


def wait_for_serving(product, model, count=1):
    """Until so many requests to the model are with its server."""
    wait_for(lambda: product.json(f"/api/models/{model}")["active"] == count, 10, f"{count} at {model}")


def within(seconds, tries=5):
    """Yields, up to `tries` times, what is to be called with the seconds a thing took; ends when it was in time.

    A busy machine may hold up one try of what is promised in milliseconds, and not all of them.
    """
    taken = []
    while len(taken) < tries:
        yield taken.append
        if taken[-1] < seconds:
            return
    raise AssertionError(f"not once within {seconds} s: {taken}")


def alive(pid):
    """Whether a process (not a zombie) has this pid."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def group_members(group):
    """The pids of the living processes of a process group; a zombie does not count."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[2]) == group and fields[0] not in ("Z", "X"):
                found.append(int(entry.name))
    return found
