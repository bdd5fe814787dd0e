"""Headers as lists, captures and events show them: one value each, canonical names, secrets replaced."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from llamaswap.wire import headers as header_rules
from llamaswap.wire.headers import SECRETS

REDACTED = header_rules.REDACTED.decode()
MAX_CACHED_NAME = 64  # bytes; a client may send longer names, which must not fill the cache


def canonical(name: bytes) -> str:
    """`content-TYPE` as `Content-Type`."""
    return "-".join(part.capitalize() for part in name.decode("latin-1").split("-"))


def _name(raw: bytes) -> tuple[bytes, str, bool]:
    """A header's name in lower case and in canonical form, and whether its value is a secret."""
    lower = raw.lower()
    return lower, canonical(raw), lower in SECRETS


_cached_name = lru_cache(maxsize=512)(_name)  # nearly all headers have one of few names


def shown(headers: Iterable[tuple[bytes, bytes]], *, without: frozenset[bytes] = frozenset()) -> dict[str, str]:
    """The first value of each header, with secret values replaced; `without` are names (lower case) to leave out."""
    result: dict[str, str] = {}
    for raw, value in headers:
        lower, name, secret = _cached_name(raw) if len(raw) <= MAX_CACHED_NAME else _name(raw)
        if name not in result and lower not in without:
            result[name] = REDACTED if secret else value.decode("utf-8", "replace")
    return result
