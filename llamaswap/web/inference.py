"""The model routes: from a request's head to a job with a known model.

Gate, profile, selector, name, filters, in this order; then the dispatcher takes over. Both doors hand their
exchanges to the same `Inference`, so nothing here knows how a request came in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from attrs import define, evolve
from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from llamaswap.config import Config
from llamaswap.errors import BadRequest, BodyTooLarge, ClientGone, LlamaswapError, NoModelNamed
from llamaswap.observe.worker import RunBlocking, at_once
from llamaswap.proxy.bodies import BytesBody
from llamaswap.proxy.exchange import BodySource, Exchange, RequestHead
from llamaswap.proxy.incoming_body import SpooledBody
from llamaswap.proxy.task import Task
from llamaswap.routing.interfaces import Admission, TargetChoice
from llamaswap.web.dispatch import Dispatcher
from llamaswap.web.proxy_request import ProxyRequest
from llamaswap.web.uploads import KeptBody, SplicedBody, read
from llamaswap.wire import filters, headers
from llamaswap.wire.body import LARGE, JsonBody, MultipartScan, form_value, with_form_value
from llamaswap.wire.model_routes import MODEL_ROUTES

log = Logger()

JSON_BOUND = 256 << 20  # bytes of a JSON body held in memory; images in base64 are large, this is beyond them
FORM_BOUND = 1 << 20  # bytes of an urlencoded body: searched in one turn of the reactor

JSON_ROUTES = frozenset(route.path.encode() for route in MODEL_ROUTES if route.body == "json")
POST_ROUTES = frozenset(route.path.encode() for route in MODEL_ROUTES if route.method == "POST")
QUERY_ROUTES = frozenset(route.path.encode() for route in MODEL_ROUTES if route.body == "query")
ALL_ROUTES = POST_ROUTES | QUERY_ROUTES

OPENS_OBJECT = re.compile(rb"[ \t\r\n]{0,10000}\{")

LOADING_PATH = b"/v1/chat/completions"

# The lower-case name of the header that carried an accepted key, None where no keys are asked for; raises otherwise.
Gate = Callable[[RequestHead], "frozenset[bytes]"]


def is_model_path(method: bytes, path: bytes) -> bool:
    """Whether the pipeline serves this method on this raw path."""
    if method == b"POST":
        return path in POST_ROUTES
    return method in (b"GET", b"HEAD") and path in QUERY_ROUTES


def stripped(target: bytes) -> bytes:
    """The target as it is forwarded: without a leading /v or /audioapi."""
    for prefix in (b"/v/", b"/audioapi/"):
        if target.startswith(prefix):
            return target[len(prefix) - 1 :]
    return target


# -- what names the model ----------------------------------------------------------------------------------


@define(eq=False)
class RequestedModel:
    """The model a request names, and how to make it name another: in its query, JSON, form or multipart body.

    After `rename` the edits stand in `json`, `query` or `form`; a multipart body gets them when it is sent.
    """

    name: str
    streaming: bool
    query: bytes = b""
    json: JsonBody | None = None
    form: bytes | None = None
    scan: MultipartScan | None = None
    new_name: str | None = None

    def named(self, name: str) -> RequestedModel:
        """The same request for another model; this one, not edited yet, stays as it is."""
        other = self.copy()
        other.rename(name)
        return other

    def copy(self) -> RequestedModel:
        """The same request, to be edited apart from this one."""
        return evolve(self, json=self.json.copy() if self.json is not None else None)

    def rename(self, name: str) -> None:
        """Name another model wherever the request names one."""
        self.name = name
        self.query = with_form_value(self.query, "model", name)
        if self.json is not None:
            self.json.set_model(name)
        elif self.form is not None and len(self.form) <= FORM_BOUND:
            self.form = with_form_value(self.form, "model", name)
        elif self.scan is not None:
            self.new_name = name


async def parsed(text: bytes, run: RunBlocking) -> JsonBody | None:
    """A JSON body, cut at its members; a large one by `run`, because that takes up to seconds."""
    return JsonBody.parse(text) if len(text) <= LARGE else await run(lambda: JsonBody.parse(text))


async def requested_model(
    head: RequestHead, body: BodySource, *, wants_json: bool, run: RunBlocking = at_once
) -> RequestedModel:
    """Read as much of the request as it takes to know its model.

    With `wants_json` a body that opens like a JSON object is one, whatever its content type says: clients that
    forget the header are common.
    """
    query = head.query
    if head.method in (b"GET", b"HEAD"):
        return RequestedModel(form_value(query, "model"), form_value(query, "stream") == "true", query)
    content_type = head.first(b"content-type") or b""
    kind = content_type.lower()
    if b"multipart/form-data" in kind:
        return await _multipart(query, content_type, body)
    text = body.data if isinstance(body, BytesBody) else await _held(body)
    json = None
    if b"application/json" in kind:
        json = await parsed(text, run)
        return RequestedModel(json.model if json else "", json.streaming if json else False, query, json=json)
    if wants_json and OPENS_OBJECT.match(text):
        json = await parsed(text, run)
        if json is not None and json.model:
            return RequestedModel(json.model, json.streaming, query, json=json)
        name, streaming = form_value(query, "model"), form_value(query, "stream")
    elif len(text) <= FORM_BOUND:
        name = form_value(text, "model") or form_value(query, "model")
        streaming = form_value(text, "stream") or form_value(query, "stream")
    else:
        name, streaming = form_value(query, "model"), form_value(query, "stream")
        if not name or b"x-www-form-urlencoded" in kind:
            raise BodyTooLarge(FORM_BOUND)
    return RequestedModel(name, streaming == "true", query, form=text)


async def _held(body: BodySource) -> bytes:
    if body.length == 0:
        return b""
    return await body.hold(JSON_BOUND)


async def _multipart(query: bytes, content_type: bytes, body: BodySource) -> RequestedModel:
    scan = MultipartScan.of(content_type)
    name = form_value(query, "model")
    if not name and not scan.broken:
        await read(body, scan, "model")
        name = scan.value("model") or ""
    streaming = (scan.value("stream") or form_value(query, "stream")) == "true"
    return RequestedModel(name, streaming, query, scan=scan)


# -- the pipeline ------------------------------------------------------------------------------------------


@define(eq=False)
class Inference:
    """Serves the model routes. `gate` says which header carried the key, or raises what `render` turns into a 401.

    `avoided(peer id)` says whether a failover had better ask this peer last. `run` parses large bodies.
    """

    router: Admission
    dispatcher: Dispatcher
    gate: Gate
    avoided: Callable[[str], bool] | None = None
    run: RunBlocking = at_once

    def is_model_route(self, head: RequestHead) -> bool:
        """Whether `serve` is the one to answer this request."""
        return is_model_path(head.method, head.path)

    def serve(self, exchange: Exchange) -> Task:
        """Answer one request. It is over when its answer is complete or cut; it never fails."""
        return Task(guarded(self.dispatcher, exchange, self._serve(exchange)))

    async def _serve(self, exchange: Exchange) -> None:
        head = exchange.head
        key_headers = self.gate(head)
        config = self.router.config
        naming = await requested_model(head, exchange.body, wants_json=head.path in JSON_ROUTES, run=self.run)
        if not naming.name:
            raise NoModelNamed()
        profile = self.router.profile
        if profile is not None and profile in config.profiles:
            pin = config.profiles[profile].pins.get(naming.name)
            if pin is not None:
                naming.rename(pin)
            if not naming.name:
                raise NoModelNamed()
        metadata: dict[str, str] = {}
        choice: TargetChoice | None = None
        others: tuple[str, ...] = ()
        as_it_came = naming
        if naming.name in config.selectors:
            selector = naming.name
            choice = self.router.choose(selector)
            metadata["selector"] = selector
            target = choice.target
            if config.selectors[selector].strategy == "failover":
                target, *rest = self._in_turn(config, (choice.target, *choice.others))
                others, as_it_came = tuple(rest), naming.copy()
            naming.rename(target)
        try:
            job = self._job(exchange, config, naming, key_headers, metadata, keep=bool(others))
            for other in others:
                keep = other != others[-1]
                job.fallbacks.append(
                    partial(self._other_job, other, as_it_came, exchange, config, key_headers, metadata, keep)
                )
            if job.bypass and choice is not None:
                choice.release()
            del naming, as_it_came  # a long answer need not keep the question in three forms
            await self.dispatcher.run(job)
        finally:
            if choice is not None:
                choice.release()

    def _in_turn(self, config: Config, targets: tuple[str, ...]) -> list[str]:
        """The targets as written, but those of a peer that did not answer a moment ago last."""

        def last(target: str) -> bool:
            found = config.peer(target) if config.real(target) is None else None
            return found is not None and self.avoided is not None and self.avoided(found[0])

        return sorted(targets, key=last)

    def _other_job(
        self,
        name: str,
        naming: RequestedModel,
        exchange: Exchange,
        config: Config,
        key_headers: frozenset[bytes],
        metadata: dict[str, str],
        keep: bool,
    ) -> ProxyRequest:
        """The job of another target: made only when it comes to that, for a large body takes a while to be cut anew."""
        return self._job(exchange, config, naming.named(name), key_headers, metadata, keep)

    def _job(
        self,
        exchange: Exchange,
        config: Config,
        naming: RequestedModel,
        key_headers: frozenset[bytes],
        metadata: dict[str, str],
        keep: bool = False,
    ) -> ProxyRequest:
        """The job of the named model; with `keep` its body can be sent once more, however large."""
        head = exchange.head
        real = config.real(naming.name)
        model = config.models[real] if real is not None else None
        found = config.peer(naming.name) if model is None else None
        peer = config.peers[found[0]] if found is not None else None
        path, mark, _ = stripped(head.target).partition(b"?")
        bypass = model is not None and model.compat.ignore_websockets and headers.is_websocket(head.headers)
        requested = naming.name

        async def prepare(job: ProxyRequest) -> None:
            if model is not None:
                await _filter(naming, model.filters, requested, model.use_model_name, self.run)
                if model.use_model_name and naming.scan is not None:
                    naming.rename(model.use_model_name)
            elif peer is not None and found is not None:
                await _filter(naming, peer.filters, requested, "", self.run)
                if requested != found[1]:
                    naming.rename(found[1])
            job.body = await body_of(naming, exchange.body)
            if isinstance(job.body, BytesBody) and job.body is not exchange.body:
                # Nobody reads it as it came any more, and a long request would keep it for as long.
                if isinstance(exchange.body, SpooledBody):
                    exchange.body.let_go()
                exchange.body = job.body
            if keep and not isinstance(job.body, BytesBody):
                job.body = KeptBody(job.body)
            if job.facts is not None and naming.scan is None and isinstance(job.body, BytesBody):
                job.facts.body = job.body.data
            forwarded = path + b"?" + naming.query if mark else path
            if forwarded != head.target:
                job.head = RequestHead(head.method, forwarded, head.headers, head.version)

        return ProxyRequest(
            exchange=exchange,
            path=head.path.decode("latin-1"),
            head=head,
            body=exchange.body,
            config=config,
            requested=requested,
            model=model,
            peer=peer,
            stored_path=path.decode("latin-1"),
            streaming=naming.streaming,
            tracked=not bypass,
            metered=head.method == b"POST" and not bypass,
            loading=model is not None
            and model.send_loading_state
            and naming.streaming
            and path.startswith(LOADING_PATH),
            bypass=bypass,
            idle_reason=ignored_websocket(model.id) if bypass and model is not None else None,
            key_headers=key_headers,
            metadata=metadata,
            prepare=prepare,
        )


def ignored_websocket(model: str) -> str:
    """Why a websocket that counts for nothing is refused while its model is not ready."""
    return f"model {model} is not loaded; ignored websocket requests cannot start it"


async def _filter(
    naming: RequestedModel, rules: filters.FilterRules, requested: str, use_model_name: str, run: RunBlocking
) -> None:
    json = naming.json
    if json is None:
        return
    work = partial(filters.apply, json, rules, requested=requested, use_model_name=use_model_name)
    if json.large:
        await run(work)
    else:
        work()


async def body_of(naming: RequestedModel, source: BodySource) -> BodySource:
    """The body to send. What was not changed is sent from where it already lies."""
    if naming.json is not None:
        return BytesBody(naming.json.render())
    if naming.form is not None:
        return BytesBody(naming.form)
    if naming.scan is None or naming.new_name is None:
        return source
    scan = naming.scan
    if not scan.ended:
        # Every model field is replaced: one may stand behind the files.
        scan = naming.scan = scan.restarted()
        await read(source, scan, None)
    if scan.broken:
        raise BadRequest("could not parse multipart form")
    places = [place for place in scan.places if place.name == "model"]
    return SplicedBody(source, places, naming.new_name.encode("utf-8", "replace"))


async def guarded(dispatcher: Dispatcher, exchange: Exchange, serving: Coroutine[Any, Any, None]) -> None:
    """Serve an exchange; what the coroutine raises becomes the exchange's answer."""
    try:
        await serving
    except (ClientGone, CancelledError):
        # The client is gone, or the door gave the request up: nobody is there to be told.
        if not exchange.gone:
            exchange.sink.abort()
    except Exception as error:
        if not isinstance(error, LlamaswapError):
            log.failure("request failed: {target}", target=exchange.head.target)
        dispatcher.answer(exchange, error, exchange.head.path.decode("latin-1"))
