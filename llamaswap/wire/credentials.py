"""The key that a header's value has."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator

WEBSOCKET_PROTOCOL = b"sec-websocket-protocol"
KEY_PROTOCOL = b"openai-insecure-api-key."  # begins the item with which a page sends its key


def credential(authorization: bytes) -> bytes:
    """The key in an Authorization header's value: Basic's password or Bearer's token, else empty."""
    scheme, _, rest = authorization.partition(b" ")
    if scheme.lower() == b"basic":
        return _password(rest)
    return rest if scheme.lower() == b"bearer" else b""


def protocol_keys(protocols: bytes) -> Iterator[bytes]:
    """The keys among the items of a Sec-WebSocket-Protocol header: pages cannot send a websocket with other headers."""
    items = (item.strip() for item in protocols.split(b","))
    return (item[len(KEY_PROTOCOL) :] for item in items if item.startswith(KEY_PROTOCOL))


def offered_protocols(protocols: bytes) -> list[bytes]:
    """The protocols that a Sec-WebSocket-Protocol header offers, without keys."""
    items = (item.strip() for item in protocols.split(b","))
    return [item for item in items if item and not item.startswith(KEY_PROTOCOL)]


def _password(encoded: bytes) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):
        return b""
