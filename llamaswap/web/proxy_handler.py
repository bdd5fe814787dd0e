"""Serves the requests for models: prepare, wait for the model's server, forward, and record how it ended.

The model routes and the passthrough come here. How a model's name was found is not known here, nor which status an
error has: `ErrorSender` turns errors into responses.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from llamaswap.config import Model, Peer
from llamaswap.errors import (
    Cancelled,
    ClientGone,
    LlamaswapError,
    NotReady,
    ReaderStalled,
    RequestError,
    ResponseLimitReached,
    ServerVanished,
    ShuttingDown,
    StartFailed,
    UnknownModel,
    UpstreamDeclined,
    UpstreamTruncated,
    UpstreamUnreachable,
)
from llamaswap.observe.worker import RunBlocking, at_once
from llamaswap.proxy.exchange import Exchange, RequestHead
from llamaswap.proxy.forward import RequestForwarder
from llamaswap.proxy.loading import LoadingStream
from llamaswap.proxy.response_forwarder import ForwardOutcome
from llamaswap.proxy.task import Future, Task, forget_frames
from llamaswap.proxy.upstream import UpstreamTarget
from llamaswap.routing.leases import Lease
from llamaswap.routing.router import Router
from llamaswap.web.auth import refuse_foreign_websocket
from llamaswap.web.error_response import ErrorSender, send_response
from llamaswap.web.failover import DECLINED_STATUSES, may_fail_over, require_retry
from llamaswap.web.proxy_request import ProxyRequest
from llamaswap.web.response_limit import ResponseLimit
from llamaswap.web.supersede import SupersedeRegistry, supersede_key
from llamaswap.web.upstream_request import UpstreamRequests
from llamaswap.web.waiting import Wait
from llamaswap.web.websockets import WebsocketLease, no_websocket
from llamaswap.wire.request_info import RequestObserverFactory, RequestOutcome

log = Logger()

ANY_STATUS = range(200, 600)

# Authenticates the request and finds out what it asks for; None if it has got its response already (a redirect).
Prepare = Callable[[Exchange], Awaitable["ProxyRequest | None"]]


@define(eq=False)
class ProxyHandler:
    """Serves requests for models.

    `wall` gives seconds since the epoch, `loading_stream` the text that a model's clients see while it loads.
    `position_changed(request id, position)` is called for each position in the queue, `peer_answered(peer id, error)`
    after each request to a peer (None: it answered). `run` edits large bodies in a thread. `debugging()`: each request
    is logged.
    """

    router: Router
    forwarder: RequestForwarder
    errors: ErrorSender
    observers: Sequence[RequestObserverFactory]
    clock: IReactorTime
    wall: Callable[[], float]
    loading_stream: Callable[[str, Callable[[bytes], None]], LoadingStream]
    upstream_requests: UpstreamRequests = field(factory=UpstreamRequests)
    position_changed: Callable[[str, int], None] = lambda request, position: None
    peer_answered: Callable[[str, str | None], None] = lambda peer, error: None
    run: RunBlocking = at_once
    debugging: Callable[[], bool] = lambda: False
    active: int = field(default=0, init=False)
    _superseded: SupersedeRegistry = field(factory=SupersedeRegistry, init=False)
    _closing: RequestError | None = field(default=None, init=False)
    _number: int = field(default=0, init=False)
    _until_idle: list[Deferred[None]] = field(factory=list, init=False)

    def close(self, reason: RequestError | None = None) -> None:
        """Refuse requests to peers and name `reason` (by default the shutdown) in cancelled responses, until `reopen`.
        The router refuses requests to local models."""
        self._closing = reason or ShuttingDown()

    def reopen(self) -> None:
        """Serve requests to peers again."""
        self._closing = None

    def when_idle(self) -> Deferred[None]:
        """Fires when no request is in progress."""
        if not self.active:
            return succeed(None)
        done: Deferred[None] = Deferred()
        self._until_idle.append(done)
        return done

    def serve(self, exchange: Exchange, prepare: Prepare) -> Task:
        """Serve one request. The task ends when the response is complete or cut; it never fails."""
        return Task(self._serve(exchange, prepare))

    async def _serve(self, exchange: Exchange, prepare: Prepare) -> None:
        request = await self._prepared(exchange, prepare)
        if request is None:
            return
        self._number += 1
        timestamp = self.wall() - (self.clock.seconds() - exchange.arrived)
        request.open(self._number, timestamp, self.observers)
        self.active += 1
        outcome: RequestOutcome = "complete"
        failure: Exception | None = None
        try:
            if request.failure is not None:
                raise request.failure
            while True:
                try:
                    await self._ask_target(request)
                    break
                except RequestError as error:
                    if not may_fail_over(request, error):
                        raise
                    failed, cause = request.requested, str(error)
                await request.retarget(self.run)
                log.info("{failed}: {error}; trying {next} next", failed=failed, error=cause, next=request.requested)
            if request.ollama is not None:
                await request.ollama.complete(self.run)
        except Exception as error:
            outcome, failure = self._failed(request, error)
            forget_frames(error)
        finally:
            self.active -= 1
            request.close(outcome, failure)
            if self._until_idle and not self.active:
                waiting, self._until_idle = self._until_idle, []
                for done in waiting:
                    done.callback(None)

    async def _prepared(self, exchange: Exchange, prepare: Prepare) -> ProxyRequest | None:
        """The request that will be sent, None if it got its response already."""
        try:
            refuse_foreign_websocket(exchange.head, self.router.config.security.cors.allow_origins)
            return await prepare(exchange)
        except (ClientGone, CancelledError) as error:
            if not exchange.gone:
                exchange.sink.abort()
            forget_frames(error)
        except Exception as error:
            if not isinstance(error, LlamaswapError):
                log.failure("request failed: {target}", target=exchange.head.target)
            self.errors.send(exchange, error, exchange.head.path.decode("latin-1"))
            forget_frames(error)
        return None

    def _ask_target(self, request: ProxyRequest) -> Coroutine[Any, Any, None]:
        """Send the request to its present target. While a stream lasts, each coroutine that waits holds memory, so this
        is none."""
        target = request.target
        if request.cancelled:
            raise Cancelled()
        model = target.model
        if model is not None:
            if model.id in self.router.config.names.replicas and not request.known_job:
                return self._to_replica(request, model)
            return self._to_server(request, model)
        if target.peer is not None:
            return self._to_peer(request, target.peer)
        raise UnknownModel(request.requested)

    # -- a local model -------------------------------------------------------------------------------------

    async def _to_replica(self, request: ProxyRequest, model: Model) -> None:
        config = self.router.config
        loaded = request.target.load_refusal is not None
        while True:
            choice = self.router.choose_replica(model.id, loaded=loaded)
            try:
                return await self._to_server(request, config.models[choice.target])
            except StartFailed:
                ready = any(self.router.state(name) == "ready" for name in config.copies(model.id))
                if loaded or not ready or request.exchange.sink.started or request.exchange.gone or request.cancelled:
                    raise
                loaded = True
            finally:
                choice.release()

    async def _to_server(self, request: ProxyRequest, model: Model) -> None:
        request.server = model.id
        refusal = request.target.load_refusal
        if refusal is not None and self.router.state(model.id) != "ready":
            raise NotReady(model.id, refusal)
        if request.target.bypass:
            # It is not counted and makes no other request wait: it ends when the model is stopped.
            endpoint = self.router.status(model.id).endpoint
            if endpoint is None:
                raise ServerVanished(model.id)
            await self._send(request, *self.upstream_requests.to_model(request, model, endpoint))
            return
        may_retry = refusal is None  # otherwise a second attempt could load the model
        lease: Lease | None = request.job.borrow() if request.job is not None else None
        lease = lease or self.router.lease(model.id, request.standing)
        while True:
            if lease is None:
                try:
                    lease = await self._acquire(request, model)
                except ServerVanished:
                    if not may_retry or request.exchange.gone or request.cancelled:
                        raise
                    may_retry = False  # the server exited between its readiness and the grant
                    continue
            limit = ResponseLimit.install(request, self.clock) if request.bounded else None
            websocket = None
            try:
                if request.websocket:
                    websocket = WebsocketLease(self.router, self.clock, model.id, request.standing, lease)
                await self._send_to_model(request, model, lease, limit, websocket)
                return
            except LlamaswapError as error:
                if limit is not None and isinstance(error, ResponseLimitReached) and limit.end():
                    return
                await require_retry(error, request, lease, self.clock, may_retry, self._closing is not None)
                log.info("{model}: {error}; retrying once on a new server", model=model.id, error=error)
            finally:
                if request.job is None or not request.job.takes(lease):
                    lease.release()
                if limit is not None:
                    limit.remove()
                if websocket is not None:
                    websocket.end()
            lease, may_retry = None, False

    async def _acquire(self, request: ProxyRequest, model: Model) -> Lease:
        """Wait for the model's server; ClientGone or Cancelled as soon as the client or an operator ends the wait."""
        exchange = request.exchange
        key = supersede_key(model, exchange.head, exchange.client_address, request.config.ui.activity.session_id)
        listed = request.tracked or request.metered
        pending = self._superseded.request(
            self.router,
            model.id,
            key,
            on_position=partial(self._moved_in_queue, request),
            origin=f"request:{request.id}" if listed else "",
            standing=request.standing,
        )
        if pending.refusal is not None:
            raise pending.refusal
        request.stop = lambda _: pending.cancel()
        exchange.on_gone(pending.cancel)
        request.server = pending.model  # that of the superseded request, if there is one
        wait = Wait(self.router, self.clock, request, pending)
        try:
            if not pending.ready:
                # Without other targets only: behind a loading stream none of them could be tried.
                if request.target.shows_loading and not request.other_targets and not exchange.sink.started:
                    request.show_loading(self.loading_stream(model.id, request.write_loading))
                wait.start(request.config.wait_notices)
            return await pending.granted
        except BaseException as error:
            pending.cancel()  # otherwise a lease could be granted later that is never released
            if isinstance(error, CancelledError):
                raise wait.limit_reached or (ClientGone() if exchange.gone else Cancelled()) from None
            raise
        finally:
            request.stop = None
            wait.stop()
            exchange.forget(pending.cancel)
            self._superseded.ended(key, pending)
            request.end_loading()

    def _moved_in_queue(self, request: ProxyRequest, position: int) -> None:
        request.moved_in_queue(position)
        if request.tracked or request.metered:
            self.position_changed(request.id, position)

    def _send_to_model(
        self,
        request: ProxyRequest,
        model: Model,
        lease: Lease,
        limit: ResponseLimit | None,
        websocket: WebsocketLease | None,
    ) -> Future[ForwardOutcome]:
        request.granted(lease.ticket.priority)
        if request.ttl is not None:
            self.router.keep_for(model.id, request.ttl)
        upstream, head = self.upstream_requests.to_model(request, model, lease.endpoint)
        sending = self._send(request, upstream, head, lease, websocket)
        if limit is not None:
            limit.cancel = sending.cancel
        return sending

    # -- a peer --------------------------------------------------------------------------------------------

    async def _to_peer(self, request: ProxyRequest, peer: Peer) -> None:
        if self._closing is not None:
            raise ShuttingDown("peer proxy") if isinstance(self._closing, ShuttingDown) else self._closing
        if peer.endpoint is None:
            raise UnknownModel(request.requested)
        upstream, head = self.upstream_requests.to_peer(request, peer, peer.endpoint)
        try:
            await self._send(request, upstream, head)
        except UpstreamUnreachable as error:
            if not error.sent:  # otherwise the peer is there, and perhaps its model takes long to load
                self.peer_answered(peer.id, error.cause)
            raise
        except (UpstreamDeclined, UpstreamTruncated):
            self.peer_answered(peer.id, None)
            raise
        self.peer_answered(peer.id, None)

    # -- both ----------------------------------------------------------------------------------------------

    def _send(
        self,
        request: ProxyRequest,
        upstream: UpstreamTarget,
        head: RequestHead,
        lease: Lease | None = None,
        websocket: WebsocketLease | None = None,
    ) -> Future[ForwardOutcome]:
        if request.ollama is not None and request.ollama.request.empty:
            return request.ollama.responded(request)
        request.forwarding = True
        if self.debugging():
            log.debug(
                "request {id}: {method} {path} for {model} is forwarded to {endpoint}",
                id=request.id,
                method=request.method,
                path=request.path,
                model=request.model,
                endpoint=upstream.endpoint,
            )
        forwarding = self.forwarder.forward(
            request.exchange,
            upstream,
            head=head,
            body=request.source,
            observer=None if request.target.bypass else request,
            decline=ANY_STATUS if request.prefers_post else DECLINED_STATUSES if request.other_targets else (),
            reader=lease.reader_stalled if lease is not None else None,
            passing=websocket.passed if websocket is not None else None,
        )
        request.stop = forwarding.cancel  # it has no effect once the forwarding has ended
        if lease is not None:
            lease.interrupt = forwarding.cancel
        return forwarding

    # -- failures ------------------------------------------------------------------------------------------

    def _failed(self, request: ProxyRequest, error: Exception) -> tuple[RequestOutcome, Exception]:
        """Send the error to the client, if it is connected; returns what is recorded."""
        exchange, path = request.exchange, request.path
        if isinstance(error, CancelledError):
            error = Cancelled() if request.cancelled else ClientGone()
        if request.prefers_post and isinstance(error, (NotReady, UpstreamDeclined)):
            error = no_websocket(str(error))
        if isinstance(error, ClientGone):
            if not exchange.gone:
                exchange.sink.abort()
            return "gone", error
        if isinstance(error, Cancelled):
            reason = self._closing or error
            if exchange.sink.started:
                self.errors.cut(exchange, reason, path, request)
            elif request.forwarding:
                self.errors.send(exchange, reason, path, request)
            else:
                send_response(exchange, 200, [], b"", request)
            return "cancelled", error
        if isinstance(error, UpstreamTruncated):
            log.info("{model}: {reason}", model=request.model, reason=error)
            self.errors.cut(exchange, error, path, request)
            return "truncated", error
        if isinstance(error, ReaderStalled):
            log.warn("{model}: the response is cut, because {reason}", model=request.model, reason=error)
            exchange.sink.abort()  # a last event would not reach a client that does not read
            return "truncated", error
        if not isinstance(error, LlamaswapError):
            log.failure("request to {model} failed", model=request.model)
        self.errors.send(exchange, error, path, request)
        return "refused", error
