"""What is measured: the product, a peer given by its command line, nginx, a bare loop, or the server without a proxy.

Each is a process group on one core (where there are two), the load and the servers on the other; its CPU time
and memory are read from /proc for the whole group.
"""

import compileall
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.load import KEY

ROOT = Path(__file__).parent.parent
CPU_CLOCK = 2  # of a process, all its threads: see clock_getcpuclockid(3)
CORES = sorted(os.sched_getaffinity(0))
PROXY_CORE, OTHER_CORE = CORES[0], CORES[-1]


def free_port():
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for_port(port, seconds=90.0):
    """Wait until something accepts on the port; returns how long that took."""
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return time.perf_counter() - began
        except OSError:
            time.sleep(0.001)
    raise RuntimeError(f"nothing listens on port {port} after {seconds} s")


class Process:
    """A command in a session of its own, pinned to a core; ended with its group."""

    def __init__(self, words, core, env=None, output=None):
        self.words = [str(word) for word in words]
        self.output = output or subprocess.DEVNULL
        self.child = subprocess.Popen(
            self.words,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=self.output,
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )

    @property
    def pid(self):
        return self.child.pid

    def members(self):
        """(pid, fields after the name) of each process of the group."""
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                if int(fields[2]) == self.pid:
                    yield int(entry), fields

    def cpu(self):
        """Seconds of CPU the group has used so far. /proc counts in ticks of 10 ms; the clock of a process does not."""
        used = 0.0
        for pid, _ in self.members():
            try:
                used += time.clock_gettime(~pid << 3 | CPU_CLOCK)
            except OSError:
                continue  # it has ended
        return used

    def rss(self):
        """Resident bytes of the group."""
        page = os.sysconf("SC_PAGE_SIZE")
        return sum(int(fields[21]) * page for _, fields in self.members())

    def peak(self):
        """The most resident bytes the first process ever had."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return 0

    def stop(self):
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
            try:
                self.child.wait(15)
            except subprocess.TimeoutExpired:
                pass
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.child.wait(10)


def server(port, ready_after=0.0):
    """The benchmarks' model server, on the load's core."""
    process = Process([sys.executable, ROOT / "benchmarks" / "server.py", "--port", port], OTHER_CORE)
    wait_for_port(port)
    return process


class Subject:
    """A proxy in front of a model server that listens on `upstream`; `port` is where it listens."""

    name = ""

    def start(self, upstream):
        raise NotImplementedError

    def stop(self):
        self.process.stop()
        self.folder.cleanup()

    def launch(self, words, env=None):
        began = time.perf_counter()
        with open(Path(self.folder.name) / "log", "wb") as log:
            self.process = Process(words, PROXY_CORE, env, log)
        wait_for_port(self.port)
        self.startup = time.perf_counter() - began


def configuration():
    """One model whose server the proxy starts and which moves to the load's core. A key and a filter are on."""
    command = f"{sys.executable} {ROOT}/benchmarks/server.py --port ${{PORT}} --core {OTHER_CORE}"
    lines = [f"startPort: {free_port()}", f"apiKeys: [{KEY}]", "models:", "  bench:", f"    cmd: {command}"]
    return "\n".join([*lines, "    filters:", "      stripParams: temperature", ""])


class Product(Subject):
    """This checkout with everything on; perhaps on another `reactor`, or `without` some fast paths."""

    name = "llamaswap"

    def __init__(self, reactor=None, without=None):
        self.reactor, self.without = reactor, without
        if reactor:
            self.name = f"llamaswap, {reactor}"
        elif without:
            self.name = f"without {without}"

    def program(self):
        """The module that runs the service, and its own arguments."""
        return ["benchmarks.without", self.without] if self.without else ["twisted"]

    def start(self, upstream):
        compileall.compile_dir(ROOT / "llamaswap", quiet=1)  # as an installation has it
        self.folder = tempfile.TemporaryDirectory()
        self.port = free_port()
        config = Path(self.folder.name) / "config.yaml"
        config.write_text(configuration())
        words = [sys.executable, "-m", *self.program()]
        words += ["--reactor", self.reactor] if self.reactor else []
        words += ["llamaswap", "--config", config, "--listen", f"127.0.0.1:{self.port}"]
        self.launch(words, {"PYTHONPATH": str(ROOT)})


class Command(Subject):
    """Another proxy. Its command line may hold {config}, {port} and {upstream}."""

    def __init__(self, command, name="peer"):
        self.command, self.name = command, name

    def start(self, upstream):
        self.folder = tempfile.TemporaryDirectory()
        self.port = free_port()
        config = Path(self.folder.name) / "config.yaml"
        config.write_text(configuration())
        words = self.command.format(config=config, port=self.port, upstream=upstream).split()
        self.launch(words)


LITELLM = """
model_list:
  - model_name: bench
    litellm_params: {{model: openai/bench, api_base: "http://127.0.0.1:{upstream}/v1", api_key: none}}
general_settings: {{master_key: {key}}}
"""


class LiteLLM(Subject):
    """The Python proxy of LiteLLM (`pip install 'litellm[proxy]'`), with one worker and a key."""

    name = "litellm"

    @staticmethod
    def path():
        """The program; None where it is not installed."""
        return shutil.which("litellm")

    def start(self, upstream):
        self.folder = tempfile.TemporaryDirectory()
        self.port = free_port()
        config = Path(self.folder.name) / "config.yaml"
        config.write_text(LITELLM.format(upstream=upstream, key=KEY))
        words = [self.path(), "--config", config, "--host", "127.0.0.1", "--port", self.port, "--num_workers", 1]
        self.launch(words, {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"})


NGINX = """
worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 8192; }}
http {{
  access_log {folder}/access.log; client_max_body_size 0; client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  keepalive_requests 1000000;
  upstream bench {{ server 127.0.0.1:{upstream}; keepalive 256; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://bench; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_request_buffering off;
    }}
  }}
}}
"""


class Nginx(Subject):
    """One worker, kept-alive connections to the server, buffering off, access log on."""

    name = "nginx"

    @staticmethod
    def path():
        return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")

    def start(self, upstream):
        self.folder = tempfile.TemporaryDirectory()
        self.port = free_port()
        config = Path(self.folder.name) / "nginx.conf"
        config.write_text(NGINX.format(folder=self.folder.name, upstream=upstream, port=self.port))
        self.launch([self.path(), "-p", self.folder.name, "-c", config])


class Relay(Subject):
    """A loop in Python that copies bytes and does nothing else."""

    name = "bare loop"

    def start(self, upstream):
        self.folder = tempfile.TemporaryDirectory()
        self.port = free_port()
        self.launch([sys.executable, "-I", "-S", ROOT / "benchmarks" / "relay.py", self.port, upstream])


class Direct(Subject):
    """No proxy: the load goes to the server itself."""

    name = "direct"

    def start(self, upstream):
        self.folder = tempfile.TemporaryDirectory()
        self.port = upstream
        self.process = None

    def stop(self):
        self.folder.cleanup()
