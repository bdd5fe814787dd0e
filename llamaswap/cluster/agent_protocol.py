"""What a front and an agent say to each other: the agent's configuration, and the state of its host.

Both sides are checked: an agent of another version, or one that was taken over, must not put the front into a state
that no code expects.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import Factory, asdict, frozen

from llamaswap.config import ConfigText
from llamaswap.discover.missing import NeededFiles
from llamaswap.scheduling.memory import Device, GpuShare, Ledger, MemoryNeed

MAX_MODELS = 10_000  # in a state
MAX_DEVICES = 64
MAX_PATHS = 100  # in a command
MAX_TEXT = 4096
STATES = ("starting", "ready", "stopping", "stopped")
GROUP = "all"


class Malformed(ValueError):
    """A document is not what the protocol says."""


@frozen
class StateVersion:
    """Identifies a state of an agent: its `number`, counted from the start of this incarnation."""

    incarnation: str
    number: int

    def is_before(self, other: StateVersion) -> bool:
        """Whether this is an earlier state of the same incarnation."""
        return self.incarnation == other.incarnation and self.number < other.number


@frozen
class CommandResult:
    """What an agent says to a start or a stop. `runs`: it has a process that the command is about."""

    version: StateVersion
    runs: bool


@frozen
class EngineState:
    """One model's server on a host: which front started it, by which of its decisions, and how it is.

    `started` and `load_seconds` are seconds; `digest` stands for the definition; `error` says why it is not ready.
    `sizes` are what was reserved for it, in MiB by device.
    """

    front: int
    generation: int
    state: str
    digest: str = ""
    error: str = ""
    exit_status: int | None = None
    tail: str = ""
    up: float = 0.0
    load_seconds: float = 0.0
    command: str = ""
    sizes: Mapping[str, int] = Factory(dict)

    @property
    def identity(self) -> tuple[int, int]:
        """What a later decision is greater than."""
        return self.front, self.generation


@frozen
class HostState:
    """A host as its agent sees it. `number` changes with each change; `incarnation` is that of the agent. `missing` has
    what it lacks for models, `cached` are those whose weights are in its page cache. `leaving`: its `join` ends."""

    incarnation: str
    number: int
    front: int
    ledger: Ledger
    engines: Mapping[str, EngineState]
    names: Mapping[str, str]
    missing: Mapping[str, str] = Factory(dict)
    cached: frozenset[str] = frozenset()
    leaving: bool = False

    @property
    def version(self) -> StateVersion:
        """Which state this is."""
        return StateVersion(self.incarnation, self.number)


def stop_identity(front: int, identity: tuple[int, int]) -> tuple[int, int]:
    """What a front names to stop a process, which an earlier front may have started. Its own later starts, whose
    generations begin with 1, must not count as stopped too."""
    return front, identity[1] if identity[0] == front else 0


def agent_config(models: Mapping[str, Mapping[str, object]]) -> ConfigText:
    """The agent's configuration: these models, which may all run together, because the front decides."""
    document: dict[str, object] = {"models": models, "startPort": 6500 + os.getpid() % 200 * 100}
    if models:
        group = {"swap": False, "exclusive": False, "members": sorted(models)}
        document["groups"] = {GROUP: group}
    return ConfigText("agent.json", json.dumps(document))


def state_document(state: HostState) -> dict[str, object]:
    """A state as JSON."""
    return {
        "incarnation": state.incarnation,
        "number": state.number,
        "front": state.front,
        "ledger": {
            "devices": {name: asdict(device) for name, device in state.ledger.devices.items()},
            "needs": {name: asdict(need) for name, need in state.ledger.needs.items()},
            "used": {name: dict(used) for name, used in state.ledger.used.items()},
            "load_seconds": dict(state.ledger.load_seconds),
            "hold": state.ledger.hold,
            "pressed": sorted(state.ledger.pressed),
        },
        "engines": {name: asdict(engine) for name, engine in state.engines.items()},
        "names": dict(state.names),
        "missing": dict(state.missing),
        "cached": sorted(state.cached),
        "leaving": state.leaving,
    }


def result_document(result: CommandResult) -> dict[str, object]:
    """The result of a command as JSON."""
    return {**asdict(result.version), "runs": result.runs}


