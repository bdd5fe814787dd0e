"""Header rules in both directions: what is passed on, what is removed, what is added.

Every function takes headers as ordered (name, value) pairs and returns new ones; the order, case and repetition of what
is passed on do not change.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Sequence
from ipaddress import ip_address

from attrs import define, field

from llamaswap.wire.credentials import WEBSOCKET_PROTOCOL, credential, offered_protocols, protocol_keys
from llamaswap.wire.known_response import KnownResponse

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
_HOPS = b"x-llamaswap-hops"
# Not passed on: fields of the connection, the count of hops, the framing (each connection has its own), and Expect,
# because the proxy has answered it, and a server must not wait for a 100 that was sent already.
_STAYS = HOP_BY_HOP | {b"content-length", b"expect", _HOPS}
# Connection must not name these, or the message would break; they are passed on in any case.
ESSENTIAL = frozenset((b"host", b"content-length", b"content-type", b"upgrade", b"connection"))
# These name the client.
CLIENT_NAMING = (b"x-forwarded-for", b"x-real-ip")
# These describe the client's way to us; a peer is another operator's machine.
FORWARDING = frozenset((b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"))
# Each of them shows that a reverse proxy is in front.
PROXY_HEADERS = (*CLIENT_NAMING, *sorted(FORWARDING - {*CLIENT_NAMING}), b"via")
CREDENTIALS = frozenset((b"authorization", b"x-api-key"))
HOPS = b"X-Llamaswap-Hops"  # how many llamaswap proxies have passed the request on to a peer
HOP_LIMIT = 2  # the third would be a loop in any sensible arrangement
SECRETS = CREDENTIALS | {b"proxy-authorization", b"cookie", b"set-cookie"}  # never shown and never stored
REDACTED = b"[REDACTED]"
NO_HEADERS: frozenset[bytes] = frozenset()
EVENT_STREAM_TYPE = b"text/event-stream"
# The head of an event stream of our own.
EVENT_STREAM = (
    (b"Content-Type", EVENT_STREAM_TYPE),
    (b"Cache-Control", b"no-cache"),
    (b"Connection", b"keep-alive"),
    (b"X-Accel-Buffering", b"no"),
)
CHUNKED = (b"Transfer-Encoding", b"chunked")
ALLOW_ANY_ORIGIN = (b"Access-Control-Allow-Origin", b"*")
READABLE_CODINGS = frozenset((b"gzip", b"deflate"))  # the codings that usage parsing can decode


# -- reading -----------------------------------------------------------------------------------------------


def first(headers: Iterable[Header], name: bytes) -> bytes | None:
    """The first value of a header (`name` in lower case), or None."""
    for key, value in headers:
        if key.lower() == name:
            return value
    return None


def comma_items(value: bytes) -> list[bytes]:
    """The items of a comma list, trimmed and in lower case; empty ones stay."""
    return [item.strip(b" \t") for item in value.lower().split(b",")]


def tokens(headers: Iterable[Header], name: bytes) -> list[bytes]:
    """The items of all lines of a header that is a comma list, without empty ones."""
    found: list[bytes] = []
    for key, value in headers:
        if key.lower() == name:
            found.extend(comma_items(value))
    return [item for item in found if item]


def wants_upgrade(headers: Sequence[Header]) -> bool:
    """Whether the request asks to change the protocol of its connection."""
    return b"upgrade" in tokens(headers, b"connection") and first(headers, b"upgrade") is not None


def is_websocket(headers: Sequence[Header]) -> bool:
    """Whether the request asks for a websocket: both header lists must say so."""
    return b"upgrade" in tokens(headers, b"connection") and b"websocket" in tokens(headers, b"upgrade")


def address_host(address: object) -> str:
    """The host of a socket's address, "" if it has none (a UNIX socket).

    A socket for both families reports IPv4 clients as ::ffff:1.2.3.4; servers, logs and lists use 1.2.3.4.
    """
    host = str(getattr(address, "host", None) or "")
    return host[7:] if host.startswith("::ffff:") and "." in host else host


def real_client_address(first: Callable[[bytes], bytes | None], socket_address: str) -> str:
    """The client that logs and lists name: the first X-Forwarded-For item, else X-Real-IP, else the socket's address.

    `first(name)` gives a header's first value, None if it is absent.
    """
    forwarded = (first(b"x-forwarded-for") or b"").partition(b",")[0].strip() or (first(b"x-real-ip") or b"").strip()
    return forwarded.decode("latin-1") if forwarded else socket_address


def hops(headers: Iterable[Header]) -> int:
    """How many llamaswap proxies have passed the request on; a value that is not a number counts as the limit."""
    value = first(headers, _HOPS)
    if value is None:
        return 0
    return int(value) if value.isdigit() and len(value) < 4 else HOP_LIMIT


def from_this_machine(headers: Iterable[Header], socket_address: str) -> bool:
    """Whether a request comes from this machine: over a UNIX socket (`socket_address` "") or loopback, and not
    through a reverse proxy that names a client elsewhere or none."""
    addresses = [socket_address] if socket_address else []
    proxied = named = False
    for name, value in headers:
        lower = name.lower()
        if lower in CLIENT_NAMING:
            named = True
            addresses += [item.strip() for item in value.decode("latin-1").split(",")]
        elif lower in PROXY_HEADERS:
            proxied = True
    return (named or not proxied) and all(map(is_loopback, addresses))


def is_loopback(address: str) -> bool:
    """Whether an address, written in numbers, is a loopback address."""
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False


def without_keys(headers: Sequence[Header], key_headers: frozenset[bytes]) -> Sequence[Header]:
    """The headers for lists, captures and events: our own keys are replaced, whichever header contains them."""
    if not key_headers:
        return headers
    return [(name, REDACTED if name.lower() in key_headers else value) for name, value in headers]


def withheld(
    headers: Iterable[Header], key_headers: frozenset[bytes], forward: str, known: Container[bytes] | None
) -> frozenset[bytes]:
    """Which of `key_headers`, the headers with keys of ours, must not reach a server or peer.

    `forward` is its `forwardKey`. With `auto` a key is passed on if the other side has it too: one in `known`, or any
    if `known` is None, because a peer without a configured key gets the client's.
    """
    if forward == "always" or not key_headers:
        return NO_HEADERS
    if forward == "never":
        return key_headers
    if known is None:
        return NO_HEADERS
    return frozenset(
        lower
        for name, value in headers
        if (lower := name.lower()) in key_headers
        and value not in known
        and credential(value) not in known
        and not (lower == WEBSOCKET_PROTOCOL and all(key in known for key in protocol_keys(value)))
    )


# -- towards a server --------------------------------------------------------------------------------------


def to_local(
    headers: Sequence[Header],
    *,
    socket_address: str,
    key_headers: frozenset[bytes] = NO_HEADERS,
    metered: bool = False,
    plain: bool = False,
) -> Headers:
    """A client's headers as a local server receives them.

    `socket_address` is the client's, appended to X-Forwarded-For. `key_headers` (lower case) carry our own API
    keys and are removed (see `withheld`). `metered`: ask only for codings that the usage parser can read; `plain`: ask
    for none. The body's framing is not among them: the forwarder adds it.
    """
    if plain:
        headers = [item for item in headers if item[0].lower() != b"accept-encoding"]
    kept, hop = _crossing(headers, key_headers=key_headers, metered=metered)
    if socket_address:
        mine = socket_address.encode("latin-1", "replace")
        seen = [item for item in kept if item[0].lower() == b"x-forwarded-for"]
        if seen:
            kept = [item for item in kept if item not in seen]
            mine = b", ".join([*(value for _, value in seen if value), mine])
        kept.append((b"X-Forwarded-For", mine))
    return _with_hop_fields(kept, hop)


def to_peer(
    headers: Sequence[Header],
    *,
    authority: bytes,
    api_key: bytes | None = None,
    key_headers: frozenset[bytes] = NO_HEADERS,
    metered: bool = False,
) -> Headers:
    """A client's headers as a peer receives them: the peer's Host, the peer's key, no forwarding headers."""
    kept: Headers = [(b"Host", authority)]
    crossing, hop = _crossing(headers, key_headers=key_headers, metered=metered)
    for name, value in crossing:
        lower = name.lower()
        if lower == b"host" or lower in FORWARDING or (api_key and lower in CREDENTIALS):
            continue
        kept.append((name, value))
    if api_key:
        kept += [(b"Authorization", b"Bearer " + api_key), (b"x-api-key", api_key)]
    kept.append((HOPS, b"%d" % (hops(headers) + 1)))
    return _with_hop_fields(kept, hop)


