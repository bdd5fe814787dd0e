"""Three hosts on this machine: a front, and `llamaswap hosts join` three times, each with pretended GPUs."""

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from llamaswap.cluster.ray_node import with_parent
from tests.live.product import ROOT, Product, alive, free_range, wait_for

UNSEEN = 4  # seconds, as `hosts.unseen`
START = 120.0  # seconds: Ray uses much CPU time at its start, and tests run on small machines
ENGINE = f"{sys.executable} -I -S {ROOT / 'tests/live/engine.py'} --port ${{PORT}}"
BOARDS = {"alpha": 12288, "beta": 12288, "gamma": 24576}  # MiB of the one GPU of each host


def processes():
    """{pid: (parent, command line)} of what runs here."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                words = (entry / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
            except (FileNotFoundError, ProcessLookupError):
                continue
            found[int(entry.name)] = (parent, words)
    return found


def command_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def below(pid):
    """The pids of the descendants of a process, with it."""
    known = processes()
    family = {pid}
    while more := {one for one, (parent, _) in known.items() if parent in family} - family:
        family |= more
    return family


def slowed(seconds):
    """What is promised in so many seconds takes longer if other programs use the processors too: by this factor now."""
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-I", "-S", "-c", "sum(range(5_000_000))"], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds * max(1.0, (time.monotonic() - began) / used)


def kill(pids, number=signal.SIGKILL):
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


class Cluster:
    """The front, `product`, and the hosts. Use as a context manager; nothing is left of it afterwards."""

    def __init__(self, models):
        self._home = tempfile.TemporaryDirectory(prefix="llamaswap-hosts-")
        self.home = Path(self._home.name)
        self.state = self.home / "state"
        self.ports = next(start for _ in range(1000) if (start := free_range()) >= 20_000)  # below are Ray's workers
        self.weights = self.home / "weights.gguf"
        self.weights.write_bytes(bytes(1 << 26))  # in the page cache, as what was just written is
        self.models = models.replace("WEIGHTS", str(self.weights))
        self.joins = {}

    def environment(self, host):
        boards = self.home / "boards" / host
        if host in BOARDS:
            (boards / "gpu0").mkdir(parents=True, exist_ok=True)
            (boards / "gpu0" / "total").write_text(str(BOARDS[host]))
        boards.mkdir(parents=True, exist_ok=True)
        return {"LLAMASWAP_FAKE_BOARDS": str(boards), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}

    def command(self, *words, env=None, timeout=60):
        """(status, output) of a llamaswap command."""
        done = subprocess.run(
            [sys.executable, "-m", "llamaswap", *words],
            env={**os.environ, **self.environment("front"), **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        return done.returncode, done.stdout

    def front(self, port=None, grace=60.0):
        """A llamaswap with these hosts, which is to be entered."""
        config = (
            f"hosts: {{state: {self.state}, unseen: {UNSEEN}s, grace: {grace}s}}\n"
            "routing: {memory: {mode: 'on', hold: 0s}}\n"
            f"models:\n{self.models}"
        )
        return Product(config, "--listen", f"127.0.0.1:{port or self.ports}", env=self.environment("front"))

    def kill_front(self):
        os.kill(self.product.process.pid, signal.SIGKILL)
        self.product.__exit__()

    def __enter__(self):
        status, text = self.command(
            "hosts", "init", "--address", "127.0.0.1", "--port", str(self.ports + 1), "--state", str(self.state)
        )
        assert status == 0, text
        self.product = self.front()
        self.product.__enter__()
        for number, host in enumerate(BOARDS):
            self.join(host, self.ports + 2 + number)
            # Nodes that start on one machine at the same moment take the same names for their sockets, and end.
            wait_for(lambda host=host: self._has_socket(host), START, f"the node {host}")
        try:
            wait_for(lambda: self.online() == set(BOARDS), START, "all hosts")
        except AssertionError as error:
            report = f"{error}\n{self.product.output[-3000:]}\n{(self.state / 'ray.log').read_text()[-3000:]}"
            self.__exit__()
            raise AssertionError(report) from None
        return self

    def join(self, host, port):
        token = (self.state / "token").read_text()
        words = ["hosts", "join", f"127.0.0.1:{self.ports + 1}", "--name", host, "--address", "127.0.0.1"]
        words += ["--port", str(port), "--state", str(self.home / host), "--label", f"kind={host}", "--ram", "8000"]
        self.joins[host] = subprocess.Popen(
            with_parent([sys.executable, "-m", "llamaswap", *words]),
            env={**os.environ, **self.environment(host), "LLAMASWAP_HOSTS_TOKEN": token},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
        )

    def _has_socket(self, host):
        """Whether the raylet of a host listens."""
        words = b"\0".join(map(command_of, self.node(host, b"raylet/raylet"))).split(b"\0")
        names = [word.partition(b"=")[2] for word in words if word.startswith(b"--raylet_socket_name=")]
        return any(map(os.path.exists, names))

    def hosts(self):
        """{name: document} of all hosts."""
        return {host["host"]: host for host in self.product.json("/api/hosts").get("hosts", ())}

    def online(self):
        return {name for name, host in self.hosts().items() if host.get("online") and name != "here"}

    def measured(self):
        """The hosts that are online and know their memory."""
        return {name for name, host in self.hosts().items() if host.get("devices") and name in self.online()}

    def host_of(self, model):
        return next((name for name, host in self.hosts().items() if model in host.get("models", ())), None)

    def node(self, host, *words):
        """The processes of Ray and of the agent on a host, those with one of these words in their command."""
        family = below(self.joins[host].pid) - {self.joins[host].pid}
        return [pid for pid in family if any(word in command_of(pid) for word in words)]

    def engines(self, words):
        """The pids of the engines with these words in their command, wherever they run."""
        program = f"{sys.executable} -I -S {ROOT}/tests/live/engine.py"
        return [pid for pid, (_, text) in processes().items() if text.startswith(program) and words in text]

    def unload(self, *models):
        for model in models or ("",):
            self.product.ask(f"/unload?model={model}" if model else "/unload", timeout=60)

    def agent(self, host):
        """The pid of a host's agent."""
        [pid] = self.node(host, f"llamaswap\0agent\0--name\0{host}\0".encode())
        return pid

    def chat(self, model, timeout=60):
        """(status, pid of the engine, seconds) of one request."""
        status, _, data = self.product.ask("/v1/chat/completions", {"model": model, "messages": []}, timeout=timeout)
        return status, json.loads(data).get("pid") if status == 200 else data

    def stream(self, model):
        """A streamed answer, as it arrives."""
        return Stream(self.product.url, model)

    def __exit__(self, *_):
        everything = set().union(*(below(join.pid) for join in self.joins.values()), below(self.product.process.pid))
        for join in self.joins.values():
            join.send_signal(signal.SIGCONT)
            join.terminate()
        self.product.__exit__()
        for join in self.joins.values():
            try:
                join.wait(20)
            except subprocess.TimeoutExpired:
                pass
        kill(pid for pid in everything if alive(pid))
        for join in self.joins.values():
            join.wait(10)
        self._home.cleanup()


class Stream:
    """A request whose answer is read in the background: `data` so far, `ended` when it is over, however that was."""

    def __init__(self, url, model):
        body = json.dumps({"model": model, "messages": [], "stream": True}).encode()
        request = urllib.request.Request(url + "/v1/chat/completions", body, {"Content-Type": "application/json"})
        self.data, self.error, self.status = b"", None, None
        self.ended = threading.Event()
        threading.Thread(target=self._read, args=(request,), daemon=True).start()

    def _read(self, request):
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                self.status = answer.status
                while piece := answer.read1(65536):
                    self.data += piece
        except Exception as error:
            self.error = error
        self.ended.set()
