"""The peers: their health, and the models of those that are asked for them (`models: auto`).

A peer with `models: auto` is asked for its list now and every minute; the health of each peer is also learned from the
requests that go to it. What a request does about a peer that is down is decided elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from attrs import define, evolve, field, frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from llamaswap.config import Config, Peer
from llamaswap.config.endpoints import Endpoint
from llamaswap.http_client import RequestFailed, SendRequest

LIST_INTERVAL = 60.0  # seconds between two requests for the list of a peer that answers
RETRY_INTERVAL = 10.0  # seconds, for a peer that does not: after a reboot of both, the first one waits for the other
LIST_TIMEOUT = 10.0  # seconds for one request, with its whole response
MODEL_LIMIT = 2000  # models taken from one peer, because every page and listing contains them
AVOID_SECONDS = 30.0  # seconds for which a silent peer is tried last, because it may cost the whole connect timeout
KEEP_SECONDS = 600.0  # seconds for which the models of a silent peer stay known: its restart must not cause 404s

UNKNOWN, UP, DOWN = "unknown", "up", "down"


class PeerError(Exception):
    """A peer's response is not a list of models."""


@frozen
class Health:
    """The health of a peer. `since` and `checked` are Unix seconds: of the last change of `state`, and of the last
    news."""

    state: str = UNKNOWN
    since: float | None = None
    checked: float | None = None
    error: str | None = None


@define(eq=False)
class _Known:
    """What is known of one peer at one address."""

    endpoint: Endpoint | None
    health: Health = Health()
    names: tuple[str, ...] = ()
    heard_at: float | None = None  # of the last good list, in the clock's seconds
    asked_at: float | None = None