def readable_encodings(value: bytes) -> bytes:
    """An Accept-Encoding reduced to the codings that can be read again; q-values stay."""
    items = (item.strip() for item in value.split(b","))
    return b", ".join(item for item in items if item.partition(b";")[0].strip().lower() in READABLE_CODINGS)


def _crossing(headers: Sequence[Header], *, key_headers: frozenset[bytes], metered: bool) -> tuple[Headers, Headers]:
    """The fields that are passed on, without framing; and the fields of the connection."""
    kept: Headers = []
    hop: Headers = []
    for item in headers:
        lower = item[0].lower()
        if lower in _STAYS:
            hop.append(item)
        elif lower in key_headers:
            if lower == WEBSOCKET_PROTOCOL and (left := offered_protocols(item[1])):
                kept.append((item[0], b", ".join(left)))
        elif metered and lower == b"accept-encoding":
            value = readable_encodings(item[1])
            if value:
                kept.append((item[0], value))
        else:
            kept.append(item)
    if hop:
        named = set(tokens(hop, b"connection")) - ESSENTIAL
        if named:
            kept = [item for item in kept if item[0].lower() not in named]
    return kept, hop


def _with_hop_fields(kept: Headers, hop: Headers) -> Headers:
    """Add the fields of our own connection: an upgrade, and trailers if the client accepts them."""
    if hop:
        upgrade = wants_upgrade(hop)
        if upgrade:
            kept.append((b"Upgrade", first(hop, b"upgrade") or b""))
        if b"trailers" in tokens(hop, b"te"):
            kept.append((b"Te", b"trailers"))
        if upgrade:
            kept.append((b"Connection", b"Upgrade"))
    return kept


