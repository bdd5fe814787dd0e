"""The front's requests to an agent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Protocol
from urllib.parse import quote

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionRefusedError

from llamaswap.cluster.agent_protocol import MAX_TEXT, CommandResult, Malformed, result_of
from llamaswap.config.endpoints import Endpoint
from llamaswap.config.steps import StepRequest
from llamaswap.errors import HostRefused
from llamaswap.http_client import HttpResponse

CALL_LIMIT = 10.0  # seconds for a request to an agent


class Ask(Protocol):
    """Sends a small request; see `SocketRequest.get`."""

    def __call__(
        self, endpoint: Endpoint, path: str, limit: float, headers: Mapping[str, str], how: StepRequest = ...
    ) -> Deferred[HttpResponse]: ...


class HostAway(Exception):
    """A host does not answer; the text says why. What it was told may have been done."""


class AgentEnded(HostAway):
    """A host refuses connections: its agent has ended, and no server is left there; see `guardian`."""


async def send_to_agent(
    ask: Ask, endpoint: Endpoint, host: str, model: str, what: str, document: Mapping[str, object]
) -> CommandResult:
    """Have the agent of a host start or stop a model. Raises HostRefused or HostAway."""
    path = f"/models/{quote(model, safe='')}/{what}"
    try:
        response = await ask(endpoint, path, CALL_LIMIT, {}, StepRequest("POST", path, json.dumps(document)))
    except CancelledError:
        raise  # the start is not wanted any more, which says nothing about the host
    except ConnectionRefusedError as error:
        raise AgentEnded(f"{host} does not answer: {error}") from None
    except Exception as error:
        raise HostAway(f"{host} does not answer: {error}") from None
    if response.status != 200:
        raise HostRefused(model, host, refusal(response))
    try:
        return result_of(response.body)
    except Malformed as error:
        raise HostAway(f"{host}: {error}") from None


def refusal(response: HttpResponse) -> str:
    """Why an agent refuses a request."""
    try:
        return str(json.loads(response.body)["error"])[:MAX_TEXT]
    except (ValueError, KeyError, TypeError):
        return f"its agent answered with status {response.status}"
