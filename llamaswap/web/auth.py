"""Authentication by API keys, the CORS preflight, and the refusal of requests from other sites' pages.

It works on a header reader (`first(lower_case_name) -> value or None`), which the proxy and the admin site have. This
module must not know twisted.web or a request's body.
"""

from __future__ import annotations

import hmac
import re
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from hashlib import sha256
from ipaddress import ip_address
from urllib.parse import urlsplit

from attrs import define, field, frozen

from llamaswap.config import ApiKey
from llamaswap.config.schema import CorsSettings
from llamaswap.proxy.exchange import RequestHead
from llamaswap.web.errors import Headers, HttpError, unauthorized
from llamaswap.web.head_facts import Authenticated
from llamaswap.web.key_access import OPEN, KeyAccess, access_of
from llamaswap.wire.credentials import WEBSOCKET_PROTOCOL, credential, protocol_keys
from llamaswap.wire.headers import ALLOW_ANY_ORIGIN, ESSENTIAL, NO_HEADERS, allowed_origin, is_websocket

First = Callable[[bytes], "bytes | None"]


@define(eq=False)
class Authenticator:
    """Finds out whose key a request presents. `configured` gives the keys per request, because a reload may change
    them; `wall` gives unix seconds."""

    configured: Callable[[], Sequence[ApiKey]]
    wall: Callable[[], float] = time.time
    _of: Sequence[ApiKey] = field(default=(), init=False)
    _by_digest: dict[bytes, KeyAccess] = field(factory=dict, init=False, repr=False)
    _plain: frozenset[bytes] = field(default=frozenset(), init=False, repr=False)

    def admit(self, first: First) -> KeyAccess:
        """What the request may do, everything if no key is configured. Raises HttpError(401)."""
        known = self._known()
        if not known:
            return OPEN
        candidate = presented(first)
        # A client cannot choose the digest of what it sends, so the time of this look-up reveals no key.
        digest = sha256(candidate).digest()
        access = known.get(digest)
        if access is None or not candidate or not hmac.compare_digest(digest, access.digest):
            raise unauthorized()
        self.refuse_expired(access)
        return access

    def refuse_expired(self, access: KeyAccess) -> None:
        """Raise HttpError(401) if the key is not valid any more."""
        if access.key.expires and access.key.expires <= self.wall():
            raise unauthorized(f"the API key {access.name} has expired; ask for a new one", "key_expired")

    @property
    def required(self) -> bool:
        """Whether requests need a key."""
        return bool(self._known())

    def __call__(self, head: RequestHead) -> Authenticated:
        """Admit a request to the models, or raise HttpError(401) or (403)."""
        access = self.admit(head.first)
        if access is OPEN:
            return Authenticated(NO_HEADERS, access)
        access.require("infer")
        # The client knows a key already, so the time that these comparisons take reveals nothing.
        given = ((name.lower(), value) for name, value in head.headers)
        return Authenticated(
            frozenset(name for name, value in given if name not in ESSENTIAL and self._has_key(name, value)), access
        )

    def _has_key(self, name: bytes, value: bytes) -> bool:
        if name == WEBSOCKET_PROTOCOL:
            return any(map(self._is_key, protocol_keys(value)))
        within = credential(value)
        return self._is_key(value) or (within != b"" and self._is_key(within))

    def _is_key(self, text: bytes) -> bool:
        return text in self._plain or (
            len(self._plain) < len(self._by_digest) and sha256(text).digest() in self._by_digest
        )

    def _known(self) -> dict[bytes, KeyAccess]:
        """The keys in force by their digests, made again only if `configured` gives another sequence of them."""
        configured = self.configured()
        if configured is not self._of:
            self._of = configured
            self._by_digest = {key.digest: access_of(key, configured) for key in configured}
            self._plain = frozenset(key.plain.encode() for key in configured if key.plain)
        return self._by_digest


def presented(first: First) -> bytes:
    """The key that a request presents, empty if none.

    Basic's password, else Bearer's token, else x-api-key, else a page's among the protocols of a websocket; the first
    that is not empty counts, valid or not.
    """
    key = credential(first(b"authorization") or b"") or first(b"x-api-key") or b""
    return key or next(protocol_keys(first(WEBSOCKET_PROTOCOL) or b""), b"")


# -- CORS --------------------------------------------------------------------------------------------------

DEFAULT_REQUEST_HEADERS = b"Content-Type, Authorization, Accept, X-Requested-With"
TOKEN = re.compile(rb"[A-Za-z0-9!#$%&'*+\-.^_`|~]+\Z")


def preflight(first: First, settings: CorsSettings) -> Headers:
    """The headers of the 204 that answers every OPTIONS, without a key and without loading a model.

    Raises HttpError(403) if pages of the request's origin may not read answers.
    """
    origin, asked = first(b"origin"), first(b"access-control-request-headers")
    allowing = [ALLOW_ANY_ORIGIN] if "*" in settings.allow_origins else allowed_origin(origin, settings.allow_origins)
    if origin is not None and ALLOW_ANY_ORIGIN[0] not in dict(allowing):
        raise HttpError(403, f"{origin.decode('latin-1')} is not among security.cors.allowOrigins in the configuration")
    listed = ", ".join(settings.allow_headers).encode()
    return [
        *allowing,
        (b"Access-Control-Allow-Methods", b"GET, POST, PUT, PATCH, DELETE, OPTIONS"),
        (b"Access-Control-Allow-Headers", listed or (sanitised(asked) if asked else DEFAULT_REQUEST_HEADERS)),
        (b"Access-Control-Max-Age", b"%d" % settings.max_age),
    ]


