"""Metric families as Prometheus text 0.0.4.

prometheus-client's own writer prints whole numbers as floats and large ones with an exponent, and adds a
`_created` family to each counter; dashboards and scripts that read this endpoint know whole bytes. So its
families are written here. Must not know where the numbers come from.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import Metric
from prometheus_client.utils import floatToGoString


def render(families: Iterable[Metric]) -> bytes:
    """HELP, TYPE and samples of each family that has any."""
    lines: list[str] = []
    for family in families:
        samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
        if not samples:
            continue
        name = family.name + "_total" if family.type == "counter" else family.name
        help_text = family.documentation.replace("\\", "\\\\").replace("\n", "\\n")
        lines.append(f"# HELP {name} {help_text}\n# TYPE {name} {family.type}\n")
        for sample in samples:
            labels = ",".join(f'{label}="{_escaped(value)}"' for label, value in sample.labels.items())
            lines.append(f"{sample.name}{'{' + labels + '}' if labels else ''} {_number(sample.value)}\n")
    return "".join(lines).encode()


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> str:
    # Beyond 2**53 a float is not a whole number any more, whatever it looks like.
    if value == value and abs(value) < 2**53 and int(value) == value:
        return str(int(value))
    return str(floatToGoString(value))
