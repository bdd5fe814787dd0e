"""Header rules, both directions: what crosses the proxy, what stays on its side, what is added.

Every function takes headers as ordered (name, value) pairs and returns new ones; order, case and repetition of
what crosses stay as they were. Nothing here knows a socket.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Header = tuple[bytes, bytes]
Headers = list[Header]

HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"proxy-connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
# Naming these in Connection would break the message itself; they cross whatever it says.
ESSENTIAL = frozenset((b"host", b"content-length", b"content-type", b"upgrade", b"connection"))
# Said by the client about its own way to us; a peer is another operator's machine.
FORWARDING = frozenset((b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"))
CREDENTIALS = frozenset((b"authorization", b"x-api-key"))
# The head of an event stream of our own.
EVENT_STREAM = (
    (b"Content-Type", b"text/event-stream"),
    (b"Cache-Control", b"no-cache"),
    (b"Connection", b"keep-alive"),
    (b"X-Accel-Buffering", b"no"),
)
READABLE_CODINGS = frozenset((b"gzip", b"deflate"))  # what usage parsing can decode


# -- reading -----------------------------------------------------------------------------------------------


def first(headers: Iterable[Header], name: bytes) -> bytes | None:
    """The first value of a header (`name` in lower case), or None."""
    for key, value in headers:
        if key.lower() == name:
            return value
    return None


def tokens(headers: Iterable[Header], name: bytes) -> list[bytes]:
    """The comma-separated items of all lines of a header, trimmed and in lower case."""
    found: list[bytes] = []
    for key, value in headers:
        if key.lower() == name:
            found.extend(item.strip().lower() for item in value.split(b","))
    return [item for item in found if item]


def wants_upgrade(headers: Iterable[Header]) -> bool:
    """Whether the request asks to change the protocol of its connection."""
    pairs = list(headers)
    return b"upgrade" in tokens(pairs, b"connection") and first(pairs, b"upgrade") is not None


def is_websocket(headers: Iterable[Header]) -> bool:
    """Whether the request asks for a websocket: both header lists must say so."""
    pairs = list(headers)
    return b"upgrade" in tokens(pairs, b"connection") and b"websocket" in tokens(pairs, b"upgrade")


def is_event_stream(headers: Iterable[Header]) -> bool:
    """Whether an answer with these headers is a stream of server-sent events."""
    return b"text/event-stream" in (first(headers, b"content-type") or b"").lower()


def is_chunked(headers: Iterable[Header]) -> bool:
    """Whether the body is sent in chunks."""
    return b"chunked" in tokens(headers, b"transfer-encoding")


def client_address(headers: Iterable[Header], peer: str) -> str:
    """Whom to name in logs and lists: the first X-Forwarded-For item, else X-Real-IP, else the socket's address."""
    pairs = list(headers)
    for name in (b"x-forwarded-for", b"x-real-ip"):
        told = (first(pairs, name) or b"").partition(b",")[0].strip()
        if told:
            return told.decode("latin-1")
    return peer


# -- towards a server --------------------------------------------------------------------------------------


def to_local(
    headers: Sequence[Header],
    *,
    peer: str,
    key_header: bytes | None = None,
    metered: bool = False,
    length: int | None = None,
    chunked: bool = False,
) -> Headers:
    """A client's headers as a local server receives them.

    `peer` is the client's socket address, appended to X-Forwarded-For. `key_header` (lower case) carried our own API
    key and stays here. `metered`: ask only for codings that the usage parser can read. `length`: the exact body
    length, in place of what the client announced; with `chunked` its length is unknown; neither: no body.
    """
    crossing = _crossing(headers, key_header=key_header, metered=metered)
    seen = [value for name, value in crossing if name.lower() == b"x-forwarded-for" and value]
    kept = [(name, value) for name, value in crossing if name.lower() != b"x-forwarded-for"]
    if peer:
        seen.append(peer.encode("latin-1", "replace"))
    if seen:
        kept.append((b"X-Forwarded-For", b", ".join(seen)))
    return _framed(kept, headers, length, chunked)


def to_peer(
    headers: Sequence[Header],
    *,
    authority: bytes,
    api_key: bytes | None = None,
    key_header: bytes | None = None,
    metered: bool = False,
    length: int | None = None,
    chunked: bool = False,
) -> Headers:
    """A client's headers as a peer receives them: its own Host, its own key, nothing about the client's way to us."""
    kept: Headers = [(b"Host", authority)]
    for name, value in _crossing(headers, key_header=key_header, metered=metered):
        lower = name.lower()
        if lower == b"host" or lower in FORWARDING or (api_key and lower in CREDENTIALS):
            continue
        kept.append((name, value))
    if api_key:
        kept += [(b"Authorization", b"Bearer " + api_key), (b"x-api-key", api_key)]
    return _framed(kept, headers, length, chunked)


def readable_encodings(value: bytes) -> bytes:
    """An Accept-Encoding reduced to the codings that can be read again; q-values stay."""
    items = (item.strip() for item in value.split(b","))
    return b", ".join(item for item in items if item.partition(b";")[0].strip().lower() in READABLE_CODINGS)


def _crossing(headers: Sequence[Header], *, key_header: bytes | None, metered: bool) -> Headers:
    """What leaves the hop, without any framing."""
    named = set(tokens(headers, b"connection")) - ESSENTIAL
    kept: Headers = []
    for name, value in headers:
        lower = name.lower()
        if lower in HOP_BY_HOP or lower in named or lower == b"content-length" or lower == key_header:
            continue
        if lower == b"expect":  # answered at the door: a server must not wait for a 100 that was already given
            continue
        if metered and lower == b"accept-encoding":
            value = readable_encodings(value)
            if not value:
                continue
        kept.append((name, value))
    return kept


def _framed(kept: Headers, headers: Sequence[Header], length: int | None, chunked: bool) -> Headers:
    """Add this hop's own fields: the body's framing, an upgrade, and trailers if the client takes them."""
    connection: list[bytes] = []
    if wants_upgrade(headers):
        connection.append(b"Upgrade")
        kept.append((b"Upgrade", first(headers, b"upgrade") or b""))
    if b"trailers" in tokens(headers, b"te"):
        kept.append((b"Te", b"trailers"))
    if connection:
        kept.append((b"Connection", b", ".join(connection)))
    if chunked:
        kept.append((b"Transfer-Encoding", b"chunked"))
    elif length is not None:
        kept.append((b"Content-Length", b"%d" % length))
    return kept


# -- towards a client --------------------------------------------------------------------------------------


def to_client(headers: Sequence[Header], *, chunked: bool = False, upgrade: bool = False) -> Headers:
    """A server's answer headers as the client receives them.

    With `chunked` the body's own chunk framing crosses too, so its announcement and the trailers' stay. With
    `upgrade` (a 101) the new protocol is named. An event stream is told to reverse proxies as not to be buffered.
    """
    named = set(tokens(headers, b"connection")) - ESSENTIAL
    kept: Headers = []
    for name, value in headers:
        lower = name.lower()
        if lower in named or (lower in HOP_BY_HOP and not (chunked and lower == b"trailer")):
            continue
        if lower == b"x-accel-buffering" and is_event_stream(headers):
            continue
        if chunked and lower == b"content-length":  # chunks win over a length beside them
            continue
        kept.append((name, value))
    if is_event_stream(headers):
        kept.append((b"X-Accel-Buffering", b"no"))
    if upgrade:
        kept.append((b"Upgrade", first(headers, b"upgrade") or b""))
        kept.append((b"Connection", b"Upgrade"))
    elif chunked:
        kept.append((b"Transfer-Encoding", b"chunked"))
    return kept
