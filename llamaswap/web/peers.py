"""The peers, the models they offer, and their health."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from attrs import define, frozen

from llamaswap.config import Config
from llamaswap.observe.log_format import Timestamp, local_time, rfc3339
from llamaswap.proxy.peers import PeerDirectory
from llamaswap.web.admin_request import AdminRequest, Response, json_answer
from llamaswap.web.route import Route, RouteTable
from llamaswap.web.secret_masking import known_secrets, masked_text


@frozen
class PeerDocument:
    """A peer. `since` is when its state last changed, `checked` when the peer was last heard from."""

    id: str
    proxy: str
    auto: bool
    models: list[str]
    aliases: dict[str, str]
    state: str
    since: Timestamp | None
    checked: Timestamp | None
    error: str | None


@frozen
class PeerList:
    """All peers."""

    peers: list[PeerDocument]


route = RouteTable("peers", Route)


@define(eq=False)
class PeerEndpoints:
    """/api/peers."""

    config: Callable[[], Config]
    directory: PeerDirectory

    @route("GET", "/api/peers", answer=PeerList)
    def index(self, call: AdminRequest) -> Response:
        """All peers by id, with their health."""
        config = self.config()
        hide = partial(masked_text, known=known_secrets(config))
        rows = []
        for peer in sorted(config.peers.values(), key=lambda peer: peer.id):
            health = self.directory.health(peer.id)
            times = _time(health.since), _time(health.checked)
            error = None if health.error is None else hide(health.error)
            names = list(peer.models), dict(peer.aliases)
            rows.append(PeerDocument(peer.id, hide(peer.proxy), peer.auto, *names, health.state, *times, error))
        return json_answer(PeerList(rows))


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else rfc3339(local_time(seconds))
