"""What one program hands over to the next in an upgrade: descriptors, and a JSON document about them."""

from __future__ import annotations

import json
import os
import tempfile
from base64 import b64decode, b64encode
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Union, cast, get_args, get_origin, get_type_hints

import attrs
from attrs import asdict, field, frozen

from llamaswap.errors import FailureRecord
from llamaswap.routing.memory_leases import HandedLease
from llamaswap.scheduling.memory import Ledger
from llamaswap.servers.server_snapshot import ServerSnapshot

FORMAT = 1  # of the state; what one program writes, the next must read
INHERIT = "LLAMASWAP_UPGRADE"  # the environment variable that hands over "LISTENING:STATE:WHERE", two descriptors


@frozen
class IdleConnection:
    """A client's connection without a request. `early` are bytes of the next one that were read already."""

    descriptor: int
    family: int
    early: bytes = field(default=b"", repr=False)


@frozen
class HandedJob:
    """A job of a key at a server, as the job directory knows it; it was asked for `age` seconds ago."""

    owner: str
    kind: str
    id: str
    server: str
    name: str
    age: float


@frozen
class UpgradeState:
    """What the next program must know.

    `keeper` is the guardian's (pid, descriptor of the pipe to it), under the name that earlier programs give it.
    `profile` is the one that an operator has chosen ("": none; None: no choice), `logs` the end of each log; `ailing`
    are the models that fail. `memory` is the last ledger: a request must not evict servers whose sizes are known.
    `leases` are those of memory that other programs hold. `ollama` is the second listening socket with its address.
    `jobs` are those that servers work on or have, the one that was not asked for longest first.
    """

    servers: tuple[ServerSnapshot, ...] = ()
    connections: tuple[IdleConnection, ...] = ()
    keeper: tuple[int, int] | None = None
    profile: str | None = None
    pinned: tuple[str, ...] = ()
    logs: Mapping[str, bytes] = field(factory=dict, repr=False)
    count: int = 0
    ailing: tuple[FailureRecord, ...] = ()
    memory: Ledger | None = None
    ollama: tuple[int, str] | None = None
    leases: tuple[HandedLease, ...] = ()
    jobs: tuple[HandedJob, ...] = ()

    @property
    def descriptors(self) -> list[int]:
        """All descriptors that must stay open."""
        found = [one.output for one in self.servers if one.output is not None]
        found += [one.descriptor for one in self.connections]
        found += [self.ollama[0]] if self.ollama is not None else []
        return found + ([self.keeper[1]] if self.keeper is not None else [])


def pack(state: UpgradeState) -> bytes:
    """The state as JSON for the next program."""
    document = asdict(state, value_serializer=lambda _, __, value: _plain(value))
    return json.dumps({"format": FORMAT, **document}).encode()


def _plain(value: object) -> object:
    """The value as JSON can have it."""
    if isinstance(value, frozenset):
        return sorted(value)
    return b64encode(value).decode() if isinstance(value, bytes) else value


def unpack(data: bytes) -> UpgradeState:
    """The state that `pack` wrote. Fields that the earlier program did not know have their defaults, those that this
    one does not know are left out. Raises ValueError."""
    try:
        document = json.loads(data)
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']!r} of the earlier program's state is unknown")
        return cast(UpgradeState, _structured(UpgradeState, document))
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"the earlier program's state cannot be read: {error!r}") from error


def _structured(kind: object, value: object) -> object:
    """The value of type `kind` that `pack` wrote as the JSON value `value`."""
    origin, parameters = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return None if value is None else _structured(next(one for one in parameters if one is not NoneType), value)
    if kind is bytes:
        return b64decode(cast(str, value))
    if origin in (tuple, frozenset) and isinstance(value, list):
        alike = origin is frozenset or parameters[-1] is ...
        kinds = parameters[:1] * len(value) if alike else parameters
        items = (_structured(one, item) for one, item in zip(kinds, value, strict=True))
        return frozenset(items) if origin is frozenset else tuple(items)
    if origin is not None and isinstance(value, dict):
        return {name: _structured(parameters[1], item) for name, item in value.items()}
    if isinstance(kind, type) and attrs.has(kind) and isinstance(value, dict):
        hints = get_type_hints(kind)
        return kind(**{name: _structured(hints[name], item) for name, item in value.items() if name in hints})
    if isinstance(kind, type) and isinstance(value, (kind, int) if kind is float else kind):
        return value
    raise TypeError(f"{value!r} is not a {kind}")


def write_memfd(data: bytes) -> int:
    """A descriptor from which the next program reads `data`; it is in no folder, because it may contain secrets."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("llamaswap-upgrade")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
