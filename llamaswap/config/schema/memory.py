"""The records of memory: how much models use, what stays free, and which GPUs they may use. See `schema`.

Sizes are in MiB. A device is `ram` or a GPU by its number: `gpu0`, `gpu1`. `gpu` is any GPU.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from attrs import frozen

from llamaswap.config import sizes
from llamaswap.config.diagnostics import Diagnostics, did_you_mean
from llamaswap.config.field_types import (
    DURATION,
    FALSE_WORDS,
    ONE_MACRO,
    TRUE_WORDS,
    TypeMismatch,
    ValueType,
    integer,
    shown,
)
from llamaswap.config.nodes import MappingNode, Node, ScalarNode, SequenceNode

MODES = ("on", "off", "advise")
ANY_DEVICE = ""
"""The key of a model's `memory` that was written as one size: GPU memory if the machine has a GPU, otherwise RAM."""
GPU = "gpu"  # any GPU in a model's `memory`, every GPU in `reserve` and `budget`
_DEVICE = re.compile(r"ram|gpu(0|[1-9][0-9]{0,2})?")
_OTHER_NAMES = {"vram": GPU, "cuda": GPU, "cpu": "ram", "memory": "ram"}
MAX_GPUS = 64


def _mode(node: Node, path: str, report: Diagnostics) -> str:
    """One of MODES. Other readers of YAML take a bare on or off for a boolean, so those are accepted."""
    value = node.value if isinstance(node, ScalarNode) else None
    if value is True or value in TRUE_WORDS:
        return "on"
    if value is False or value in FALSE_WORDS:
        return "off"
    if value not in MODES:
        raise TypeMismatch("on, off or advise", did_you_mean(value, MODES) if isinstance(value, str) else "")
    return str(value)


def _size(node: Node) -> int:
    text = node.text if isinstance(node, ScalarNode) and node.kind in ("str", "int", "float") else ""
    size = sizes.parse(text.strip())
    if size is None:
        raise TypeMismatch("a size such as 9GiB or 500MiB", "a number without a unit is in MiB")
    if size < 0:
        raise TypeMismatch("a size of at least 0")
    return size


def _device_sizes(node: Node, path: str, report: Diagnostics) -> dict[str, int]:
    """MiB by device."""
    if not isinstance(node, MappingNode):
        raise TypeMismatch("a mapping of devices to sizes", "write it as {gpu: 1GiB, ram: 4GiB}")
    found: dict[str, int] = {}
    for name, child in node.entries.items():
        where = f"{path}.{name}"
        if not _DEVICE.fullmatch(name):
            other = _OTHER_NAMES.get(name.lower())
            near = f"did you mean `{other}`?" if other else did_you_mean(name, ("ram", GPU, "gpu0", "gpu1"))
            report.error(
                f"{where}: unknown device {name!r}, use ram, gpu, gpu0, gpu1 and so on", where, node.where(name), near
            )
            continue
        try:
            found[name] = _size(child)
        except TypeMismatch as mismatch:
            message = f"{where}: {shown(child)} cannot be used, wanted {mismatch.wanted}"
            report.error(message, where, child, mismatch.hint)
    return found


def _need(node: Node, path: str, report: Diagnostics) -> dict[str, int]:
    """MiB by device; a single size has the key ANY_DEVICE."""
    return {ANY_DEVICE: _size(node)} if isinstance(node, ScalarNode) else _device_sizes(node, path, report)


def _written(need: Mapping[str, int]) -> object:
    """A model's `memory` as it is written in the file."""
    given = {name: sizes.render(size) for name, size in need.items()}
    return given.get(ANY_DEVICE, given)


_SIZE_SCHEMA = {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": sizes.PATTERN}, ONE_MACRO]}
_SIZES_SCHEMA = {
    "type": ["object", "null"],
    "additionalProperties": _SIZE_SCHEMA,
    "propertyNames": {"pattern": f"^({_DEVICE.pattern})$"},
}
SIZE = ValueType("size such as 9GiB", lambda node, *_: _size(node), lambda _: _SIZE_SCHEMA, 0, 0, sizes.render)
MODE = ValueType("on, off or advise", _mode, lambda _: {"anyOf": [{"enum": list(MODES)}, {"type": "boolean"}]}, "")
DEVICE_SIZES: ValueType[Mapping[str, int]] = ValueType(
    "mapping of devices to sizes such as 9GiB", _device_sizes, lambda _: _SIZES_SCHEMA, {}, {}, _written
)
NEED: ValueType[Mapping[str, int]] = ValueType(
    "size such as 9GiB, or mapping of devices to sizes",
    _need,
    lambda _: {"anyOf": [*_SIZE_SCHEMA["anyOf"], _SIZES_SCHEMA]},
    {},
    {},
    _written,
)


@frozen
class MemorySettings:
    """How llamaswap uses what it knows about the memory of models."""

    mode: str = MODE.key(
        "`on`: models stay loaded together as far as their memory fits. `advise`: memory is measured and shown, and "
        "decides nothing. `off`: memory is not measured.",
        default="advise",
    )
    reserve: Mapping[str, int] = DEVICE_SIZES.key(
        "Memory that stays free on `ram`, on every GPU (`gpu`), or on one (`gpu0`)."
    )
    budget: Mapping[str, int] = DEVICE_SIZES.key(
        "Maximum memory of all models together on `ram`, on every GPU (`gpu`), or on one (`gpu0`)."
    )
    hold: float = DURATION.key(
        "How long a model stays after its last response, so that a client's next request finds it.", default=10.0
    )


@frozen
class GpuChoice:
    """Which GPUs a model may use: as many as it needs (`auto`), `count` of them, or those of `ids`.

    It is false if nothing was chosen: then llamaswap does not hide any GPU from the server.
    """

    auto: bool = False
    count: int = 0
    ids: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return self != NO_CHOICE


NO_CHOICE = GpuChoice()


def _gpus(node: Node, path: str, report: Diagnostics) -> GpuChoice:
    if isinstance(node, SequenceNode):
        ids = tuple(dict.fromkeys(integer(item) for item in node.items))
        if not ids or min(ids) < 0 or max(ids) >= MAX_GPUS:
            raise TypeMismatch(
                "the numbers of GPUs, such as [0, 1]", "to hide all GPUs, set CUDA_VISIBLE_DEVICES= in `env`"
            )
        return GpuChoice(ids=ids)
    if isinstance(node, ScalarNode) and node.value == "auto":
        return GpuChoice(auto=True)
    if isinstance(node, MappingNode) or (isinstance(node, ScalarNode) and isinstance(node.value, str)):
        raise TypeMismatch("auto, a number of GPUs, or a list such as [0, 1]")
    count = integer(node)
    if not 0 < count <= MAX_GPUS:
        raise TypeMismatch(f"a number of GPUs from 1 to {MAX_GPUS}", "write [0] for the GPU with the number 0")
    return GpuChoice(count=count)


GPUS = ValueType(
    "auto, a number of GPUs, or a list of their numbers",
    _gpus,
    lambda _: {
        "anyOf": [
            {"const": "auto"},
            {"type": "integer", "minimum": 1, "maximum": MAX_GPUS},
            {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": MAX_GPUS - 1}, "minItems": 1},
            ONE_MACRO,
            {"type": "null"},
        ]
    },
    NO_CHOICE,
    NO_CHOICE,
    lambda choice: "auto" if choice.auto else choice.count or list(choice.ids) or None,
)
