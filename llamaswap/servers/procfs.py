"""Processes and ports as /proc and the kernel know them; without /proc every answer is "unknown".

Standard library only and cheap to import: the guardian uses it in an interpreter without site-packages. psutil is no
substitute in the proxy: to find the owner of a port takes it 15 ms, which block the reactor, and this module 0.2 ms.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

MARK = "LLAMASWAP_CHILD"  # the environment variable by which a descendant is known even after it left its session

_PAGE = os.sysconf("SC_PAGE_SIZE")


class Stat(NamedTuple):
    """One process as /proc/<pid>/stat has it; `start` is in clock ticks since boot."""

    pid: int
    name: str
    state: str
    parent: int
    group: int
    session: int
    start: int

    @property
    def dead(self) -> bool:
        """Whether it is a zombie, which has no memory, no file and no port, and only waits to be reaped."""
        return self.state in "ZX"


def _read(path: str) -> bytes:
    """A file of /proc, which never blocks; os.open spares the layers of open()."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        pieces = []
        while piece := os.read(descriptor, 65536):
            pieces.append(piece)
        return b"".join(pieces)
    finally:
        os.close(descriptor)


def stat(pid: int) -> Stat | None:
    """The process, or None if it does not exist or /proc is missing."""
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = os.read(descriptor, 4096).decode("ascii", "replace")  # the kernel gives this one line at once
        finally:
            os.close(descriptor)
    except OSError:
        return None
    head, _, rest = text.rpartition(")")  # the name may contain brackets and blanks
    fields = rest.split()
    if len(fields) < 20:
        return None
    name = head.partition("(")[2]
    return Stat(pid, name, fields[0], int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19]))


def _pids() -> Iterator[int]:
    """The number of every visible process."""
    try:
        names = os.listdir("/proc")
    except OSError:
        return
    yield from map(int, filter(str.isdigit, names))


def everyone() -> Iterator[Stat]:
    """Every visible process."""
    for pid in _pids():
        found = stat(pid)
        if found is not None:
            yield found


def started_since(start: int) -> Iterator[Stat]:
    """Every visible process that started then or later, those left out whose session is older.

    For the descendants of a session leader that is all: they are in its session or in one that they made. A process's
    session takes a system call, a tenth of the time that reading the process takes.
    """
    older = {0: True}  # the session of kernel threads
    for pid in _pids():
        try:
            session = os.getsid(pid)
        except ProcessLookupError:
            continue
        except OSError:
            session = -1  # not to be known, so the process is read
        if session not in older:
            leader = stat(session)  # None if it has ended; its number is not used again while the session has members
            older[session] = leader is not None and leader.start < start
        found = None if older[session] else stat(pid)
        if found is not None and found.start >= start:
            yield found


def descendants(pid: int) -> list[Stat] | None:
    """The processes a living one has started, and those that these have, as far as their parents live.

    Reads only these, and `everyone` reads all processes. None if the kernel does not list children.
    """
    found: list[Stat] = []
    waiting = [pid]
    while waiting:
        children = _children(waiting.pop())
        if children is None:
            return None
        for child in children:
            one = stat(child)
            if one is not None:
                found.append(one)
                waiting.append(child)
    return found


def work_of(pid: int) -> tuple[int, int]:
    """The bytes that a process and its descendants have in memory, and those they have read from files and sockets."""
    memory = read = 0
    for one in (pid, *(child.pid for child in descendants(pid) or ())):
        try:
            memory += int(_read(f"/proc/{one}/statm").split()[1]) * _PAGE
            read += int(_read(f"/proc/{one}/io").split()[1])  # rchar, also what came from the page cache
        except (OSError, IndexError, ValueError):
            continue  # it ended, or we may not look
    return memory, read


def _children(pid: int) -> list[int] | None:
    """The children of all threads of a process; empty if it has ended."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    children: list[int] = []
    for thread in threads:
        try:
            children += map(int, _read(f"/proc/{pid}/task/{thread}/children").split())
        except FileNotFoundError:
            if os.path.exists(f"/proc/{pid}/task/{thread}/stat"):
                return None  # a kernel without CONFIG_PROC_CHILDREN
        except OSError:
            continue  # the thread ended meanwhile
    return children


def available() -> bool:
    """Whether this machine has /proc."""
    return stat(os.getpid()) is not None


def mark_of(pid: int) -> str | None:
    """The mark a process carries in the environment it was started with; None for none or unknown."""
    try:
        environ = _read(f"/proc/{pid}/environ")
    except OSError:
        return None
    lead = MARK.encode() + b"="
    for pair in environ.split(b"\0"):
        if pair.startswith(lead):
            return os.fsdecode(pair[len(lead) :])
    return None


def members(leader: int, start: int, mark: str) -> list[Stat]:
    """Living processes of the leader's session or group, and marked ones that left both. The leader may have ended.

    A pid is not handed out again while a group of that number has members. So when the number belongs to a
    process with another start time, the old group is empty and only the mark counts.
    """
    seen = list(started_since(start))
    reused = any(one.pid == leader and one.start != start for one in seen)
    ours = []
    for one in seen:
        related = not reused and leader in (one.group, one.session)
        if one.dead:
            if related and one.pid != leader and one.parent == os.getpid():
                _reap(one.pid)
            continue
        if related or (one.pid != os.getpid() and mark_of(one.pid) == mark):
            ours.append(one)
    return ours


def _reap(pid: int) -> None:
    """As the first process of a container, this one is the parent of all orphans and has to reap them."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except OSError:
        pass  # it was reaped meanwhile