def sanitised(asked: bytes) -> bytes:
    """A list of header names without the items that are not tokens; order and case stay."""
    items = (item.strip(b" \t\r\n") for item in asked.split(b","))
    return b", ".join(item for item in items if TOKEN.match(item))


# -- other sites' pages ------------------------------------------------------------------------------------


def refuse_cross_site(first: First) -> None:
    """Raise HttpError(403) for a request that a browser sends for another site's page.

    Browsers that remember Basic credentials would add them to such a request. Tools do not send these headers and pass.
    A page cannot forge `Sec-Fetch-Site: same-origin`, so it counts even if a reverse proxy rewrote Host.
    """
    site = (first(b"sec-fetch-site") or b"").lower()
    if site == b"same-origin":
        return
    origin = first(b"origin") or first(b"referer")
    # On plain HTTP a browser sends no Sec-Fetch-Site, and no Origin for what a page embeds; the page can suppress the
    # Referer too. What is embedded is then known by its Accept. A frame or a link that hides its page is not: it is
    # requested as text/html, like an address that the user typed.
    accept = (first(b"accept") or b"").lower()
    browser = (first(b"user-agent") or b"").lower().startswith(b"mozilla/")
    embedded = accept.startswith(b"image/") or (browser and origin is None and b"text/html" not in accept)
    if (embedded and not site) or site not in (b"", b"none"):
        raise HttpError(403, "cross-site request refused: the page that sent it is not served by llamaswap")
    if origin is None:
        return
    host = (first(b"host") or b"").lower()
    if _authority(origin) != host:
        sender = origin.decode("latin-1")
        raise HttpError(
            403,
            f"cross-site request refused: the page's origin {sender} is not this server's {host.decode('latin-1')}; "
            "a reverse proxy must pass the Host header on",
        )


def refuse_foreign_websocket(head: RequestHead, origins: Collection[str]) -> None:
    """Raise HttpError(403) if the page of another site opens a websocket, unless its origin is in `origins`.

    Browsers do not apply CORS to websockets: the page of any site could read it.
    """
    origin = head.first(b"origin")
    if origin is None or "*" in origins or not is_websocket(head.headers) or origin.decode("latin-1") in origins:
        return
    same = (head.first(b"sec-fetch-site") or b"").lower() == b"same-origin"
    if not same and _authority(origin) != (head.first(b"host") or b"").lower():
        raise HttpError(403, f"{origin.decode('latin-1')} is not among security.cors.allowOrigins in the configuration")


def _authority(origin: bytes) -> bytes:
    try:
        return urlsplit(origin.decode("ascii")).netloc.lower().encode()
    except (UnicodeDecodeError, ValueError):
        return b""


# -- DNS rebinding -----------------------------------------------------------------------------------------


@frozen
class HostCheck:
    """Compares a request's Host with this server's names: a site can resolve its name to this server's address (DNS
    rebinding), and its pages would then be of the same origin. An address or localhost cannot be such a name.

    `own` are the machine's names in lower case; `allowed` gives `allowedHosts` per request, because a reload may change
    it.
    """

    own: frozenset[str] = frozenset()
    allowed: Callable[[], Iterable[str]] = tuple

    def for_reading(self, first: First) -> None:
        """The same for a request that only reads, if `allowedHosts` is set: without it, tools may use any name."""
        if any(True for _ in self.allowed()):
            self(first)

    def __call__(self, first: First) -> None:
        """Raise HttpError(403) if Host is another server's name. Only tools send an empty one."""
        given = (first(b"host") or b"").decode("latin-1")
        name = host_name(given)
        if not given or _is_address(name) or name == "localhost" or name.endswith(".localhost") or name in self.own:
            return
        allowed = {host_name(entry) for entry in self.allowed()}
        if name not in allowed and "*" not in allowed:
            raise HttpError(
                403,
                f"request refused: {name or given} is not known as a name of this server; add it to allowedHosts in "
                "the configuration, or use the server's IP address",
            )


_AUTHORITY = re.compile(r"(?:\[([^\[\]%]+)\]|([^:\[\]]+))(?::[0-9]*)?\Z")  # an IPv6 address or a name; a port


def machine_names(hostname: str) -> frozenset[str]:
    """The names of a machine called `hostname`: in full, without its domain, and as mDNS announces it."""
    full = hostname.lower().rstrip(".")
    short = full.partition(".")[0]
    return frozenset((full, short, f"{short}.local")) if short else frozenset()


def host_name(authority: str) -> str:
    """The host of `host:port` in lower case, without brackets and without the dot that ends a full name.

    Empty if it is malformed: no part of it counts as a name that is trusted.
    """
    parts = _AUTHORITY.match(authority)
    return (parts[1] or parts[2]).lower().removesuffix(".") if parts else ""


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
