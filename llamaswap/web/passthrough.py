"""`/upstream/MODEL/...` and `/comfyui/...`: one model's own server, its path and query forwarded as they were sent.

Paths are matched decoded and forwarded raw, so an encoded slash stays encoded. The resource at the end is how a request
that came through the Klein app enters the proxy.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from attrs import define, evolve, frozen
from twisted.internet.interfaces import IReactorTime

from llamaswap.config import Config, Model
from llamaswap.config.schema.model import COMFYUI_MODEL
from llamaswap.observe.worker import RunBlocking, at_once
from llamaswap.proxy.bodies import BytesBody
from llamaswap.proxy.exchange import Exchange, RequestHead
from llamaswap.proxy.task import Task
from llamaswap.routing.router import Router
from llamaswap.web.error_response import send_response
from llamaswap.web.errors import HttpError
from llamaswap.web.head_facts import Authenticate, facts_of
from llamaswap.web.inference import ALL_ROUTES, is_model_path
from llamaswap.web.jobs import JobDirectory, may_be_job_path
from llamaswap.web.proxy_handler import ProxyHandler
from llamaswap.web.proxy_request import ProxyRequest
from llamaswap.web.request_content import RequestContent, parse_json, read_content
from llamaswap.web.target import Target
from llamaswap.wire.paths import FOREIGN

if TYPE_CHECKING:
    from twisted.web.http import Request
    from twisted.web.resource import IResource

PREFIX = b"/upstream/"
COMFYUI_PREFIX = b"/comfyui/"
CAPTURE_LIMIT = 16 << 20  # bytes of a metered body kept for its capture; a larger one is streamed

# Monitors request these repeatedly: that must not load a model (goniz/llama-swap issue 14).
PROBES = frozenset((b"/health", b"/metrics", b"/models", b"/props", b"/slots"))

_SEPARATOR = re.compile(rb"/|%2[fF]")


@frozen
class Destination:
    """A model, and the rest of the raw path (empty if the path ends with the name). `requested` is the model's name in
    the path, which a pin may have replaced by `name`."""

    name: str
    rest: bytes
    requested: str


def destination(path: bytes, config: Config, profile: str | None) -> Destination | None:
    """What a raw path behind /upstream/ names, and the rest; None if no model. The longest name wins."""
    parts: list[str] = []
    ends: list[int] = []
    start = 0
    for separator in [*_SEPARATOR.finditer(path), None]:
        stop = separator.start() if separator is not None else len(path)
        parts.append(unquote(path[start:stop].decode("latin-1"), errors="replace"))
        ends.append(stop)
        start = separator.end() if separator is not None else stop
    given = parts
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
    if used <= shift or (pinned is not None and used < shift + pinned[1]):
        return None  # a part of the pin's target is no path of the client's
    end = used - shift
    requested = "/".join(part for part in given[:end] if part)
    return Destination(name, _SEPARATOR.sub(b"/", path[ends[end - 1] :], count=1), requested)


def _pinned(parts: list[str], config: Config, profile: str | None) -> tuple[str, int] | None:
    """The target of the longest pinned name that the path begins with, and how many parts that name has."""
    if profile is None or profile not in config.profiles:
        return None
    pins = config.profiles[profile].pins
    for used in range(len(parts), 0, -1):
        name = "/".join(part for part in parts[:used] if part)
        if name in pins and parts[used - 1]:  # a slash behind the name belongs to the rest
            return pins[name], used
    return None


@define(eq=False)
class Passthrough:
    """Serves the paths under /upstream/ and /comfyui/, without reading a model's name from the body."""

    router: Router
    handler: ProxyHandler
    authenticate: Authenticate
    jobs: JobDirectory
    run: RunBlocking = at_once

    def is_expecting(self, head: RequestHead) -> bool:
        """Whether `serve` should respond to this request: its client waits for 100 Continue, and the Klein app would
        read the whole body before the request could be refused."""
        if not head.target.startswith(FOREIGN) or head.method == b"OPTIONS":
            return False
        return (head.first(b"expect") or b"").lower() == b"100-continue"

    def serve(self, exchange: Exchange) -> Task:
        """Respond to one request; see `ProxyHandler.serve`."""
        return self.handler.serve(exchange, self.prepare)

    async def prepare(self, exchange: Exchange) -> ProxyRequest | None:
        """The request to one model's own server; None after a redirect from /upstream/MODEL to the folder."""
        head = exchange.head
        config = self.router.config
        facts = facts_of(exchange, config, self.authenticate)
        facts.access.require_ruled(False)
        path, mark, query = head.target.partition(b"?")
        if path.startswith(COMFYUI_PREFIX):
            rest = path[len(COMFYUI_PREFIX) - 1 :]
            target = _comfyui(config, head, rest)
            facts.access.require_model(*target.names)
            tracked = metered = False
        else:
            found = destination(path[len(PREFIX) :], config, self.router.profile) if path.startswith(PREFIX) else None
            if found is None:
                raise HttpError(404, "model not found")
            rest = found.rest
            if not rest:
                _redirect(exchange, PREFIX + quote(found.requested).encode() + b"/")
                return None
            target = Target.named(config, found.name)
            facts.access.require_model(found.requested, *target.names)
            if target.model is not None:
                target = target.of_request(head, _load_refusal(config, target.model, head, rest))
            tracked = is_model_path(head.method, rest)
            metered = head.method == b"POST" and rest in ALL_ROUTES
            if target.peer is not None:
                facts.access.require_model_path(is_model_path(head.method, rest))
        facts.access.require_job_paths(may_be_job_path(rest))
        facts.access.require_counted(metered and not target.bypass)
        request = ProxyRequest.of(
            exchange,
            facts,
            target,
            path=rest.decode("latin-1"),
            raw_target=rest + mark + query,
            tracked=tracked,
            metered=metered,
        )
        if target.peer is not None and facts.access.models is not None:
            facts.access.require_readable(_is_readable(head) or head.method != b"POST")
            await self._rename(request, always=True)
        elif target.peer is not None and target.peer_model != target.name and _is_readable(head):
            await self._rename(request, always=False)
        elif (metered or _is_json_post(head)) and self.jobs.hides_files(facts.access):
            await request.send_as_is(await self._content(request, needs_model=False), self.run)
        elif request.metered:
            await self._capture(request)
        return request

    async def _rename(self, request: ProxyRequest, *, always: bool) -> None:
        """Name a peer's model as the peer does, if the body names it as we do; `always`: whatever the body names, so
        that it is the model of the path, which the key may use."""
        content = await self._content(request, needs_model=True)
        if always or content.model == request.requested:
            content.rename(request.target.peer_model)
        await request.send_as_is(content, self.run)

    async def _content(self, request: ProxyRequest, *, needs_model: bool) -> RequestContent:
        """The request's content, which names no file of another key."""
        exchange, access = request.exchange, request.facts.access
        content = await read_content(
            exchange.head, exchange.body, wants_json=not needs_model, needs_model=needs_model, run=self.run
        )
        if exchange.head.method == b"POST" and self.jobs.hides_files(access):
            await self.jobs.require_own_files(access, content.json_text, self.run)
        request.streaming = content.streaming
        return content

    async def _capture(self, request: ProxyRequest) -> None:
        """Read a body of moderate size whole, for its capture; other bodies are streamed."""
        head, body = request.exchange.head, request.exchange.body
        kind = (head.first(b"content-type") or b"").lower()
        if b"multipart/form-data" in kind or body.length is None or not 0 < body.length <= CAPTURE_LIMIT:
            return
        text = await body.read_all(CAPTURE_LIMIT)
        request.source = BytesBody(text)
        request.captured_body = text
        if b"application/json" in kind:
            json = await parse_json(text, self.run)
            request.streaming = json is not None and json.streaming


