"""How Ray is started on a machine: the folder of its token and state, its environment, and its commands.

This module does not import Ray. As a program it runs a command that ends with its parent.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from attrs import frozen

DEFAULT_PORT = 6399  # of the head; Ray's own default, 6379, is that of Redis
AGENT_PORT = 6400
HOST_LABEL, ADDRESS_LABEL, PORT_LABEL = "llamaswap-host", "llamaswap-address", "llamaswap-port"
LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?\Z")
NODE_INTERVAL = 1.0  # seconds between two looks at whether a node runs
END_GRACE = 5  # seconds between SIGTERM to the processes of Ray and SIGKILL
OBJECT_STORE = 78_643_200  # bytes, the least that Ray accepts: nothing is stored there
LOG_VARIABLE = "LLAMASWAP_RAY_LOG"  # the file for what the front's process for Ray and the head print
TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
JOIN_TOKEN = "LLAMASWAP_HOSTS_TOKEN"  # of `hosts join`
TOKEN = re.compile(r"[A-Za-z0-9_-]{16,512}\Z")
EVERYWHERE = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    # With Ray's defaults a killed node is noticed after 15 seconds.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    # One request that is lost on a busy machine must not use up the 30 seconds of a start.
    "RAY_gcs_server_request_timeout_seconds": "10",
    # Nodes wait for a head that is restarted; what runs there goes on.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "86400",
    # `join` has drained its host already when it ends Ray.
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
}
"""Variables that must be the same on all machines."""


class NotInitialized(ValueError):
    """This machine has no token yet."""


@frozen
class ClusterFolder:
    """The folder of what outlasts a restart: the token, the head's address and state, and the known hosts."""

    path: Path

    @property
    def token_file(self) -> Path:
        """The token. Anyone who has it can run programs on all hosts."""
        return self.path / "token"

    def prepare(self) -> None:
        """Make the folder, for this user alone."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def token(self) -> str:
        """The token; raises NotInitialized."""
        try:
            token = self.token_file.read_text(encoding="ascii", errors="replace").strip()
        except (FileNotFoundError, NotADirectoryError):
            raise NotInitialized(
                f"{self.token_file} does not exist; `llamaswap hosts init --state {self.path}` makes it"
            ) from None
        if not TOKEN.match(token):  # such as of a disk that was full
            raise NotInitialized(
                f"{self.token_file} does not hold a token: delete it, run `llamaswap hosts init --state {self.path}` "
                "and give the other machines the new one"
            )
        return token

    def is_exposed(self) -> bool:
        """Whether other users of this machine can read the token."""
        return bool(self.token_file.stat().st_mode & 0o077)

    def keep_token(self, token: str | None = None) -> str:
        """Write this token, or a new one if there is none yet; only this user can read the file."""
        self.prepare()
        if token is None and self.token_file.exists():
            return self.token()
        made = token or secrets.token_urlsafe(32)
        self.write("token", made)
        return made

    def write(self, name: str, text: str) -> None:
        """Replace a file in one step."""
        self.prepare()
        descriptor, path = tempfile.mkstemp(dir=self.path)  # 0600
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(path, self.path / name)
        except OSError:  # a full disk must not collect the attempts
            os.unlink(path)
            raise

    def document(self, name: str) -> dict[str, object]:
        """A file that `write` wrote as JSON; empty if it is missing or damaged."""
        try:
            found = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def next_front(self, now: int) -> int:
        """The number of a process of llamaswap: greater than that of every earlier one, also if the clock was set back.

        Otherwise all agents would refuse it, as older than the one that they know.
        """
        last = self.document("front.json").get("front")
        number = max(now, last + 1) if isinstance(last, int) else now
        self.write("front.json", json.dumps({"front": number}))
        return number

    def head(self) -> tuple[str, int]:
        """Address and port of the head that runs here; raises NotInitialized."""
        document = self.document("head.json")
        address, port = document.get("address"), document.get("port")
        if not isinstance(address, str) or not isinstance(port, int):
            raise NotInitialized(
                f"{self.path / 'head.json'} does not exist; `llamaswap hosts init --state {self.path}` makes it"
            )
        return address, port


def is_public(address: str) -> bool:
    """Whether an address can be reached from the internet, or is a name, of which that is unknown."""
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return address != "localhost"


def environment(base: Mapping[str, str], folder: ClusterFolder, *, head: bool = False) -> dict[str, str]:
    """The environment of Ray's processes."""
    # Agents, and so their servers, inherit it: these must not have the token.
    made = {name: value for name, value in base.items() if not name.startswith("RAY_") and name != JOIN_TOKEN}
    made |= EVERYWHERE | {"RAY_AUTH_TOKEN_PATH": str(folder.token_file)}
    if head:
        (folder.path / "head").mkdir(mode=0o700, parents=True, exist_ok=True)
        made |= {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(folder.path / "head")}
        made[LOG_VARIABLE] = str(folder.path / "ray.log")
    return made


