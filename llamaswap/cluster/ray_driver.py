"""The process between a front and Ray: answers AMP commands on its standard streams. Only this module imports Ray.

It runs as ``python -m llamaswap.cluster.ray_driver HOST:PORT`` and ends when its input does, or when Ray cannot be
reached; the front starts it again. With ``--head`` it starts the head, which ends with it; with ``--check`` it only
says by its status whether the head takes the token. `Keeper` runs in a process of Ray on each host, and starts the
agent there.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any, TypeVar

from llamaswap.cluster.ray_node import (
    ADDRESS_LABEL,
    AGENT_PORT,
    HOST_LABEL,
    LOG_VARIABLE,
    PORT_LABEL,
    TOKEN_VARIABLES,
    as_group,
    head_words,
    temp_folder,
    with_parent,
)

NAMESPACE = "llamaswap"
RESERVE_LIMIT = 2.0  # seconds until a reservation that waits is given up: the picture of that host is outdated
KEEPER_LIMIT = 30.0
RESTART_PAUSE = 1.0
HEAD_LIMIT = 30.0
HEAD_INTERVAL = 0.5  # seconds between two looks at whether a head that another process started is there
CONNECT_LIMIT = 60.0
CHECK_LIMIT = 1.0
MAX_LOG = 1 << 20  # bytes
MAX_RELEASED = 1000
T = TypeVar("T")
names_lock = threading.Lock()
being_made: set[str] = set()
released: dict[str, None] = {}
"""The latest reservations that were ended: one that is still being made must not outlast its end."""


def agent_words(host: str) -> list[str]:
    """The words of the agent's command, on the node of this process."""
    import ray
    from ray.util import get_node_ip_address

    labels = ray.get_runtime_context().get_node_labels()
    address, port = labels.get(ADDRESS_LABEL) or get_node_ip_address(), labels.get(PORT_LABEL) or AGENT_PORT
    return ["agent", "--name", host, "--listen", f"{address}:{port}"]


class Keeper:
    """Keeps the agent of a host running. The agent is killed when this process ends, and its guardian ends its servers.

    After the end of a node Ray makes it again on the host's next one, which may have another address.
    """

    def __init__(self, host: str) -> None:
        self._words = agent_words(host)
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0
        self._ended = threading.Event()
        # One thread for the whole life: the kernel counts the end of the thread that started it as the parent's end.
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environ |= {name: os.environ[name] for name in TOKEN_VARIABLES if name in os.environ}
        environ.pop("LD_PRELOAD", None)
        while not self._ended.is_set():
            words = with_parent([sys.executable, "-m", "llamaswap", *self._words])
            self._process = subprocess.Popen(words, env=environ, stdin=subprocess.DEVNULL)
            self._starts += 1
            self._process.wait()
            time.sleep(RESTART_PAUSE)

    def report(self) -> dict[str, object]:
        """The agent's process, and how often it was started."""
        process = self._process
        return {"pid": process.pid if process is not None else None, "starts": self._starts}

    def stop(self) -> None:
        """End the agent in order: its servers are stopped."""
        self._ended.set()
        if self._process is not None:
            self._process.terminate()


def connect(address: str) -> None:
    """Connect this process to the cluster, or end it with a message."""
    import ray

    until = time.monotonic() + CONNECT_LIMIT
    while True:
        try:
            ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, configure_logging=False)
            return
        except Exception as error:  # of many kinds; most often the head is still starting
            ray.shutdown()
            if time.monotonic() >= until:
                sys.exit(f"cannot connect to Ray at {address}: {error}")
            time.sleep(0.2)


def nodes() -> list[dict[str, object]]:
    """The nodes of hosts; of several with one name the one that is alive, with the `addresses` of all that are."""
    import ray

    found: dict[str, dict[str, Any]] = {}
    for node in ray.nodes():
        labels = dict(node.get("Labels") or {})
        host = labels.pop(HOST_LABEL, "")
        if not host:
            continue
        address, port = labels.pop(ADDRESS_LABEL, node["NodeManagerAddress"]), labels.pop(PORT_LABEL, "")
        if host in found and found[host]["alive"]:
            if node["Alive"]:
                found[host]["addresses"].append(address)
            continue
        found[host] = {
            "host": host,
            "alive": bool(node["Alive"]),
            "address": address,
            "port": int(port) if port.isdigit() else AGENT_PORT,
            "labels": {name: value for name, value in labels.items() if not name.startswith("ray.io/")},
            "sizes": {
                name.removesuffix("_mib"): int(size)
                for name, size in (node.get("Resources") or {}).items()
                if name.endswith("_mib")
            },
            "addresses": [address] if node["Alive"] else [],
        }
    return list(found.values())


