"""Headers as lists, captures and events show them: one value each, canonical names, secrets replaced."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from llamaswap.wire import headers as header_rules
from llamaswap.wire.headers import SECRETS

REDACTED = header_rules.REDACTED.decode()
# Headers of which a part is a secret: a browser's key for a websocket, and a key in the address of a page.
_SECRET_PARTS = {
    b"sec-websocket-protocol": re.compile(r"(?<=api-key\.)[^,\s]+"),
    b"referer": re.compile(r"(?<=\?).+", re.DOTALL),
}
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
            text = REDACTED if secret else value.decode("utf-8", "replace")
            part = _SECRET_PARTS.get(lower)
            result[name] = text if part is None else part.sub(REDACTED, text)
    return result