_START = ("-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", "--include-log-monitor", "false")
_NOTHING = ("--num-cpus", "0", "--num-gpus", "0", "--object-store-memory", str(OBJECT_STORE))


def temp_folder() -> str:
    """Ray's folder of sockets and logs on this machine: short, because the path of a socket is limited."""
    return os.path.join(tempfile.gettempdir(), f"llamaswap-ray-{os.geteuid()}")


def head_words(address: str, port: int) -> list[str]:
    """The command of the head; it ends when one of its processes does."""
    listen = ("--head", "--node-ip-address", address, "--port", str(port), "--temp-dir", temp_folder())
    # The monitor is for clusters that start machines on demand.
    return [sys.executable, *_START, *_NOTHING, *listen, "--include-dashboard", "false", "--no-monitor"]


def node_words(
    head: str, address: str, name: str, port: int, labels: Mapping[str, str], resources: Mapping[str, int]
) -> list[str]:
    """The command of a node that joins the head at HOST:PORT, for the host of this name."""
    given = {**labels, HOST_LABEL: name, ADDRESS_LABEL: address, PORT_LABEL: str(port)}
    text = ",".join(f"{key}={value}" for key, value in given.items())
    more = ("--node-ip-address", address, "--labels", text, "--resources", json.dumps(resources))
    return [sys.executable, *_START, *_NOTHING, "--address", head, *more]


def with_parent(words: Sequence[str]) -> list[str]:
    """A command that is killed when its parent ends."""
    return [sys.executable, "-m", "llamaswap.cluster.ray_node", "one", str(os.getpid()), *words]


def as_group(words: Sequence[str]) -> list[str]:
    """A command with children, all of which end when it ends, when its parent ends, and at SIGTERM."""
    return [sys.executable, "-m", "llamaswap.cluster.ray_node", "group", str(os.getpid()), *words]


def _end_with_parent(parent: int, number: int) -> None:
    """Ask the kernel for this signal when the parent ends."""
    if sys.platform.startswith("linux"):
        import ctypes

        ctypes.CDLL(None).prctl(1, number, 0, 0, 0)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(0)  # it ended before the kernel was asked


def _become(parent: int, words: list[str]) -> None:
    """Replace this process by a command."""
    os.setsid()
    _end_with_parent(parent, signal.SIGKILL)
    os.execv(words[0], words)


def _has_node(pid: int) -> bool:
    """Whether a process of Ray has its node as a child.

    `ray start --block` goes on without its node if SIGTERM ended that, as `ray stop` does, and would never join again.
    """
    for entry in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for one in entry.read_text().split():
                if Path(f"/proc/{one}/comm").read_text().strip() == "raylet":
                    return True
    return False


def _lead(parent: int, words: list[str]) -> None:
    """Run a command as a group of processes. Ray itself leaves its processes behind when it is killed."""
    os.setsid()
    child: subprocess.Popen[bytes] | None = None

    def end(*_: object) -> None:
        signal.alarm(END_GRACE)
        if child is not None:
            child.terminate()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGALRM, lambda *_: os.killpg(0, signal.SIGKILL))
    _end_with_parent(parent, signal.SIGTERM)
    child = subprocess.Popen(words, stdin=subprocess.DEVNULL)
    had_node = False
    while child.poll() is None and (_has_node(child.pid) or not had_node):
        had_node = had_node or _has_node(child.pid)
        with suppress(subprocess.TimeoutExpired):
            child.wait(NODE_INTERVAL)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    {"one": _become, "group": _lead}[sys.argv[1]](int(sys.argv[2]), sys.argv[3:])
