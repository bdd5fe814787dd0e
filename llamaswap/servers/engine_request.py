"""Requests with JSON to a model's own server, about slots and capabilities; and the flags of its command."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

from attrs import frozen

from llamaswap.http_client import HttpResponse, SendRequest
from llamaswap.servers.supervisor_protocol import ServerStatus


@frozen
class EngineRequest:
    """Sends requests to one server. `left` gives the seconds that are left for them."""

    send: SendRequest
    status: ServerStatus
    left: Callable[[], float]

    async def __call__(self, method: str, path: str, document: Mapping[str, str] | None = None) -> tuple[int, object]:
        """The status and the JSON of the response, {} if it is not JSON."""
        headers = authorization(self.status.cmd)
        body = None if document is None else json.dumps(document).encode()
        url = f"{str(self.status.endpoint).rstrip('/')}{path}"
        response = await self.send(method, url, timeout=max(0.0, self.left()), body=body, headers=headers)
        return response.status, json_of(response)


def authorization(cmd: Sequence[str]) -> dict[str, str]:
    """The header with the first key in a server's command; empty if it has none."""
    key = flag_of(cmd, "--api-key").split(",")[0]
    return {"Authorization": f"Bearer {key}"} if key else {}


def json_of(response: HttpResponse) -> object:
    """The JSON of a response, {} if it is not JSON."""
    try:
        return json.loads(response.body)
    except (ValueError, RecursionError):
        return {}


def flag_of(cmd: Sequence[str], flag: str) -> str:
    """The value of a flag in a server's command; empty if it has none. The last one counts."""
    found = ""
    for at, word in enumerate(cmd):
        name, sign, value = word.partition("=")
        if name == flag:
            found = value if sign else "".join(cmd[at + 1 : at + 2])
    return found


def member(document: object, name: str) -> object:
    """A member of a JSON object; None if it has none, or if the document is not an object."""
    return document.get(name) if isinstance(document, dict) else None


def number(document: object, name: str) -> int:
    """A member that is a whole number; 0 if it is anything else."""
    value = member(document, name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0
