"""`/upstream/MODEL/...` and `/comfyui/...`: one model's own server, its path and query forwarded as they were sent.

Paths are matched decoded and forwarded raw: an encoded slash stays one. The resources at the end are how a request
that came through the Klein map enters the relay.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from attrs import define, evolve, frozen

from llamaswap.config import Config
from llamaswap.observe.worker import RunBlocking, at_once
from llamaswap.proxy.bodies import BytesBody
from llamaswap.proxy.exchange import Exchange
from llamaswap.proxy.task import Task
from llamaswap.routing.interfaces import Admission
from llamaswap.web.dispatch import Dispatcher
from llamaswap.web.errors import HttpError
from llamaswap.web.inference import (
    ALL_ROUTES,
    Gate,
    body_of,
    guarded,
    ignored_websocket,
    is_model_path,
    parsed,
    requested_model,
)
from llamaswap.web.proxy_request import ProxyRequest
from llamaswap.wire import headers as header_rules

if TYPE_CHECKING:
    from twisted.web.http import Request
    from twisted.web.resource import IResource

PREFIX = b"/upstream/"
COMFYUI = "comfyui_auto"
COMFYUI_PREFIX = b"/comfyui"
CAPTURE_BOUND = 16 << 20  # bytes of a metered body kept for its capture; a larger one streams by

# Asked by monitors again and again: an answer is not worth a load (goniz/llama-swap issue 14).
PROBES = frozenset((b"/health", b"/metrics", b"/models", b"/props", b"/slots"))

_SEPARATOR = re.compile(rb"/|%2[fF]")


@frozen
class Destination:
    """A model as the path names it, and what is left of the raw path ("" where not even a slash is)."""

    name: str
    rest: bytes


def destination(path: bytes, config: Config, profile: str | None) -> Destination | None:
    """Where a raw path behind /upstream/ leads; None where no model is named. The longest name wins."""
    parts: list[str] = []
    ends: list[int] = []
    start = 0
    for separator in [*_SEPARATOR.finditer(path), None]:
        stop = separator.start() if separator is not None else len(path)
        parts.append(unquote(path[start:stop].decode("latin-1"), errors="replace"))
        ends.append(stop)
        start = separator.end() if separator is not None else stop
    pinned = _pinned(parts, config, profile)
    shift = 0
    if pinned is not None:
        target, used = pinned
        replacement = target.split("/") if target else []
        if not replacement:
            return None
        shift = len(replacement) - used
        parts = replacement + parts[used:]
    found = config.split_path(parts)
    if found is None:
        return None
    name, used = found
    if used - shift < 1 or (pinned is not None and used < shift + pinned[1]):
        return None  # a part of the pin's target is no path of the client's
    rest = path[ends[used - shift - 1] :]
    return Destination(name, _SEPARATOR.sub(b"/", rest, count=1))


def _pinned(parts: list[str], config: Config, profile: str | None) -> tuple[str, int] | None:
    """The target of the longest pin that the path begins with, and how many parts it takes the place of."""
    if profile is None or profile not in config.profiles:
        return None
    pins = config.profiles[profile].pins
    for used in range(len(parts), 0, -1):
        name = "/".join(part for part in parts[:used] if part)
        if name in pins:
            return pins[name], used
    return None


@define(eq=False)
class Passthrough:
    """Serves both prefixes. `gate` and `run` as for the model routes."""

    router: Admission
    dispatcher: Dispatcher
    gate: Gate
    run: RunBlocking = at_once

    def serve_upstream(self, exchange: Exchange) -> Task:
        """Answer a request under /upstream/. It never fails."""
        return Task(guarded(self.dispatcher, exchange, self._upstream(exchange)))

    def serve_comfyui(self, exchange: Exchange) -> Task:
        """Answer a request under /comfyui. It never fails."""
        return Task(guarded(self.dispatcher, exchange, self._comfyui(exchange)))

    async def _upstream(self, exchange: Exchange) -> None:
        head = exchange.head
        key_headers = self.gate(head)
        config = self.router.config
        path, mark, query = head.target.partition(b"?")
        found = destination(path[len(PREFIX) :], config, self.router.profile) if path.startswith(PREFIX) else None
        if found is None:
            raise HttpError(404, "model not found")
        if not found.rest:
            _redirect(exchange, PREFIX + quote(found.name).encode() + b"/")
            return
        real = config.real(found.name)
        model = config.models[real] if real is not None else None
        offered = config.peer(found.name) if model is None else None
        bypass = model is not None and model.compat.ignore_websockets and header_rules.is_websocket(head.headers)
        metered = head.method == b"POST" and found.rest in ALL_ROUTES and not bypass
        idle_reason = None
        if model is not None:
            decoded = unquote(found.rest.decode("latin-1"), errors="replace")
            if bypass:
                idle_reason = ignored_websocket(model.id)
            elif any(pattern.search(decoded) for pattern in config.upstream.ignore_paths):
                idle_reason = f"model {model.id} is not loaded; path matches upstream.ignorePaths"
            elif head.method in (b"GET", b"HEAD") and found.rest in PROBES:
                idle_reason = f"model {model.id} is not loaded; {decoded} does not start it, /upstream/{model.id}/ does"
        own_name = offered[1] if offered is not None and offered[1] != found.name else None

        async def prepare(job: ProxyRequest) -> None:
            await _prepare(job, exchange, found.name, own_name, self.run)

        job = ProxyRequest(
            exchange=exchange,
            path=found.rest.decode("latin-1"),
            head=evolve(head, target=found.rest + mark + query),
            body=exchange.body,
            config=config,
            requested=found.name,
            model=model,
            peer=config.peers[offered[0]] if offered is not None else None,
            tracked=is_model_path(head.method, found.rest) and not bypass,
            metered=metered,
            bypass=bypass,
            idle_reason=idle_reason,
            key_headers=key_headers,
            prepare=prepare if metered or own_name is not None else None,
        )
        await self.dispatcher.run(job)

    async def _comfyui(self, exchange: Exchange) -> None:
        head = exchange.head
        key_headers = self.gate(head)
        config = self.router.config
        path, mark, query = head.target.partition(b"?")
        rest = path[len(COMFYUI_PREFIX) :]
        if not rest:
            _redirect(exchange, COMFYUI_PREFIX + b"/")
            return
        model = config.models.get(COMFYUI)
        if model is None:
            raise HttpError(404, f"local model {COMFYUI} not found")
        bypass = model.compat.ignore_websockets and header_rules.is_websocket(head.headers)
        idle_reason = None
        if rest != b"/":
            idle_reason = f"model {COMFYUI} is not loaded; only /comfyui/ can start it"
        elif bypass:
            idle_reason = ignored_websocket(COMFYUI)
        job = ProxyRequest(
            exchange=exchange,
            path=rest.decode("latin-1"),
            head=evolve(head, target=rest + mark + query),
            body=exchange.body,
            config=config,
            requested=COMFYUI,
            model=model,
            tracked=False,
            metered=False,
            bypass=bypass,
            idle_reason=idle_reason,
            key_headers=key_headers,
        )
        await self.dispatcher.run(job)


async def _prepare(job: ProxyRequest, exchange: Exchange, name: str, own_name: str | None, run: RunBlocking) -> None:
    """Keep a metered body for its capture; call a peer's model by the peer's own name where the body qualifies it."""
    head, body = exchange.head, exchange.body
    kind = (header_rules.first(head.headers, b"content-type") or b"").lower()
    if own_name is not None and any(
        form in kind for form in (b"application/json", b"x-www-form-urlencoded", b"multipart/form-data")
    ):
        naming = await requested_model(head, body, wants_json=False, run=run)
        if naming.name == name:
            naming.rename(own_name)
        job.streaming = naming.streaming
        job.body = await body_of(naming, body)
        path = job.head.path
        job.head = evolve(job.head, target=path + (b"?" + naming.query if naming.query else b""))
    elif b"multipart/form-data" not in kind and body.length is not None and 0 < body.length <= CAPTURE_BOUND:
        text = await body.hold(CAPTURE_BOUND)
        job.body = BytesBody(text)
        if b"application/json" in kind:
            json = await parsed(text, run)
            job.streaming = json is not None and json.streaming
    if job.facts is not None:
        job.facts.streaming = job.streaming
        if isinstance(job.body, BytesBody):
            job.facts.body = job.body.data


def _redirect(exchange: Exchange, path: bytes) -> None:
    """To the folder form of a path: relative links of the model's pages need the slash."""
    head = exchange.head
    location = path + (b"?" + head.query if head.query else b"")
    status = 301 if head.method in (b"GET", b"HEAD") else 308
    headers = [(b"Location", location), (b"Content-Length", b"0")]
    exchange.sink.head(status, b"", headers, raw=True)
    exchange.sink.finish()


# -- through the Klein map ---------------------------------------------------------------------------------


def resource(serve: Callable[[Exchange], object], clock: Any) -> IResource:
    """A leaf resource that hands its requests to `serve` as exchanges. `clock` provides IReactorTime.

    It sits where twisted.web's reverse proxy resource sits and replaces that one's client, which would buffer the
    request, close the connection and end a truncated answer like a complete one.
    """
    from twisted.web.proxy import ReverseProxyResource  # here: the import installs the reactor
    from twisted.web.server import NOT_DONE_YET

    from llamaswap.proxy.twisted_web_adapter import exchange_from_request

    class Seam(ReverseProxyResource):
        """A request of the map becomes an exchange; host and port are the lease's business."""

        isLeaf = True

        def __init__(self) -> None:
            super().__init__("", 0, b"", reactor=clock)

        def getChild(self, path: bytes, request: Request) -> IResource:
            """Everything below is this resource: the raw target says what is asked for."""
            return self

        def render(self, request: Request) -> int:
            """Serve it; the answer is written by the relay."""
            serve(exchange_from_request(request, clock))
            return NOT_DONE_YET

    return Seam()