def _comfyui(config: Config, head: RequestHead, rest: bytes) -> Target:
    model = config.models.get(COMFYUI_MODEL)
    if model is None:
        raise HttpError(404, f"local model {COMFYUI_MODEL} not found")
    target = Target(COMFYUI_MODEL, model).of_request(head, None)
    if rest == b"/":
        return target
    return evolve(target, load_refusal=f"model {COMFYUI_MODEL} is not loaded; only /comfyui/ can start it")


def _load_refusal(config: Config, model: Model, head: RequestHead, rest: bytes) -> str | None:
    """Why a request for this path of a model's server does not load the model; None: it does."""
    decoded = unquote(rest.decode("latin-1"), errors="replace")
    if any(pattern.search(decoded) for pattern in config.upstream.ignore_paths):
        return f"model {model.id} is not loaded; path matches upstream.ignorePaths"
    if head.method in (b"GET", b"HEAD") and rest in PROBES:
        return f"model {model.id} is not loaded; {decoded} does not start it, /upstream/{model.id}/ does"
    return None


def _is_readable(head: RequestHead) -> bool:
    """Whether the body is of a type in which the model's name can be found."""
    kind = (head.first(b"content-type") or b"").lower()
    return any(form in kind for form in (b"application/json", b"x-www-form-urlencoded", b"multipart/form-data"))


def _is_json_post(head: RequestHead) -> bool:
    """Whether a server may read the body as JSON: also without a type, or of one such as application/scim+json."""
    return head.method == b"POST" and b"json" in (head.first(b"content-type") or b"json").lower()


def _redirect(exchange: Exchange, path: bytes) -> None:
    """To the path with a slash at its end: the relative links of the model's pages need it."""
    head = exchange.head
    location = path + (b"?" + head.query if head.query else b"")
    status = 301 if head.method in (b"GET", b"HEAD") else 308
    send_response(exchange, status, [(b"Location", location)], b"")


# -- through the Klein app ---------------------------------------------------------------------------------


def resource(serve: Callable[[Exchange], object], clock: IReactorTime) -> IResource:
    """A leaf resource that hands its requests to `serve` as exchanges. `clock` provides IReactorTime.

    It is a ReverseProxyResource with another client: twisted.web's would buffer the request, close the connection and
    end a truncated response like a complete one.
    """
    from twisted.web.proxy import ReverseProxyResource  # here: the import installs the reactor
    from twisted.web.server import NOT_DONE_YET

    from llamaswap.proxy.twisted_web_adapter import exchange_from_request

    class ExchangeResource(ReverseProxyResource):
        """Turns a request of the Klein app into an exchange; the lease has the host and port."""

        isLeaf = True

        def __init__(self) -> None:
            super().__init__("", 0, b"", reactor=clock)

        def render(self, request: Request) -> int:
            """Serve the request; the forwarder writes the response."""
            serve(exchange_from_request(request, clock))
            return NOT_DONE_YET

    return ExchangeResource()
