"""The request as a server or peer receives it: its address, its target and its headers."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping

from attrs import define, field

from llamaswap.config import Config, Model, Peer
from llamaswap.config.endpoints import TOKEN_HEADER, Endpoint
from llamaswap.errors import PeerLoop
from llamaswap.proxy.exchange import RequestHead
from llamaswap.proxy.upstream import UpstreamTarget
from llamaswap.web.head_facts import SentHead
from llamaswap.web.proxy_request import ProxyRequest
from llamaswap.web.secret_masking import known_secrets
from llamaswap.wire import headers as header_rules

_CODING = frozenset((b"content-encoding",))
_ACCEPTED_CODING = frozenset((b"accept-encoding",))
_WORD_ENDS = re.compile(r"[\s=,\"']+")  # what may stand around a key in a command


@define(eq=False)
class UpstreamRequests:
    """Makes the heads of requests to servers and peers. `inherited(policy, secrets)` gives the variables that a
    server inherits: it knows a key in them."""

    inherited: Callable[[str, Collection[str]], Mapping[str, str]] = lambda policy, secrets: {}
    _upstreams: dict[str, UpstreamTarget] = field(factory=dict, init=False)
    _words: dict[str, frozenset[bytes]] = field(factory=dict, init=False)
    _words_of_config: Config | None = field(default=None, init=False)

    def to_model(self, request: ProxyRequest, model: Model, endpoint: Endpoint) -> tuple[UpstreamTarget, RequestHead]:
        """A request to a model's own server."""
        upstream = self._upstreams.get(model.id)
        if upstream is None or upstream.endpoint is not endpoint or upstream.timeouts is not model.timeouts:
            upstream = self._upstreams[model.id] = UpstreamTarget(endpoint, model.timeouts, model.id)
        exchange, facts = request.exchange, request.facts
        plain = exchange.sink.started or exchange.translated  # the head that the client gets names no content coding
        key = (request.raw_target, request.metered, request.decoded, plain)
        sent = facts.sent.get(model.id)
        if sent is not None and sent.endpoint is endpoint and sent.key == key:
            return upstream, sent.head
        withheld = facts.key_headers
        if withheld:
            forward = model.forward_key or request.config.forward_key
            withheld = header_rules.withheld(
                exchange.head.headers, withheld, forward, self._words_of(model, request.config)
            )
        if request.decoded:
            withheld = withheld | _CODING
        headers = header_rules.to_local(
            exchange.head.headers,
            socket_address=exchange.client_address,
            key_headers=withheld,
            metered=request.metered,
            plain=plain,
        )
        if endpoint.token:
            name = TOKEN_HEADER.encode()
            headers = [item for item in headers if item[0].lower() != name.lower()]
            headers.append((name, endpoint.token.encode()))
        head = _head(request, endpoint, headers)
        facts.sent[model.id] = SentHead(endpoint, key, head)
        return upstream, head

    def to_peer(self, request: ProxyRequest, peer: Peer, endpoint: Endpoint) -> tuple[UpstreamTarget, RequestHead]:
        """A request to a peer; raises PeerLoop if it came by too many of them."""
        received = request.exchange.head.headers
        hops = header_rules.hops(received)
        if hops >= header_rules.HOP_LIMIT:
            raise PeerLoop(peer.id, hops)
        own_key = peer.api_key.value.encode() if peer.api_key is not None else b""
        withheld = header_rules.withheld(
            received,
            request.facts.key_headers,
            peer.forward_key or request.config.forward_key,
            frozenset((own_key,)) if own_key else None,
        )
        if request.decoded:
            withheld = withheld | _CODING
        if request.exchange.translated:
            withheld = withheld | _ACCEPTED_CODING
        headers = header_rules.to_peer(
            received,
            authority=endpoint.authority.encode("latin-1"),
            api_key=own_key or None,
            key_headers=withheld,
            metered=request.metered,
        )
        upstream = UpstreamTarget(endpoint, peer.timeouts, "peer proxy error", peer=True)
        return upstream, _head(request, endpoint, headers)

    def _words_of(self, model: Model, config: Config) -> frozenset[bytes]:
        """The words of a model's command and environment: its server knows a key that is among them."""
        if config is not self._words_of_config:
            self._words_of_config, self._words = config, {}
        known = self._words.get(model.id)
        if known is None:
            inherited = self.inherited(model.env_policy, known_secrets(config))
            texts = (model.cmd, *model.env, *inherited.values())
            words = {word.encode() for text in texts for word in _WORD_ENDS.split(text) if word}
            known = self._words[model.id] = frozenset(words)
        return known


def _head(request: ProxyRequest, endpoint: Endpoint, headers: header_rules.Headers) -> RequestHead:
    head = request.exchange.head
    return RequestHead(head.method, joined(endpoint, request.raw_target), headers, head.version)


def joined(endpoint: Endpoint, target: bytes) -> bytes:
    """The request's raw target behind the endpoint's own path and query."""
    if not endpoint.path and not endpoint.query and target.startswith(b"/"):
        return target
    path, mark, query = target.partition(b"?")
    if not path.startswith(b"/"):
        path = b"/" + path
    own = endpoint.query.encode("latin-1", "replace")
    merged = own + b"&" + query if own and query else own or query
    return endpoint.path.encode("latin-1", "replace") + path + (b"?" + merged if merged or mark else b"")
