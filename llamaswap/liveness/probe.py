"""Small questions to a server that may hang: any answer at all, an error included, says that it lives."""

from __future__ import annotations

import json
from typing import Any

from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as TimeIsUp
from twisted.internet.error import ConnectError, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from llamaswap.config.endpoints import Endpoint
from llamaswap.servers.readiness import Connector, connected


class _ProbeConnection(Protocol):
    """Sends the question; `heard` fires with the first byte back."""

    def __init__(self, question: bytes) -> None:
        self.heard: Deferred[bool] = Deferred(lambda _: self._pipe.abortConnection())
        self._question = question
        self._pipe: Any = None  # the transport; aborting is only in the TCP one

    def connectionMade(self) -> None:
        self._pipe = self.transport
        self._pipe.write(self._question)

    def dataReceived(self, data: bytes) -> None:
        self._tell(True)
        self._pipe.abortConnection()  # what follows is a token nobody reads

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._tell(False)

    def _tell(self, answered: bool) -> None:
        if not self.heard.called:
            self.heard.callback(answered)


@frozen
class SocketProbe:
    """Asks one question (`token`, `page`) over a connection of its own."""

    clock: IReactorTime
    ways: Connector

    def __call__(self, endpoint: Endpoint, words: bytes, limit: float) -> Deferred[bool]:
        """Whether the server at `endpoint` answers within `limit` seconds."""
        asked = Deferred.fromCoroutine(self._ask(endpoint, words, limit))
        asked.addTimeout(limit, self.clock)
        return asked.addErrback(_silent)

    async def _ask(self, endpoint: Endpoint, words: bytes, limit: float) -> bool:
        canary = await connected(self.ways(endpoint, limit), lambda: _ProbeConnection(words))
        return await canary.heard


def token(endpoint: Endpoint, model: str) -> bytes:
    """A chat of one word, to be answered with one token; `model` is the name the server knows itself by. One without
    chats says so, which is an answer too."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "."}], "max_tokens": 1}).encode()
    more = ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return _head(endpoint, "POST", "/v1/chat/completions", more) + body


def page(endpoint: Endpoint, path: str) -> bytes:
    """A page that costs a server nothing."""
    return _head(endpoint, "GET", path if path.startswith("/") else f"/{path}", [])


def _head(endpoint: Endpoint, method: str, path: str, more: list[str]) -> bytes:
    lines = [f"{method} {endpoint.path}{path} HTTP/1.1", f"Host: {endpoint.authority}", "User-Agent: llamaswap"]
    return "\r\n".join([*lines, *more, "Connection: close", "\r\n"]).encode("utf-8")


def _silent(failure: Failure) -> bool:
    """A server that cannot be reached in time does not answer."""
    failure.trap(ConnectError, TimeoutError, TimeIsUp, CancelledError)
    return False
