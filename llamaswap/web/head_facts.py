"""What serving a request needs to know of its head, found out once for all requests with the same head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from attrs import define, field

from llamaswap.config import Config
from llamaswap.config.endpoints import Endpoint
from llamaswap.proxy.exchange import Exchange, RequestHead
from llamaswap.web.key_access import OPEN, KeyAccess
from llamaswap.web.target import Target
from llamaswap.wire import headers as header_rules
from llamaswap.wire.content_coding import CODINGS
from llamaswap.wire.headers import Header


class Authenticated(NamedTuple):
    """An admitted request: the lower-case names of all headers that carry one of our keys, none of which may reach a
    server, and what its key allows."""

    key_headers: frozenset[bytes]
    access: KeyAccess


class Authenticate(Protocol):
    """Admits requests to models; raises HttpError(401) or (403)."""

    def __call__(self, head: RequestHead) -> Authenticated:
        """What the request's key allows."""

    def refuse_expired(self, access: KeyAccess) -> None:
        """Raise HttpError(401) if a key that was admitted before is not valid any more."""


LM_STUDIO = b"/api/v0"  # its own names of the OpenAI API


def forwarded_target(target: bytes) -> bytes:
    """The raw request target as it is forwarded: without /v or /audioapi, and with /v1 for LM Studio's /api/v0."""
    for prefix in (b"/v/", b"/audioapi/"):
        if target.startswith(prefix):
            return target[len(prefix) - 1 :]
    return b"/v1" + target[len(LM_STUDIO) :] if target.startswith(LM_STUDIO + b"/") else target


@define
class SentHead:
    """A head that was sent to a server, and what it depends on beside the client's head."""

    endpoint: Endpoint
    key: tuple[object, ...]
    head: RequestHead


@define(eq=False)
class HeadFacts:
    """Facts about one head that `client_address` sent, under one configuration.

    `access` is what its key allows, `key_headers` are the names of the headers with keys of ours, `redacted` all
    headers without these keys, `remote_ip` the client that lists name. `target` is the raw request target as it is
    forwarded. `json`: the body is of JSON, without a content coding. `targets` are models by the names that requests
    with this head ask for, as long as no profile is active; `sent` are the heads as models' servers got them, by the
    model's ID.
    """

    config: Config
    client_address: str
    access: KeyAccess
    key_headers: frozenset[bytes]
    redacted: list[Header]
    length_place: int
    remote_ip: str
    method: str
    path: str
    target: bytes
    stored_path: str
    json: bool
    targets: dict[str, Target] = field(factory=dict)
    sent: dict[str, SentHead] = field(factory=dict)

    def headers(self, head: RequestHead) -> Sequence[Header]:
        """The client's headers for lists and captures."""
        headers = self.redacted.copy()
        if self.length_place >= 0:
            headers[self.length_place] = head.headers[self.length_place]
        return headers


def facts_of(exchange: Exchange, config: Config, authenticate: Authenticate) -> HeadFacts:
    """The facts about the head of a request. Raises HttpError(401)."""
    head, address = exchange.head, exchange.client_address
    facts = head.known.facts
    if isinstance(facts, HeadFacts) and facts.config is config and facts.client_address == address:
        if facts.access is not OPEN:
            authenticate.refuse_expired(facts.access)
            exchange.key_name = facts.access.name
        return facts
    key_headers, access = authenticate(head)
    exchange.key_name = access.name
    target = forwarded_target(head.target)
    coding = (head.first(b"content-encoding") or b"").decode("latin-1").strip().lower()
    made = head.known.facts = HeadFacts(
        config,
        address,
        access,
        key_headers,
        list(header_rules.without_keys(head.headers, key_headers)),
        next((place for place, item in enumerate(head.headers) if item[0].lower() == b"content-length"), -1),
        header_rules.real_client_address(head.first, address),
        head.method.decode("latin-1"),
        head.path.decode("latin-1"),
        target,
        target.partition(b"?")[0].decode("latin-1"),
        coding not in CODINGS and b"application/json" in (head.first(b"content-type") or b"").lower(),
    )
    return made