def result_of(text: bytes) -> CommandResult:
    """The result of a command, in a response; raises Malformed."""
    try:
        found = json.loads(text)
        return CommandResult(StateVersion(_text(found["incarnation"]), int(found["number"])), bool(found["runs"]))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise Malformed(f"the agent's response cannot be understood: {error!r}") from None


def needs_document(front: int, needs: Mapping[str, NeededFiles]) -> dict[str, object]:
    """What models need on a host, as JSON."""
    return {"front": front, "models": {name: asdict(need) for name, need in needs.items()}}


def needs_of(found: Any) -> dict[str, NeededFiles]:
    """What models need, in a request; raises ValueError."""
    return {
        _text(model): NeededFiles(_text(one["program"]), _texts(one["files"]), _texts(one["paths"]))
        for model, one in _some(found["models"], MAX_MODELS)
    }


def _texts(found: Any) -> tuple[str, ...]:
    if not isinstance(found, list) or len(found) > MAX_PATHS:
        raise Malformed(f"a list of at most {MAX_PATHS} texts is expected")
    return tuple(map(_text, found))


def state_of(text: bytes) -> HostState:
    """The state in a response; raises Malformed."""
    try:
        found = json.loads(text)
        engines = {
            _text(name): EngineState(
                front=int(one["front"]),
                generation=int(one["generation"]),
                state=_one_of(one["state"], STATES),
                digest=_text(one["digest"]),
                error=_text(one["error"]),
                exit_status=None if one["exit_status"] is None else int(one["exit_status"]),
                tail=_text(one["tail"]),
                up=_finite(one["up"]),
                load_seconds=_finite(one["load_seconds"]),
                command=_text(one["command"]),
                sizes=sizes_of(one.get("sizes", {})),
            )
            for name, one in _some(found["engines"], MAX_MODELS)
        }
        names = {_text(device): _text(name) for device, name in _some(found["names"], MAX_DEVICES)}
        return HostState(
            _text(found["incarnation"]),
            int(found["number"]),
            int(found["front"]),
            _ledger(found["ledger"]),
            engines,
            names,
            {_text(model): _text(lacks) for model, lacks in _some(found.get("missing", {}), MAX_MODELS)},
            frozenset(map(_text, found.get("cached", ())[:MAX_MODELS])),
            bool(found.get("leaving")),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise Malformed(f"the agent's state cannot be understood: {error!r}") from None


def sizes_of(found: Any) -> dict[str, int]:
    """Sizes by device, in a document; raises ValueError."""
    return {_text(device): int(size) for device, size in _some(found, MAX_DEVICES)}


def _ledger(found: Any) -> Ledger:
    devices = {
        _text(name): Device(int(one["total"]), int(one["reserve"]), int(one["foreign"]), _text(one["foreign_by"]))
        for name, one in _some(found["devices"], MAX_DEVICES)
    }
    needs = {
        _text(name): MemoryNeed(
            int(one["ram"]),
            tuple(
                tuple(GpuShare(int(share["size"]), _text(share["device"])) for share in option[:MAX_DEVICES])
                for option in one["options"][:MAX_DEVICES]
            ),
            _text(one["source"]),
            bool(one["firm"]),
        )
        for name, one in _some(found["needs"], MAX_MODELS)
    }
    used = {_text(name): sizes_of(sizes) for name, sizes in _some(found["used"], MAX_MODELS)}
    loads = {_text(name): _finite(seconds) for name, seconds in _some(found["load_seconds"], MAX_MODELS)}
    pressed: Sequence[object] = found["pressed"][:MAX_DEVICES]
    return Ledger(devices, needs, used, loads, _finite(found["hold"]), frozenset(map(str, pressed)))


def _some(found: Any, limit: int) -> list[tuple[str, Any]]:
    if not isinstance(found, dict) or len(found) > limit:
        raise Malformed(f"a mapping of at most {limit} entries is expected")
    return list(found.items())


def _text(found: Any) -> str:
    if not isinstance(found, str):
        raise Malformed(f"{found!r} is not a text")
    found.encode()  # half of a surrogate pair could be neither logged nor sent
    return found[:MAX_TEXT]


def _finite(found: Any) -> float:
    if not math.isfinite(number := float(found)):
        raise Malformed(f"{number} is not a number of seconds")
    return number


def _one_of(found: Any, known: Sequence[str]) -> str:
    if found not in known:
        raise Malformed(f"{found!r} is not one of {', '.join(known)}")
    return str(found)
