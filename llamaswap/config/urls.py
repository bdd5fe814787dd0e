"""`proxy` URLs: which texts are URLs at all (the original's lenient rules), and where they point."""

from __future__ import annotations

import re

from llamaswap.config.endpoints import Endpoint

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_USER = re.compile(r"[A-Za-z0-9\-._:~!$&'()*+,;=%@]*")
_BAD_IN_HOST = re.compile(r"""[\s"<>\\^`{|}]""")
PORTS = {"http": 80, "https": 443}
HIGHEST_PORT = 65535


class UrlError(ValueError):
    """The text is no URL; `str()` says why."""


def parse(text: str) -> Endpoint | None:
    """Where a URL points; None where it is well formed but no http(s) address that can be. Raises UrlError."""
    if any(ord(char) < 0x20 or ord(char) == 0x7F for char in text):
        raise UrlError("it contains control characters")
    rest, _, _ = text.partition("#")
    scheme, rest = _scheme(rest)
    rest, _, query = rest.partition("?")
    if not rest.startswith("//"):
        if not scheme and not rest.startswith("/") and ":" in rest.partition("/")[0]:
            raise UrlError("its first part contains a colon but no scheme")
        if _ESCAPE.search(rest) and (not scheme or rest.startswith("/")):
            raise UrlError("it contains an invalid percent escape")
        return None
    authority, slash, path = rest[2:].partition("/")
    host, port = _authority(authority)
    if _ESCAPE.search(path):
        raise UrlError("it contains an invalid percent escape")
    if scheme not in PORTS or not host:
        return None
    number = int(port.lstrip("0")[:6] or 0) if port else PORTS[scheme]
    if number > HIGHEST_PORT:
        return None
    return Endpoint(scheme, host, number, (slash + path).rstrip("/"), query)


def _scheme(text: str) -> tuple[str, str]:
    head, colon, rest = text.partition(":")
    if not colon or "/" in head or "?" in head:
        return "", text
    if not head:
        raise UrlError("its scheme is missing")
    if _SCHEME.fullmatch(head):
        return head.lower(), rest
    if head[0].isascii() and head[0].isalpha():
        return "", text
    raise UrlError("its first part contains a colon but no scheme")


def _authority(text: str) -> tuple[str, str]:
    user, at, place = text.rpartition("@")
    if at and (not _USER.fullmatch(user) or _ESCAPE.search(user)):
        raise UrlError("its user part is invalid")
    if place.startswith("["):
        host, bracket, tail = place[1:].partition("]")
        if not bracket:
            raise UrlError("a ] is missing in its host")
        if tail and not tail.startswith(":"):
            raise UrlError("its port is invalid")
        port = tail[1:]
    else:
        host, _, port = place.partition(":")
    if port and not (port.isascii() and port.isdigit()):
        raise UrlError("its port is not a number")
    if _BAD_IN_HOST.search(host) or "[" in host or "]" in host:
        raise UrlError("its host contains invalid characters")
    if "%" in host and not place.startswith("["):
        raise UrlError("its host contains an invalid percent escape")
    return host, port
