"""The values of unquoted YAML scalars in llama-swap's files, which differ from PyYAML's.

Words such as yes and on are text, 010 is octal, 1e3 and 08 are floats, 12:30 is text, dates become RFC 3339.
"""

from __future__ import annotations

import math
import re
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from decimal import Decimal

NULLS = frozenset({"", "~", "null", "Null", "NULL"})
BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
SPECIAL_FLOATS = {
    **{sign + word: value for sign, value in (("", math.inf), ("+", math.inf), ("-", -math.inf))
       for word in (".inf", ".Inf", ".INF")},
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
}  # fmt: skip
MIN_INT, MAX_INT = -(2**63), 2**64 - 1

BASES = {"": 10, "0x": 16, "0b": 2, "0o": 8, "0": 8}

_INTEGER = re.compile(r"([-+]?)(0[xX]|0[bB](?=[01]+\Z)|0[oO]?)?([0-9a-fA-F]+)")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_DATE = re.compile(
    r"([0-9]{4})-([0-9]{1,2})-([0-9]{1,2})"
    r"(?:([Tt ])([0-9]{1,2}):([0-9]{1,2}):([0-9]{1,2})(\.[0-9]+)?(Z|[-+][0-9]{2}:[0-9]{2})?)?"
)

Value = str | int | float | bool | None


def resolve(text: str) -> tuple[str, Value]:
    """(kind, value) of a plain scalar; kinds are those of `nodes.Scalar`."""
    if text in NULLS:
        return "null", None
    if text in BOOLEANS:
        return "bool", BOOLEANS[text]
    if text in SPECIAL_FLOATS:
        return "float", SPECIAL_FLOATS[text]
    if text[0] not in "+-.0123456789":
        return "str", text
    date = _timestamp(text)
    if date is not None:
        return "timestamp", date
    return _number(text.replace("_", "")) or ("str", text)


def _number(text: str) -> tuple[str, Value] | None:
    match = _INTEGER.fullmatch(text)
    # Python refuses to parse thousands of digits; such a number is out of range anyway.
    if match is not None and len(text) < 100:
        sign, prefix, digits = match.groups("")
        with suppress(ValueError):  # digits of a larger base
            value = int(sign + digits, BASES[prefix.lower()])
            if MIN_INT <= value <= MAX_INT:
                return "int", value
    if _FLOAT.fullmatch(text):
        number = float(text)
        if math.isfinite(number):
            return "float", number
    return None


def _timestamp(text: str) -> str | None:
    match = _DATE.fullmatch(text)
    if match is None:
        return None
    year, month, day, separator, hour, minute, second, fraction, zone = match.groups()
    if separator is not None and (separator == " ") == (zone is not None):
        return None  # a time with T needs a zone, one with a space has none
    try:
        moment = datetime(int(year), int(month), int(day), int(hour or 0), int(minute or 0), int(second or 0))
        offset = _offset(zone)
    except ValueError:
        return None
    zone_text = "Z" if offset is None else moment.replace(tzinfo=offset).isoformat()[-6:]
    digits = (fraction or "")[:10].rstrip("0").rstrip(".")
    return f"{moment.isoformat(timespec='seconds')}{digits}{zone_text}"


def _offset(zone: str | None) -> timezone | None:
    if zone is None or zone == "Z":
        return None
    delta = timedelta(hours=int(zone[1:3]), minutes=int(zone[4:6]))
    return timezone(-delta if zone[0] == "-" else delta)


def text_of(value: str | int | float | bool) -> str:
    """A macro's value inside a longer text: as few digits as identify it, with an exponent from a million up."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, float):
        return str(value)
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("+Inf" if value > 0 else "-Inf")
    sign = "-" if math.copysign(1.0, value) < 0 else ""
    number = Decimal(repr(abs(value))).normalize()
    exponent = number.adjusted()
    if number == 0 or -4 <= exponent < 6:
        return f"{sign}{number:f}"
    first, *others = map(str, number.as_tuple().digits)
    return f"{sign}{first}{'.' if others else ''}{''.join(others)}e{exponent:+03d}"
