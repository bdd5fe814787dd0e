"""Which peers there are, what they offer, and how they are doing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from attrs import define

from llamaswap.config import Config
from llamaswap.observe.log_format import rfc3339
from llamaswap.proxy.peers import PeerDirectory
from llamaswap.web.admin_request import AdminRequest, Response, json_answer
from llamaswap.web.route import RouteTable
from llamaswap.web.secret_masking import known_secrets, masked_text


@define(eq=False)
class PeerEndpoints:
    """/api/peers."""

    config: Callable[[], Config]
    book: PeerDirectory

    def index(self, call: AdminRequest) -> Response:
        """All peers by id; `since` is when the state last changed, `checked` the last news."""
        config = self.config()
        secrets = known_secrets(config)
        rows: list[dict[str, Any]] = []
        for peer in sorted(config.peers.values(), key=lambda peer: peer.id):
            health = self.book.health(peer.id)
            rows.append(
                {
                    "id": peer.id,
                    "proxy": masked_text(peer.proxy, secrets),
                    "auto": peer.auto,
                    "models": list(peer.models),
                    "state": health.state,
                    "since": _when(health.since),
                    "checked": _when(health.checked),
                    "error": None if health.error is None else masked_text(health.error, secrets),
                }
            )
        return json_answer({"peers": rows})


def _when(seconds: float | None) -> str | None:
    return None if seconds is None else rfc3339(datetime.fromtimestamp(seconds).astimezone())


_table = RouteTable(PeerEndpoints, "peers")
ROUTES = (_table.get("/api/peers", PeerEndpoints.index, "All peers and how they are doing", schema="Peers"),)
