"""Send at once when nothing waits before it.

Twisted's `transport.write` queues and sends on the reactor's next turn, after registering for writability: three
system calls and a turn for what one `send` does. On a busy proxy that is a third of the work. So while a plain TCP
transport's queue is empty we send ourselves and queue only the rest.

This reads private state of `twisted.internet.abstract.FileDescriptor` (there is no public way to ask whether the
queue is empty). Only this module does; tests/proxy/test_direct_write.py fails when the attributes move, and a
transport without them is simply written to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.tcp import Connection

from llamaswap.proxy.transport import Transport

_SEND_LIMIT = 1 << 20  # a larger piece is queued whole: slicing its rest off would copy most of it again


def write_through(transport: Transport) -> Callable[[bytes], None]:
    """The fastest correct `write` for this transport: its own, unless it is a plain TCP connection."""
    plain: object = transport
    if not isinstance(plain, Connection) or getattr(plain, "TLS", False):
        return transport.write
    return _DirectWriter(plain).write


class _DirectWriter:
    """A `write` of which thousands may exist: an object with one slot is a fifth of a closure."""

    __slots__ = ("_queue",)

    def __init__(self, queue: Connection) -> None:
        self._queue = queue

    def write(self, data: bytes) -> None:
        """Send at once, or queue."""
        queue = self._queue
        if (
            queue._tempDataBuffer
            or queue.dataBuffer
            or queue.disconnecting
            or not queue.connected
            or queue._writeDisconnecting
            or queue.TLS
            or len(data) > _SEND_LIMIT
        ):
            queue.write(data)
            return
        try:
            sent = queue.socket.send(data)
        except OSError:
            # Full, or broken: the reactor's own attempt tells which and reports it the usual way.
            queue.write(data)
            return
        if sent < len(data):
            queue.write(data[sent:])


def forget_unsent(transport: Transport) -> None:
    """Drop what a lost connection can no longer send: its objects may wait for a garbage collection."""
    wire: Any = getattr(transport, "transport", transport)
    if getattr(wire, "dataBuffer", None):
        wire.dataBuffer = b""
        wire.offset = 0
    if getattr(wire, "_tempDataBuffer", None):
        wire._tempDataBuffer = []
        wire._tempDataLen = 0


def unsent(transport: Transport) -> bool:
    """Whether bytes given to a transport have not gone out yet; below TLS, those of its connection."""
    wire = getattr(transport, "transport", transport)
    return bool(getattr(wire, "_tempDataBuffer", None) or getattr(wire, "dataBuffer", None))


def unsent_bytes(transport: Transport) -> int:
    """How many bytes given to a transport have not gone out yet; below TLS, those of its connection."""
    wire = getattr(transport, "transport", transport)
    buffered = len(getattr(wire, "dataBuffer", b"")) - getattr(wire, "offset", 0)
    return int(buffered + getattr(wire, "_tempDataLen", 0))
