"""Which peers there are, what they offer, and how they are doing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from attrs import define

from llamaswap.config import Config
from llamaswap.observe.lines import rfc3339
from llamaswap.web.calls import Answer, Call, json_answer
from llamaswap.web.masking import known_secrets, masked_text
from llamaswap.web.needs import PeerBook
from llamaswap.web.routes import Table


@define(eq=False)
class Peers:
    """/api/peers."""

    config: Callable[[], Config]
    book: PeerBook

    def index(self, call: Call) -> Answer:
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


_table = Table(Peers, "peers")
ROUTES = (_table.get("/api/peers", Peers.index, "All peers and how they are doing", schema="Peers"),)