def ensure_agent(host: str) -> dict[str, object]:
    """Start the keeper of a host unless it runs."""
    import ray
    from ray.exceptions import ActorUnavailableError

    if not any(one["host"] == host and one["alive"] for one in nodes()):
        raise ValueError(f"{host} is not a node that is alive")
    keeper = ray.remote(Keeper).options(
        name=f"node/{host}",
        get_if_exists=True,
        lifetime="detached",
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=0,
        label_selector={HOST_LABEL: host},
    )
    actor: Any = keeper.remote(host)
    until = time.monotonic() + KEEPER_LIMIT
    while True:
        try:
            found: dict[str, object] = ray.get(actor.report.remote(), timeout=KEEPER_LIMIT)
            return found
        except ActorUnavailableError:  # its node was restarted, and Ray restarts it
            if time.monotonic() >= until:
                raise
            time.sleep(RESTART_PAUSE)


def reserve(name: str, host: str, sizes: dict[str, int]) -> str:
    """Reserve these resources of a host; returns why they are not there, or ""."""
    with names_lock:
        if name in released:
            return "the reservation was ended before it was made"
        being_made.add(name)
    try:
        why = _make_reservation(name, host, sizes)
    finally:
        with names_lock:
            being_made.discard(name)
            ended = name in released
    if ended:
        release(name)
    return why


def _make_reservation(name: str, host: str, sizes: dict[str, int]) -> str:
    from ray.util.placement_group import get_placement_group, placement_group, remove_placement_group

    bundle = {resource: float(size) for resource, size in sizes.items() if size > 0}
    if not bundle:
        return ""
    try:
        group = get_placement_group(name)  # of an earlier attempt, whose answer did not arrive
    except ValueError:
        selector = [{HOST_LABEL: host}]
        group = placement_group(
            [bundle], strategy="STRICT_PACK", name=name, lifetime="detached", bundle_label_selector=selector
        )
    if group.wait(RESERVE_LIMIT):
        return ""
    remove_placement_group(group)
    wanted = ", ".join(f"{resource} {size}" for resource, size in sizes.items())
    return f"Ray has not reserved {wanted} on {host} within {RESERVE_LIMIT:.0f} s"


def reservations() -> list[str]:
    """The names of the placement groups that exist."""
    from ray.util.placement_group import placement_group_table

    return [str(group["name"]) for group in placement_group_table().values() if group["state"] != "REMOVED"]


def release(name: str) -> None:
    """Remove the placement group of this name, if there is one.

    Of a group that is removed while it is made, the node's part of Ray keeps the memory until it is restarted. So it is
    removed as soon as it is made.
    """
    from ray.util.placement_group import get_placement_group, remove_placement_group

    with names_lock:
        released[name] = None
        while len(released) > MAX_RELEASED:
            released.pop(next(iter(released)))
        if name in being_made:
            return
    try:
        remove_placement_group(get_placement_group(name))
    except ValueError:
        pass


def start_head(address: str) -> None:
    """Start the head on this machine, and wait until it listens; this process ends when the head does.

    If one listens already, it is used as long as it does: it is that of another front, or of one that has just ended.
    """
    host, _, port = address.rpartition(":")
    if listens(host, int(port), 0.0):
        threading.Thread(target=_end_without, args=(host, int(port)), daemon=True).start()
        return
    with suppress(OSError):
        # It names the last head here, and Ray would refuse to start another one beside nodes of the same cluster.
        os.unlink(os.path.join(temp_folder(), "ray_current_cluster"))
    words = as_group(head_words(host, int(port)))
    head = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=2)

    def watch() -> None:
        status = head.wait()
        sys.stderr.write(f"the head of Ray at {address} ended with status {status}\n")
        sys.stderr.flush()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    if not listens(host, int(port), HEAD_LIMIT):
        sys.exit(f"the head of Ray at {address} does not listen after {HEAD_LIMIT:.0f} s")
    # While Ray still starts its other processes it notices only after half a minute that this one ended.
    threading.Thread(target=_end_without, args=(host, int(port)), daemon=True).start()