@define(eq=False)
class PeerDirectory:
    """Asks the peers for their models, and keeps their health.

    `config` gives the configuration in force. `learned(peers)` is called with the peers and their models when an offer
    changed, `changed()` when a state did. `wall` gives Unix seconds.
    """

    _clock: IReactorTime
    _wall: Callable[[], float]
    _send: SendRequest
    _config: Callable[[], Config]
    _learned: Callable[[Mapping[str, Peer]], object]
    _changed: Callable[[], object]
    _known: dict[str, _Known] = field(factory=dict, init=False)
    _loop: LoopingCall | None = field(default=None, init=False)
    _asking: dict[str, Deferred[None]] = field(factory=dict, init=False)
    _log: Logger = field(factory=lambda: Logger("llamaswap.proxy.peers"), init=False, repr=False)

    # -- begin and end -------------------------------------------------------------------------------------

    def retune(self) -> None:
        """Apply the configuration in force: ask the peers with `models: auto`, drop those that were removed. Also
        starts it."""
        peers = self._config().peers
        for name in [name for name in self._known if name not in peers]:
            del self._known[name]
        for name in [name for name in self._asking if name not in peers or not peers[name].auto]:
            self._asking.pop(name).cancel()
        if not any(peer.auto for peer in peers.values()):
            self.stop()
        elif self._loop is None:
            self._loop = LoopingCall(self._ask_who_is_due)
            self._loop.clock = self._clock
            looping = self._loop.start(RETRY_INTERVAL, now=True)
            looping.addErrback(lambda failure: self._log.failure("asking the peers", failure))
        else:
            self._ask_who_is_due()

    def stop(self) -> None:
        """Stop asking. Idempotent."""
        loop, self._loop = self._loop, None
        if loop is not None and loop.running:
            loop.stop()
        for asking in tuple(self._asking.values()):
            asking.cancel()
        self._asking.clear()

    # -- what is known -------------------------------------------------------------------------------------

    def health(self, peer: str) -> Health:
        """The health of a peer."""
        known = self._known.get(peer)
        return known.health if known is not None else Health()

    def heard(self, peer: str, error: str | None) -> None:
        """A request to this peer got a response (`error` None), or none."""
        configured = self._config().peers.get(peer)
        if configured is not None:
            self._note(self._of(configured), peer, error)

    def avoided(self, peer: str) -> bool:
        """Whether this peer did not answer a moment ago, so that other targets should be tried first."""
        health = self.health(peer)
        return health.state == DOWN and health.checked is not None and self._wall() - health.checked < AVOID_SECONDS

    def filled(self, config: Config) -> Config:
        """This configuration, with the known models of its peers."""
        peers = {name: self._filled(peer, config) for name, peer in config.peers.items()}
        return config if peers == dict(config.peers) else evolve(config, peers=peers)

    def _filled(self, peer: Peer, config: Config) -> Peer:
        if not peer.auto:
            return peer
        known = self._known.get(peer.id)
        if known is None or known.endpoint != peer.endpoint:
            return evolve(peer, models=())
        # A local model or selector that is called PEER/MODEL keeps its name.
        mine = lambda name: config.real(name) is not None or name in config.selectors
        return evolve(peer, models=tuple(name for name in known.names if not mine(f"{peer.id}/{name}")))

    def _of(self, peer: Peer) -> _Known:
        known = self._known.get(peer.id)
        if known is None or known.endpoint != peer.endpoint:
            known = self._known[peer.id] = _Known(peer.endpoint)
        return known

    def _note(self, known: _Known, peer: str, error: str | None) -> None:
        now, before = self._wall(), known.health
        state = UP if error is None else DOWN
        if state == before.state and error == before.error:
            known.health = evolve(before, checked=now)
            return
        known.health = Health(state, before.since if state == before.state else now, now, error)
        if state == before.state:
            return
        if error is not None:
            self._log.warn("peer {peer} does not answer: {error}", peer=peer, error=error)
        elif before.state == DOWN:
            self._log.info("peer {peer} answers again", peer=peer)
        self._changed()

    # -- asking --------------------------------------------------------------------------------------------

    def _ask_who_is_due(self) -> None:
        now = self._clock.seconds()
        for peer in self._config().peers.values():
            if not peer.auto or peer.endpoint is None or peer.id in self._asking:
                continue
            known = self._of(peer)
            wait = LIST_INTERVAL if known.health.state == UP else RETRY_INTERVAL
            # A peer is due half an interval early, because the loop runs a little late.
            if known.asked_at is None or now >= known.asked_at + wait - RETRY_INTERVAL / 2:
                known.asked_at = now
                self._begin(peer, known)

    def _begin(self, peer: Peer, known: _Known) -> None:
        asking = Deferred.fromCoroutine(self._ask(peer, known))
        if not asking.called:
            self._asking[peer.id] = asking

        def over(result: object) -> None:
            if self._asking.get(peer.id) is asking:
                del self._asking[peer.id]
            if isinstance(result, Failure) and not result.check(CancelledError):
                self._log.failure("request to peer {peer} for its models failed", result, peer=peer.id)

        asking.addBoth(over)

    async def _ask(self, peer: Peer, known: _Known) -> None:
        error: str | None = None
        names = known.names
        try:
            names = await self._list_models(peer)
        except (PeerError, RequestFailed) as trouble:
            error = str(trouble)
        if self._known.get(peer.id) is not known:
            return  # the configuration changed meanwhile
        now = self._clock.seconds()
        if error is None:
            known.heard_at = now
        elif known.heard_at is not None and now - known.heard_at > KEEP_SECONDS:
            names = ()
        told, known.names = known.names, names
        self._note(known, peer.id, error)
        if told != names:
            self._log.info("peer {peer} offers {count} models", peer=peer.id, count=len(names))
            self._learned(self.filled(self._config()).peers)

    async def _list_models(self, peer: Peer) -> tuple[str, ...]:
        headers = {"Accept": "application/json"}
        if peer.api_key is not None and peer.api_key.value:
            headers |= {"Authorization": f"Bearer {peer.api_key.value}", "x-api-key": peer.api_key.value}
        response = await self._send("GET", f"{peer.endpoint}/v1/models", timeout=LIST_TIMEOUT, headers=headers)
        if response.status != 200:
            raise PeerError(f"it answered the request for its models with status {response.status}")
        return offered(response.body)


def offered(body: bytes) -> tuple[str, ...]:
    """The models in a `/v1/models` document, each once, in order; raises PeerError if it is not one.

    Models that the other server only passes on from its own peers are left out: two servers that ask each other would
    otherwise offer each other's names back and forth.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise PeerError("its list of models is not JSON") from None
    data = document.get("data") if isinstance(document, dict) else None
    if not isinstance(data, list):
        raise PeerError("its list of models has no data")
    names: dict[str, None] = {}
    for record in data:
        name = record.get("id") if isinstance(record, dict) else None
        if isinstance(name, str) and name.strip() and not _passed_on(record):
            names[name] = None
    return tuple(names)[:MODEL_LIMIT]


def _passed_on(record: Mapping[str, object]) -> bool:
    meta = record.get("meta")
    own = meta.get("llamaswap") if isinstance(meta, dict) else None
    return isinstance(own, dict) and bool(own.get("peerID"))