def boot() -> str:
    """The id of this run of the kernel: start times of two runs cannot be compared."""
    try:
        return _read("/proc/sys/kernel/random/boot_id").decode().strip()
    except OSError:
        return ""


def listeners() -> list[tuple[int, int]]:
    """(port, inode) of every listening TCP socket.

    For /proc/net/tcp the kernel walks all connections, which takes 10 ms and more; by netlink it walks the listeners.
    """
    try:
        return _ask_diag(socket.AF_INET) + _ask_diag(socket.AF_INET6)
    except (OSError, AttributeError, struct.error):
        return listeners_in_proc()


def _ask_diag(family: int) -> list[tuple[int, int]]:
    """One dump of inet_diag, restricted to the state LISTEN; the layouts are linux/inet_diag.h's."""
    found: list[tuple[int, int]] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as asker:  # NETLINK_SOCK_DIAG
        asker.settimeout(0.1)
        request = struct.pack("=BBBxI48x", family, socket.IPPROTO_TCP, 0, 1 << 10)
        asker.send(struct.pack("=IHHII", 16 + len(request), 20, 0x301, 1, 0) + request)  # SOCK_DIAG_BY_FAMILY, dump
        while True:
            data = asker.recv(1 << 16)
            while len(data) >= 16:
                length, kind = struct.unpack_from("=IH", data)
                if kind == 3:  # NLMSG_DONE
                    return found
                if kind == 2 or length < 16:  # NLMSG_ERROR
                    raise OSError("inet_diag is unavailable")
                (port,) = struct.unpack_from(">H", data, 20)
                (inode,) = struct.unpack_from("=I", data, 84)
                found.append((port, inode))
                data = data[(length + 3) & ~3 :]


def listeners_in_proc() -> list[tuple[int, int]]:
    """What `listeners` returns, from /proc/net/tcp: for a kernel without inet_diag."""
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = _read(table).decode("ascii", "replace").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == "0A":  # LISTEN
                found.append((int(fields[1].rpartition(":")[2], 16), int(fields[9])))
    return found


def listening(port: int) -> set[int]:
    """Inodes of the TCP sockets that listen on the port, on whatever address."""
    return {inode for held, inode in listeners() if held == port}


def ports_of(pids: set[int]) -> set[int]:
    """The TCP ports these processes listen on."""
    inodes: set[int] = set()
    for pid in pids:
        inodes |= sockets(pid) or set()
    return {port for port, inode in listeners() if inode in inodes}


def sockets(pid: int) -> set[int] | None:
    """Inodes of the sockets a process holds; None if that may not be read."""
    inodes = set()
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return None
    for name in names:
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(int(target[8:-1]))
    return inodes


def holder(port: int) -> Stat | None:
    """A process that listens on the port, if that may be read."""
    wanted = listening(port)
    if not wanted:
        return None
    for one in everyone():
        if wanted & (sockets(one.pid) or set()):
            return one
    return None


def taken(host: str, port: int) -> bool:
    """Whether a server started now could not have the port for itself.

    Two checks, because neither is enough. A connection finds a listener that used SO_REUSEPORT, which would share the
    port silently. A bind finds a socket that does not listen; it uses both reuse options, because closed connections
    (TIME_WAIT) fail a plain bind for a minute after every stop, and most servers ignore them.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if _answers(family, host, port):
        return True
    try:
        with socket.socket(family, socket.SOCK_STREAM) as binder:
            binder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if hasattr(socket, "SO_REUSEPORT"):
                binder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            binder.bind((host, port))
    except OSError:
        return True
    return False


def _answers(family: int, host: str, port: int) -> bool:
    """Whether a connection is accepted. Loopback answers at once, unless the listener's queue is full."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as caller:
            caller.setblocking(False)
            caller.connect_ex((host, port))
            poller = select.poll()
            poller.register(caller, select.POLLOUT)
            if poller.poll(5):
                return caller.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    except OSError:
        return False  # an address family that this machine lacks: the bind says more
    return bool(listening(port))


def free_port(host: str) -> int:
    """A port that is free now. The kernel takes it from the ephemeral range, away from configured ones."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as binder:
        binder.bind((host, 0))
        return int(binder.getsockname()[1])


def signal_group(group: int, number: int) -> bool:
    """Signal a process group; False if it is empty. A member that may not be signalled counts."""
    return _signal(os.killpg, group, number)


def signal_one(pid: int, number: int) -> bool:
    """Signal one process; False if it does not exist."""
    return _signal(os.kill, pid, number)


def _signal(send: Callable[[int, int], None], target: int, number: int) -> bool:
    try:
        send(target, number)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
