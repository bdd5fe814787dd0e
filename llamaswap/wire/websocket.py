"""Websocket messages (RFC 6455), as far as a proxy has to read and write them itself."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha1

from attrs import define, field

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
CONTROL_LIMIT = 125  # bytes of a control frame's payload
LARGEST_CONTROL_FRAME = CONTROL_LIMIT + 6
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class BadFrame(Exception):
    """The client does not send frames as the protocol demands, or more than is read; `code` is that of the close."""

    def __init__(self, reason: str, code: int = 1002) -> None:
        super().__init__(reason)
        self.code = code


def accept_key(key: bytes) -> bytes:
    """The server's proof that it understood the handshake with this Sec-WebSocket-Key."""
    return b64encode(sha1(key + _GUID, usedforsecurity=False).digest())


def frame(opcode: int, payload: bytes, *, masked: bool = False) -> bytes:
    """One whole message; a client's is masked, here by zeros."""
    mask = 0x80 if masked else 0
    size = len(payload)
    if size < 126:
        head = bytes((0x80 | opcode, mask | size))
    elif size < 1 << 16:
        head = bytes((0x80 | opcode, mask | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((0x80 | opcode, mask | 127)) + size.to_bytes(8, "big")
    return head + (bytes(4) if masked else b"") + payload


def close_frame(code: int, reason: str) -> bytes:
    """The end of a connection, with as much of the reason as fits."""
    text = reason.encode("utf-8", "replace")[: CONTROL_LIMIT - 2].decode("utf-8", "ignore").encode()
    return frame(CLOSE, code.to_bytes(2, "big") + text)


def is_control(data: bytes) -> bool:
    """Whether data is a ping, a pong or a close that was read by itself."""
    return 0 < len(data) <= LARGEST_CONTROL_FRAME and data[0] & 0x0F >= CLOSE


@define(eq=False)
class MessageReader:
    """Joins a client's frames to messages. `limit` bounds the bytes of a message and those of an incomplete frame."""

    limit: int
    _rest: bytes = b""
    _parts: list[bytes] = field(factory=list, init=False)
    _opcode: int = field(default=0, init=False)
    _size: int = field(default=0, init=False)

    @property
    def unread(self) -> bytes:
        """What was received of a message that is not complete, as frames."""
        if not self._parts:
            return self._rest
        whole = frame(self._opcode, b"".join(self._parts), masked=True)
        return bytes((whole[0] & 0x7F,)) + whole[1:] + self._rest

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """The messages that are complete now, as (opcode, payload). Raises BadFrame."""
        self._rest += data
        found = []
        while (parsed := self._frame()) is not None:
            final, opcode, payload = parsed
            if opcode >= CLOSE:
                found.append((opcode, payload))
                continue
            if bool(opcode) == bool(self._parts):
                raise BadFrame("a message began within another, or was continued without a beginning")
            self._opcode = opcode or self._opcode
            self._parts.append(payload)
            self._size += max(1, len(payload))
            if self._size > self.limit:
                raise BadFrame("the message is too large", 1009)
            if final:
                found.append((self._opcode, b"".join(self._parts)))
                self._parts.clear()
                self._size = 0
        return found

    def _frame(self) -> tuple[bool, int, bytes] | None:
        """The next frame, None if it is incomplete."""
        data = self._rest
        if len(data) < 2:
            return None
        opcode, size, start = data[0] & 0x0F, data[1] & 0x7F, 2
        if data[0] & 0x70 or not data[1] & 0x80 or opcode not in (0, TEXT, BINARY, CLOSE, PING, PONG):
            raise BadFrame("a frame is not masked, or has an unknown kind or extension")
        if opcode >= CLOSE and (size > CONTROL_LIMIT or not data[0] & 0x80):
            raise BadFrame("a control frame is too long or in pieces")
        if size >= 126:
            start = 4 if size == 126 else 10
            if len(data) < start:
                return None
            size = int.from_bytes(data[2:start], "big")
        if size > self.limit:
            raise BadFrame("the message is too large", 1009)
        end = start + 4 + size
        if len(data) < end:
            return None
        mask, payload = data[start : start + 4], data[start + 4 : end]
        self._rest = data[end:]
        key = (mask * (size // 4 + 1))[:size]
        plain = (int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")).to_bytes(size, "big")
        return bool(data[0] & 0x80), opcode, plain
