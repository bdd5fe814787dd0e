"""Who may come in: API keys, the CORS preflight, and the refusal of other sites' pages.

Works on a header reader (`first(lower_case_name) -> value or None`), so that both doors share it. It must not know
twisted.web or a request's body.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol
from urllib.parse import urlsplit

from attrs import frozen

from llamaswap.web.errors import Headers, HttpError, unauthorized
from llamaswap.wire.headers import ESSENTIAL, NO_HEADERS, credential

First = Callable[[bytes], "bytes | None"]


class AuthorizableHead(Protocol):
    """A request's headers, in order and as they came."""

    @property
    def headers(self) -> Sequence[tuple[bytes, bytes]]: ...

    def first(self, name: bytes, /) -> bytes | None: ...


@frozen
class Authenticator:
    """Compare a request's key with the configured ones. `keys` is asked per request: a reload may change them."""

    keys: Callable[[], Iterable[bytes]]

    def admit(self, first: First) -> None:
        """Return where the request may come in, else raise HttpError(401)."""
        self._admit(first)

    def __call__(self, head: AuthorizableHead) -> frozenset[bytes]:
        """Admit a request to the model routes, or raise HttpError(401).

        Returns the names (lower case) of all headers that carry one of our keys: none of them may reach a server.
        """
        keys = self._admit(head.first)
        if not keys:
            return NO_HEADERS
        # The request knows a key by now, so the time that these comparisons take tells it nothing.
        found = {name.lower() for name, value in head.headers if value in keys or credential(value) in keys}
        return frozenset(found - ESSENTIAL)

    def _admit(self, first: First) -> tuple[bytes, ...]:
        """The keys in force, after a check that the request has one of them."""
        keys = tuple(self.keys())
        if keys:
            candidate = presented(first)
            # Every key is compared, whatever the earlier ones said: the time taken tells nothing about which matched.
            if not (sum([hmac.compare_digest(candidate, key) for key in keys]) and candidate):
                raise unauthorized()
        return keys


class KeyRing:
    """The configured keys as bytes, made anew only when `configured` gives another sequence of them."""

    def __init__(self, configured: Callable[[], Sequence[Any]]) -> None:
        self._configured = configured
        self._of: Sequence[Any] = ()
        self._keys: tuple[bytes, ...] = ()

    def __call__(self) -> tuple[bytes, ...]:
        """The keys of this moment."""
        configured = self._configured()
        if configured is not self._of:
            self._of, self._keys = configured, tuple(key.value.encode() for key in configured)
        return self._keys


def presented(first: First) -> bytes:
    """The request's one key candidate, empty where it has none.

    Basic's password, else Bearer's token, else x-api-key; the first that is not empty counts, right or wrong.
    """
    return credential(first(b"authorization") or b"") or first(b"x-api-key") or b""


# -- CORS --------------------------------------------------------------------------------------------------

DEFAULT_REQUEST_HEADERS = b"Content-Type, Authorization, Accept, X-Requested-With"
TOKEN = re.compile(rb"[A-Za-z0-9!#$%&'*+\-.^_`|~]+\Z")


def preflight(first: First) -> Headers:
    """The headers of the 204 that every OPTIONS gets, without a key and without touching a model."""
    asked = first(b"access-control-request-headers")
    return [
        (b"Access-Control-Allow-Origin", b"*"),
        (b"Access-Control-Allow-Methods", b"GET, POST, PUT, PATCH, DELETE, OPTIONS"),
        (b"Access-Control-Allow-Headers", sanitised(asked) if asked else DEFAULT_REQUEST_HEADERS),
        (b"Access-Control-Max-Age", b"86400"),
    ]


def sanitised(asked: bytes) -> bytes:
    """A list of header names with everything that is not a token left out; order and case stay."""
    items = (item.strip(b" \t\r\n") for item in asked.split(b","))
    return b", ".join(item for item in items if TOKEN.match(item))


# -- other sites' pages ------------------------------------------------------------------------------------

CHANGES = frozenset((b"POST", b"PUT", b"DELETE", b"PATCH"))
# They stop models although they are (also) GET: an <img> on any page could ask for them.
CHANGING_GETS = frozenset((b"/unload", b"/models/unload"))


def changes_state(method: bytes, rule: bytes) -> bool:
    """Whether a request that is routed by `rule` does something a page of another site must not trigger."""
    return (method in CHANGES and rule.startswith(b"/api/")) or rule in CHANGING_GETS


def refuse_cross_site(method: bytes, rule: bytes, first: First) -> None:
    """Raise HttpError(403) for a state-changing request that a browser sends for another site's page.

    Browsers that remember Basic credentials would add them to such a request. Tools send neither header and pass.
    `Sec-Fetch-Site: same-origin` cannot be forged by a page, so it is believed where a reverse proxy rewrote Host.
    """
    if not changes_state(method, rule):
        return
    site = (first(b"sec-fetch-site") or b"").lower()
    if site == b"same-origin":
        return
    # A GET needs no Origin: its Sec-Fetch-Site, its Referer and what an image tag accepts show a page of another site.
    plain = rule in CHANGING_GETS
    image = plain and not site and (first(b"accept") or b"").lower().startswith(b"image/")
    if site == b"cross-site" or image or (plain and site not in (b"", b"none")):
        raise HttpError(403, "cross-site request refused: this page is not served by llamaswap")
    origin = first(b"origin") or (first(b"referer") if plain else None)
    if origin is None:
        return
    host = (first(b"host") or b"").lower()
    if _authority(origin) != host:
        told = origin.decode("latin-1")
        raise HttpError(
            403,
            f"cross-site request refused: the page's origin {told} is not this server's {host.decode('latin-1')}; "
            "a reverse proxy must pass the Host header on",
        )


def _authority(origin: bytes) -> bytes:
    try:
        return urlsplit(origin.decode("ascii")).netloc.lower().encode()
    except (UnicodeDecodeError, ValueError):
        return b""
