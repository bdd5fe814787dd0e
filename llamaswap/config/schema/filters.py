"""The bounds of a request parameter, as a kind of value of the configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping

from attrs import frozen

from llamaswap.config.diagnostics import Diagnostics
from llamaswap.config.field_types import TypeMismatch, ValueType, mapping_of, number_hint
from llamaswap.config.nodes import Node, plain

_BOUND_SCHEMA = {
    "type": "object",
    "properties": {"min": {"type": "number"}, "max": {"type": "number"}},
    "additionalProperties": False,
}


@frozen
class Bounds:
    """The smallest and the largest value of a parameter; None: no bound."""

    least: float | None = None
    most: float | None = None


def _bounds(node: Node, path: str, report: Diagnostics) -> Bounds:
    found = plain(node)
    if not isinstance(found, dict) or not found or found.keys() - {"min", "max"}:
        raise TypeMismatch("a mapping of min, max or both", "write it as {min: 0, max: 2}")
    for value in found.values():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise TypeMismatch("numbers for min and max", number_hint(value))
    bounds = Bounds(found.get("min"), found.get("max"))
    if bounds.least is not None and bounds.most is not None and bounds.least > bounds.most:
        raise TypeMismatch("a min that is not larger than max")
    return bounds


def _written(bounds: Mapping[str, Bounds]) -> dict[str, dict[str, float]]:
    return {
        name: {word: value for word, value in (("min", one.least), ("max", one.most)) if value is not None}
        for name, one in bounds.items()
    }


BOUNDS_MAP: ValueType[Mapping[str, Bounds]] = ValueType(
    "mapping of names to {min, max}",
    mapping_of(_bounds, Bounds()),
    lambda bounds: {"type": ["object", "null"], "additionalProperties": _BOUND_SCHEMA},
    {},
    {},
    write=_written,
)
