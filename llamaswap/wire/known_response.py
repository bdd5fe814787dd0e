"""What was made of a response's head before."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llamaswap.wire.headers import ResponseHeaders


class KnownResponse:
    """What was made of a server's response head, for later responses whose heads differ in nothing but their
    Content-Length: the client's headers, with the `place` of that field in them (-1: none), and the bytes around its
    value, which depend on what is in `key`."""

    __slots__ = ("after", "before", "headers", "key", "place")

    def __init__(self) -> None:
        self.headers: ResponseHeaders | None = None
        self.place = -1
        self.key: tuple[object, ...] = ()
        self.before = self.after = b""