def _end_without(host: str, port: int) -> None:
    """End this process when nothing listens there any more. The front starts it again, and so a head."""
    while listens(host, port, HEAD_INTERVAL):
        time.sleep(HEAD_INTERVAL)
    sys.stderr.write(f"the head of Ray at {host}:{port} ended\n")
    sys.stderr.flush()
    os._exit(1)


def listens(host: str, port: int, limit: float) -> bool:
    """Whether a TCP port answers within so many seconds."""
    until = time.monotonic() + limit
    while True:
        try:
            socket.create_connection((host, port), timeout=max(0.1, until - time.monotonic())).close()
            return True
        except OSError:
            if time.monotonic() >= until:
                return False
            time.sleep(0.1)


def check(address: str) -> None:
    """End with status 0 if the head takes the token, with 3 if it does not, and with 4 if it cannot be reached."""
    host, _, port = address.rpartition(":")
    if not listens(host, int(port), CHECK_LIMIT):
        sys.exit(4)
    from ray.exceptions import AuthenticationError

    try:
        import_module("ray._raylet").GcsClient(address=address)
    except AuthenticationError:
        sys.exit(3)


def main(address: str, head: bool) -> None:
    """Answer the front until it ends."""
    output = os.dup(1)
    text = os.open(os.environ[LOG_VARIABLE], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    if os.fstat(text).st_size > MAX_LOG:
        os.ftruncate(text, 0)
    os.dup2(text, 1)  # what Ray prints must not get between the answers
    os.dup2(text, 2)
    if head:
        start_head(address)
    connect(address)
    answer(output)


def answer(output: int) -> None:
    """Answer the commands on standard input until it ends."""
    from twisted.internet import reactor
    from twisted.internet.defer import Deferred
    from twisted.internet.stdio import StandardIO
    from twisted.internet.threads import deferToThread
    from twisted.protocols.amp import AMP
    from twisted.python.failure import Failure

    from llamaswap.cluster import driver_protocol as protocol

    def explained(failure: Failure) -> Failure:
        lines = str(failure.value).strip().splitlines() or [type(failure.value).__name__]
        return Failure(protocol.RayError(lines[0]))

    def call(function: Callable[..., T], *given: object) -> Deferred[T]:
        return deferToThread(function, *given).addErrback(explained)

    class Answers(AMP):
        @protocol.ListNodes.responder
        def list_nodes(self) -> Any:
            return call(nodes).addCallback(lambda found: {"nodes": found})

        @protocol.EnsureAgent.responder
        def ensure_agent(self, host: str) -> Any:
            return call(ensure_agent, host).addCallback(lambda found: {"report": found})

        @protocol.Reserve.responder
        def reserve(self, name: str, host: str, sizes: dict[str, int]) -> Any:
            return call(reserve, name, host, sizes).addCallback(lambda why: {"reserved": not why, "why": why})

        @protocol.Release.responder
        def release(self, name: str) -> Any:
            return call(release, name).addCallback(lambda _: {})

        @protocol.ListReservations.responder
        def list_reservations(self) -> Any:
            return call(reservations).addCallback(lambda names: {"names": names})

        def connectionLost(self, reason: Any = None) -> None:
            os._exit(0)  # at once: calls to Ray may still wait in threads

    # Ray's own handler raises an exception inside the reactor, which would log it and go on.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    StandardIO(Answers(), stdin=0, stdout=output)  # type: ignore[call-arg]  # mypy reads that of Windows
    reactor.run(installSignalHandlers=False)  # type: ignore[call-arg]  # SIGTERM ends it at once


if __name__ == "__main__":
    if "--check" in sys.argv:
        check(sys.argv[1])
    else:
        main(sys.argv[1], "--head" in sys.argv)
