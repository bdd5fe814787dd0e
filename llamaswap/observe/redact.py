"""Headers as they may be shown: one value each, canonical names, secrets replaced.

The only place that decides what of a header leaves this process through a list, a capture or an event.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from llamaswap.wire import headers as header_rules
from llamaswap.wire.headers import SECRETS

REDACTED = header_rules.REDACTED.decode()
KEPT = 64  # bytes of a name that is kept at hand; a client may send as many as a head holds


def canonical(name: bytes) -> str:
    """`content-TYPE` as `Content-Type`."""
    return "-".join(part.capitalize() for part in name.decode("latin-1").split("-"))


def _looks(raw: bytes) -> tuple[bytes, str, bool]:
    """A header's name in lower case, as it is shown, and whether its value is a secret."""
    lower = raw.lower()
    return lower, canonical(raw), lower in SECRETS


_known = lru_cache(maxsize=512)(_looks)  # a handful of names make nearly all headers


def shown(headers: Iterable[tuple[bytes, bytes]], *, without: frozenset[bytes] = frozenset()) -> dict[str, str]:
    """First value per header; values of secret headers are replaced; `without` names (lower case) to leave out."""
    result: dict[str, str] = {}
    for raw, value in headers:
        lower, name, secret = _known(raw) if len(raw) <= KEPT else _looks(raw)
        if name not in result and lower not in without:
            result[name] = REDACTED if secret else value.decode("utf-8", "replace")
    return result
