"""What the front asks the process that talks to Ray, as AMP commands over its standard streams.

Documents are compressed JSON: a value of AMP has at most 64 kB, which are the facts of some thousand hosts.
"""

from __future__ import annotations

import json
import zlib
from typing import ClassVar

from twisted.protocols.amp import Argument, Boolean, Command, Unicode

MAX_DOCUMENT = 1 << 22  # bytes when decompressed


class Document(Argument):
    """A JSON value."""

    def toString(self, inObject: object) -> bytes:
        return zlib.compress(json.dumps(inObject).encode(), 1)

    def fromString(self, inString: bytes) -> object:
        return json.loads(zlib.decompressobj().decompress(inString, MAX_DOCUMENT))


class RayError(Exception):
    """Ray did not do what was asked; the text says why."""


class ListNodes(Command):
    """Each node that was joined by `llamaswap hosts join`: {host, alive, address, port, labels, sizes, addresses}.

    `sizes` are what can be reserved there, in MiB by device; `addresses` those of all nodes with this name.
    """

    arguments: ClassVar[list[tuple[bytes, Argument]]] = []
    response = [(b"nodes", Document())]
    errors = {RayError: b"RAY"}


class EnsureAgent(Command):
    """The keeper of this host's agent is started, unless it runs."""

    arguments = [(b"host", Unicode())]
    response = [(b"report", Document())]
    errors = {RayError: b"RAY"}


class Reserve(Command):
    """Reserve these resources of a host under a name, within the seconds of `limit`."""

    arguments = [(b"name", Unicode()), (b"host", Unicode()), (b"sizes", Document())]
    response = [(b"reserved", Boolean()), (b"why", Unicode())]
    errors = {RayError: b"RAY"}


class Release(Command):
    """End the reservation of this name; one that does not exist is not an error."""

    arguments = [(b"name", Unicode())]
    response: ClassVar[list[tuple[bytes, Argument]]] = []
    errors = {RayError: b"RAY"}


class ListReservations(Command):
    """The names of all reservations."""

    arguments: ClassVar[list[tuple[bytes, Argument]]] = []
    response = [(b"names", Document())]
    errors = {RayError: b"RAY"}
