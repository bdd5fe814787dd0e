"""The peers, the models they offer, and their health."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

from attrs import define

from llamaswap.config import Config
from llamaswap.observe.log_format import local_time, rfc3339
from llamaswap.proxy.peers import PeerDirectory
from llamaswap.web.admin_request import AdminRequest, Response, json_answer
from llamaswap.web.route import RouteTable, Timestamp
from llamaswap.web.secret_masking import known_secrets, masked_text


class PeerDocument(TypedDict):
    """A peer. `since` is when its state last changed, `checked` when the peer was last heard from."""

    id: str
    proxy: str
    auto: bool
    models: list[str]
    state: str
    since: Timestamp | None
    checked: Timestamp | None
    error: str | None


class PeerList(TypedDict):
    """All peers."""

    peers: list[PeerDocument]


route = RouteTable("peers")


@define(eq=False)
class PeerEndpoints:
    """/api/peers."""

    config: Callable[[], Config]
    directory: PeerDirectory

    @route("GET", "/api/peers", answer=PeerList)
    def index(self, call: AdminRequest) -> Response:
        """All peers by id, with their health."""
        config = self.config()
        secrets = known_secrets(config)
        rows: list[PeerDocument] = []
        for peer in sorted(config.peers.values(), key=lambda peer: peer.id):
            health = self.directory.health(peer.id)
            rows.append(
                {
                    "id": peer.id,
                    "proxy": masked_text(peer.proxy, secrets),
                    "auto": peer.auto,
                    "models": list(peer.models),
                    "state": health.state,
                    "since": _time(health.since),
                    "checked": _time(health.checked),
                    "error": None if health.error is None else masked_text(health.error, secrets),
                }
            )
        return json_answer({"peers": rows})


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else rfc3339(local_time(seconds))
