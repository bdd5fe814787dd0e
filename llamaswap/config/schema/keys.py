"""The record of an API key: who may use what, and how much of it."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from hashlib import sha256

from attrs import frozen

from llamaswap.config import durations
from llamaswap.config.diagnostics import Diagnostics
from llamaswap.config.field_types import (
    DURATION,
    INTEGER,
    ONE_MACRO,
    SECRET,
    TEXT,
    TEXT_LIST,
    TypeMismatch,
    ValueType,
    integer,
    section,
    text,
)
from llamaswap.config.nodes import Node
from llamaswap.config.schema.model import Filters
from llamaswap.config.secret import Secret

SCOPES = ("infer", "read", "admin")
HASHED = "sha256:"
DAY = 86400.0
_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3}
_COUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?)([kmg]?)", re.IGNORECASE)
_DAYS = re.compile(r"([0-9]{1,4})([dw])")


def count_of(written: str) -> int | None:
    """The number that a text such as 200k or 2M stands for, None if it is not one."""
    match = _COUNT.fullmatch(written) if len(written) <= 20 else None
    return None if match is None else round(float(match[1]) * _UNITS[match[2].lower()])


def window_of(written: str) -> float | None:
    """The seconds that a text such as 12h, 1d or 4w stands for, None if it is not a duration."""
    match = _DAYS.fullmatch(written)
    return durations.parse(written) if match is None else int(match[1]) * DAY * (7 if match[2] == "w" else 1)


def time_of(written: str) -> float | None:
    """The unix seconds of a date (its first moment in UTC) or of an RFC 3339 time, None if the text is neither."""
    try:
        moment = datetime.fromisoformat(re.sub(r"[zZ]\Z", "+00:00", written))
        return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, OverflowError):
        return None


def _count(node: Node, path: str, report: Diagnostics) -> int:
    found = count_of(text(node))
    return integer(node) if found is None else found


def _window(node: Node, path: str, report: Diagnostics) -> float:
    found = window_of(text(node))
    if found is None or not 60 <= found <= 366 * DAY:
        raise TypeMismatch("a duration from 1m to 366d, such as 12h, 1d or 4w")
    return found


def _time(node: Node, path: str, report: Diagnostics) -> float:
    found = time_of(text(node))
    if found is None:
        raise TypeMismatch("a date such as 2027-12-31, or a time such as 2027-12-31T18:00:00Z")
    return found


def window_text(seconds: float) -> str:
    """A window as it is written in the file."""
    return f"{seconds / DAY:g}d" if seconds % DAY == 0 else f"{seconds:g}s"


def time_text(seconds: float) -> str:
    """A time as it is written in the file; "" for none."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat().replace("+00:00", "Z") if seconds else ""


_COUNT_SCHEMA = {"type": "string", "pattern": "^[0-9]+(\\.[0-9]+)?[kKmMgG]?$"}
COUNT = ValueType(
    "whole number, or one such as 200k or 2M",
    _count,
    lambda bounds: {"anyOf": [{"type": "integer", "minimum": bounds.pop("minimum", 0)}, _COUNT_SCHEMA, ONE_MACRO]},
    0,
)
_WINDOW_SCHEMA = {"type": "string", "pattern": "^([0-9]+(\\.[0-9]+)?(s|m|h)|[0-9]{1,4}[dw])+$"}
WINDOW = ValueType(
    "duration such as 12h, 1d or 4w",
    _window,
    lambda bounds: {"anyOf": [_WINDOW_SCHEMA, ONE_MACRO]},
    0.0,
    write=window_text,
)
TIME = ValueType("date or RFC 3339 time", _time, lambda bounds: {"type": "string"}, 0.0, write=time_text)


@frozen
class Budget:
    """How many tokens a key may use in a time that moves along with the clock."""

    tokens: int = COUNT.key("Prompt and generated tokens together; 0 for no bound.", minimum=0)
    window: float = WINDOW.key("The time in which they may be used: the last day, hour and so on.", default=DAY)


@frozen
class ApiKey:
    """A key of a client, what it may be used for, and how much."""

    key: Secret | None = SECRET.key("The key: plain, ${env.NAME}, or sha256: with the hexadecimal SHA-256 of the key.")
    name: str = TEXT.key("Its name in activity, metrics, logs and on the page.")
    models: tuple[str, ...] = TEXT_LIST.key("Names of models that it may use, with * and ?; empty for all.")
    scopes: tuple[str, ...] = TEXT_LIST.key(
        "What it may be used for: `infer` requests to models, `read` what is shown, `admin` everything.",
        lenient=True,
        items_enum=SCOPES,
    )
    priority: int = INTEGER.key("Added to the priority of the model; higher is served first.")
    max_parallel: int = INTEGER.key("Requests at the same time; 0 for no bound.", minimum=0)
    rpm: int = COUNT.key("Requests in a minute; 0 for no bound.", minimum=0)
    tpm: int = COUNT.key("Tokens in a minute; 0 for no bound.", minimum=0)
    budget: Budget = section(Budget, "How many tokens it may use in a longer time.")
    filters: Filters = section(Filters, "Changes made to its requests, after those of the model.", synonyms=False)
    max_tokens: int = COUNT.key("Maximum tokens of a response, like maxTokens of a model. 0: no limit.", minimum=0)
    max_duration: float = DURATION.key("Maximum time of a response, like maxDuration of a model. 0s: no limit.")
    expires: float = TIME.key("From then on it is refused; a date begins at midnight UTC.")

    @property
    def value(self) -> str:
        """The text in the configuration: the key, or its digest behind `sha256:`."""
        return "" if self.key is None else self.key.value

    @property
    def plain(self) -> str:
        """The key itself, "" if only its digest is known."""
        return "" if self.value.startswith(HASHED) else self.value

    @property
    def digest(self) -> bytes:
        """The SHA-256 of the key."""
        value = self.value
        return bytes.fromhex(value[len(HASHED) :]) if value.startswith(HASHED) else sha256(value.encode()).digest()

    @property
    def ruled(self) -> bool:
        """Whether its requests are changed or bounded by rules."""
        return bool(self.max_tokens or self.max_duration or self.filters != Filters())

    @property
    def limited(self) -> bool:
        """Whether it has a limit on requests or tokens."""
        return bool(self.max_parallel or self.rpm or self.tpm or self.budget.tokens)
