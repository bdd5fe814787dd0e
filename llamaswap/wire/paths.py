"""One spelling for each path, so that routing, guards and logs cannot read a request's target differently."""

from __future__ import annotations

import re

# The rest of these paths belongs to another server and is passed on unchanged.
FOREIGN = (b"/upstream/", b"/comfyui/")
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_ESCAPE = re.compile(rb"%(?:[0-9A-Fa-f]{2})?")
_UNUSUAL = re.compile(rb"%|//|/\.")


def normalised_target(target: bytes) -> bytes:
    """A request target with its path in normal form (RFC 3986, 6.2.2) and an unchanged query.

    Escapes of unreserved characters are decoded, other escapes get upper-case digits, dot segments are resolved and
    doubled slashes merged. An encoded slash stays encoded, because it belongs to a name.
    """
    path, mark, query = target.partition(b"?")
    if path[:1] != b"/" or path.startswith(FOREIGN) or _UNUSUAL.search(path) is None:
        return target
    kept: list[bytes] = []
    last = b""
    for last in _ESCAPE.sub(_unescaped, path).split(b"/"):
        if last == b"..":
            del kept[-1:]
        elif last not in (b"", b"."):
            kept.append(last)
    folder = b"/" if kept and last in (b"", b".", b"..") else b""
    return b"/" + b"/".join(kept) + folder + mark + query


def _unescaped(escape: re.Match[bytes]) -> bytes:
    if escape[0] == b"%":
        return b"%25"  # not an escape, and must not become one with what follows
    value = int(escape[0][1:], 16)
    return bytes((value,)) if value in _UNRESERVED else escape[0].upper()