# -- towards a client --------------------------------------------------------------------------------------


@define
class ResponseHeaders:
    """A response's headers as the client receives them, and what one walk over them has shown.

    `event_stream`: the body is a stream of server-sent events. `sized`, `dated` and `connection` say whether
    Content-Length, Date and Connection are among `items`; `chunked` whether Transfer-Encoding is.
    """

    items: Headers
    content_type: bytes = b""
    content_encoding: bytes = b""
    event_stream: bool = False
    sized: bool = False
    dated: bool = False
    connection: bool = False
    chunked: bool = False
    known: KnownResponse | None = field(default=None, eq=False, repr=False)

    @classmethod
    def of(cls, items: Headers) -> ResponseHeaders:
        """Headers of a response of our own."""
        found = {name.lower(): value for name, value in reversed(items)}
        content_type = found.get(b"content-type", b"")
        return cls(
            items,
            content_type=content_type,
            event_stream=EVENT_STREAM_TYPE in content_type.lower(),
            content_encoding=found.get(b"content-encoding", b""),
            sized=b"content-length" in found,
            dated=b"date" in found,
            connection=b"connection" in found,
            chunked=b"transfer-encoding" in found,
        )

    @property
    def plain_json(self) -> bool:
        """Whether the body is a JSON document without a content coding."""
        return b"json" in self.content_type.lower() and not self.content_encoding


def allowed_origin(origin: bytes | None, origins: Collection[str]) -> Headers:
    """The headers by which a page of `origin` may read a response, if it is one of `origins` (`*`: any)."""
    if "*" in origins:
        return [] if origin is None else [ALLOW_ANY_ORIGIN]
    vary = (b"Vary", b"Origin")  # also without an Origin: a cache must not give this response to a page
    if origin is None or origin.decode("latin-1") not in origins:
        return [vary]
    return [(ALLOW_ANY_ORIGIN[0], origin), vary]


def readable_by_pages(headers: Headers, origin: bytes | None, origins: Collection[str]) -> Headers:
    """A response's headers, so that pages of `origins` may read it (CORS). If these are all, and the server has allowed
    an origin itself, its first header of this kind stays alone."""
    if "*" not in origins:
        kept = [item for item in headers if item[0].lower() != b"access-control-allow-origin"]
        return kept + allowed_origin(origin, origins)
    if origin is None:
        return list(headers)
    allowing = [item for item in headers if item[0].lower() == b"access-control-allow-origin"]
    if not allowing:
        return [*headers, ALLOW_ANY_ORIGIN]
    return [item for item in headers if item not in allowing or item is allowing[0]]


def to_client(headers: Iterable[Header], *, chunked: bool = False) -> ResponseHeaders:
    """A server's response headers as the client receives them.

    The fields of the server's connection are removed. With `chunked` the body keeps the server's chunks, so its
    Trailer fields stay and Transfer-Encoding is added. An event stream gets X-Accel-Buffering: no, because reverse
    proxies would otherwise buffer it.
    """
    kept: Headers = []
    response = ResponseHeaders(kept)
    trailers: Headers = []
    connection: list[bytes] = []
    buffering = False
    for item in headers:
        lower = item[0].lower()
        if lower in HOP_BY_HOP:
            if lower == b"connection":
                connection += comma_items(item[1])
            elif lower == b"trailer":
                trailers.append(item)
            continue
        if lower == b"content-length":
            response.sized = True
        elif lower == b"content-type":
            response.content_type = response.content_type or item[1]
            response.event_stream = EVENT_STREAM_TYPE in response.content_type.lower()
        elif lower == b"content-encoding":
            response.content_encoding = response.content_encoding or item[1]
        elif lower == b"date":
            response.dated = True
        elif lower == b"x-accel-buffering":
            buffering = True
        kept.append(item)
    named = set(connection) - ESSENTIAL
    if named:
        kept = response.items = [item for item in kept if item[0].lower() not in named]
        response.dated = response.dated and b"date" not in named
        if b"content-encoding" in named:
            response.content_encoding = b""
    if response.event_stream:
        if buffering:
            kept = response.items = [item for item in kept if item[0].lower() != b"x-accel-buffering"]
        kept.append((b"X-Accel-Buffering", b"no"))
    if chunked:
        kept += trailers
        kept.append(CHUNKED)
        response.chunked = True
    return response
