"""Small requests to a server that may hang: any response at all, an error included, shows that it works."""

from __future__ import annotations

import json

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError, TimeoutError

from llamaswap.config.endpoints import Endpoint
from llamaswap.config.steps import StepRequest
from llamaswap.servers.server_request import ServerRequest


def token(model: str) -> StepRequest:
    """A chat of one word, to be answered with one token; `model` is the name the server knows itself by.

    A server without chats refuses it, which is a response too.
    """
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "."}], "max_tokens": 1})
    return StepRequest("POST", "/v1/chat/completions", body)


def page(path: str) -> StepRequest:
    """A page that costs a server nothing."""
    return StepRequest("GET", path)


def responds(send: ServerRequest, endpoint: Endpoint, request: StepRequest, limit: float) -> Deferred[bool]:
    """Whether the server at `endpoint` responds within `limit` seconds."""

    async def probe() -> bool:
        try:
            await send(endpoint, request.path, limit, request)
        except (ConnectError, TimeoutError, CancelledError):
            return False
        return True

    return Deferred.fromCoroutine(probe())
