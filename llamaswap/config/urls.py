"""`proxy` URLs: which texts are URLs (by Go's lenient rules, which urllib.parse lacks), and where they lead."""

from __future__ import annotations

import re

from llamaswap.config.endpoints import Endpoint

_URL = re.compile(
    r"(?:(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):)?(?://(?P<authority>[^/?]*))?(?P<path>[^?]*)(?:\?(?P<query>.*))?",
    re.DOTALL,
)
_AUTHORITY = re.compile(
    r"(?:(?P<user>.*)@)?(?:\[(?P<address>[^\]]*)\]|(?P<name>[^:\[][^:]*)?)(?P<port>:.*)?", re.DOTALL
)
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_USER = re.compile(r"[A-Za-z0-9\-._:~!$&'()*+,;=%@]*")
_BAD_IN_HOST = re.compile(r"""[\s"<>\\^`{|}\[\]]""")
PORTS = {"http": 80, "https": 443}
MAX_PORT = 65535


class UrlError(ValueError):
    """The text is not a URL; `str()` says why."""


def parse(text: str) -> Endpoint | None:
    """Where a URL leads; None for a URL that is not an http(s) address, or that no server can have. Raises UrlError."""
    if any(ord(char) < 0x20 or ord(char) == 0x7F for char in text):
        raise UrlError("it contains control characters")
    found = _URL.fullmatch(text.partition("#")[0])
    assert found is not None  # every part may be empty
    scheme, authority, path, query = (found["scheme"] or "").lower(), found["authority"], found["path"], found["query"]
    if not scheme and authority is None and ":" in path.partition("/")[0]:
        raise UrlError(
            "its scheme is missing" if path.startswith(":") else "its first part contains a colon but no scheme"
        )
    host, port = ("", "") if authority is None else _host_and_port(authority)
    if _BAD_ESCAPE.search(path) and (not scheme or path.startswith("/")):
        raise UrlError("it contains an invalid percent escape")
    if scheme not in PORTS or not host:
        return None
    number = int(port.lstrip("0")[:6] or 0) if port else PORTS[scheme]
    return Endpoint(scheme, host, number, path.rstrip("/"), query or "") if number <= MAX_PORT else None


def _host_and_port(authority: str) -> tuple[str, str]:
    found = _AUTHORITY.fullmatch(authority)
    user = authority.rpartition("@")[0] if found is None else found["user"] or ""
    if not _USER.fullmatch(user) or _BAD_ESCAPE.search(user):
        raise UrlError("its user part is invalid")
    if found is None:
        raise UrlError("its port is invalid" if "]" in authority else "a ] is missing in its host")
    host, port = found["address"] or found["name"] or "", (found["port"] or "")[1:]
    if port and not (port.isascii() and port.isdigit()):
        raise UrlError("its port is not a number")
    if _BAD_IN_HOST.search(host):
        raise UrlError("its host contains invalid characters")
    if "%" in host and found["address"] is None:
        raise UrlError("its host contains an invalid percent escape")
    return host, port
