"""Sizes of memory as text: 9GiB, 500MiB, 2G. A number without a unit is in MiB."""

from __future__ import annotations

import math
import re

MIB = 1 << 20
MAX_MIB = 1 << 40
PATTERN = r"^[0-9]+(\.[0-9]*)? *([kKmMgGtT]([iI]?[bB])?)?$"
_SIZE = re.compile(r"(-?)([0-9]+(?:\.[0-9]*)?) *(?:([kmgt])(i?b)?)?", re.IGNORECASE)


def parse(text: str) -> int | None:
    """MiB, rounded up; None if the text is not a size. KB, MB, GB and TB are powers of 1000, other units of 1024."""
    match = _SIZE.fullmatch(text) if len(text) <= 40 else None
    if match is None:
        return None
    sign, amount, letter, suffix = match.groups("")
    unit = (1000 if suffix.lower() == "b" else 1024) ** ("kmgt".index(letter.lower()) + 1) if letter else MIB
    size = math.ceil(float(amount) * unit / MIB)
    return None if size > MAX_MIB else -size if sign else size


def render(mib: int) -> str:
    """The size in GiB if that is exact, else in MiB."""
    return f"{mib // 1024}GiB" if mib and mib % 1024 == 0 else f"{mib}MiB"
