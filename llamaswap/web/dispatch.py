"""From a resolved name to the end of the answer: wait for the model or ask the peer, carry, and tell how it ended.

Both the model routes and the passthrough come here. It must not know how a model's name was found, nor which
status an error has: `render` turns errors into answers.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection, Container, Sequence
from http.client import responses
from typing import Any, Protocol

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from llamaswap.config import Model, Peer
from llamaswap.config.endpoints import Endpoint
from llamaswap.errors import (
    BeingUpgraded,
    Cancelled,
    ClientGone,
    LlamaswapError,
    ModelUnloaded,
    NotReady,
    PeerLoop,
    ReaderStalled,
    RequestError,
    ServerVanished,
    ShuttingDown,
    StartFailed,
    UnknownModel,
    UpstreamDeclined,
    UpstreamTruncated,
    UpstreamUnreachable,
)
from llamaswap.proxy.exchange import BodySource, Exchange, Headers, RequestHead
from llamaswap.proxy.loading import REMARKS, LoadingStream
from llamaswap.proxy.upstream import UpstreamTarget
from llamaswap.routing.interfaces import Admission
from llamaswap.routing.leases import Lease, PendingLease
from llamaswap.web.errors import status_of
from llamaswap.web.proxy_request import ObserverFanout, ProxyRequest, ReportedPosition
from llamaswap.web.supersede import SupersedeRegistry, supersede_key
from llamaswap.wire import headers as header_rules
from llamaswap.wire.request_info import RequestInfo, RequestObserver, RequestObserverFactory, RequestOutcome
from llamaswap.wire.sse import DONE, error_event, event

log = Logger()

# A server's closed socket is heard of before its exit: so long a broken connection may wait for its explanation.
EXIT_NEWS = 0.1

# What sends a request on to its next target, as a server's answer and as a failure of our own: the target is too busy
# or not there. A start that fails and a name that a silent peer has yet to tell us mean the same.
DECLINED = frozenset((429, 502, 503))
DECLINED_FAILURES = (StartFailed, UnknownModel)
# What an operator has asked for ends a request: to turn to its next target could load another model at once.
FINAL = (BeingUpgraded, ModelUnloaded, ShuttingDown)

WORD_ENDS = re.compile(r"[\s=,\"']+")  # what may stand around a key in a command

Render = Callable[[BaseException, str, str], "tuple[int, Headers, bytes]"]


def _nothing() -> None:
    """Nothing to do."""


# -- what is asked of the rooms below ----------------------------------------------------------------------


class ForwardingResponse(Awaitable[Any], Protocol):
    """What the relay gives: awaited once."""

    def cancel(self) -> None: ...


class Forwarder(Protocol):
    """The relay."""

    def carry(
        self,
        exchange: Exchange,
        upstream: UpstreamTarget,
        *,
        head: RequestHead,
        body: BodySource,
        observer: Any = None,
        answered: bool = False,
        decline: Container[int] = ...,
        reader: Callable[[float | None], None] | None = ...,
    ) -> ForwardingResponse: ...


# -- the dispatcher ----------------------------------------------------------------------------------------


@define(eq=False)
class Dispatcher:
    """Serves jobs.

    `clock` provides IReactorTime, `wall` seconds since the epoch, `uniform(a, b)` and `shuffled(list)` the loading
    stream's chances, `render` the bodies of errors. `placed(request id, position)` hears of places in the queue,
    `peer_heard(peer id, error)` whether a peer answers. `environment` are the values of the variables that servers
    inherit.
    """

    router: Admission
    relay: Forwarder
    render: Render
    scopes: Sequence[RequestObserverFactory]
    clock: Any
    wall: Callable[[], float]
    uniform: Callable[[float, float], float]
    shuffled: Callable[[Sequence[str]], Sequence[str]]
    placed: Callable[[str, int], None] | None = None
    peer_heard: Callable[[str, str | None], None] | None = None
    environment: Collection[str] = ()
    active: int = 0
    succession: SupersedeRegistry = field(factory=SupersedeRegistry)
    _closing: RequestError | None = None
    _until_idle: list[Deferred[None]] = field(factory=list)
    _number: int = 0
    _upstreams: dict[str, UpstreamTarget] = field(factory=dict)
    _words: dict[str, tuple[Model, frozenset[bytes]]] = field(factory=dict)

    def close(self, reason: RequestError | None = None) -> None:
        """Refuse requests to peers and name `reason` (by default the shutdown) in cancelled responses, until
        `reopen`. The router refuses requests to local models."""
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

    async def run(self, job: ProxyRequest) -> None:
        """Serve one request to its end. Never raises but for a cancelled coroutine."""
        scopes = self._open(job) if job.tracked or job.metered else []
        watch = ObserverFanout(scopes, job.facts)
        if job.facts is not None:
            job.facts.flush = watch.flush
        ending: RequestOutcome = "complete"
        error: Exception | None = None
        self.active += 1
        try:
            while True:
                try:
                    prepare, job.prepare = job.prepare, None
                    if prepare is not None:
                        await prepare(job)
                        del prepare  # it knows the request as it came
                    if job.cancelled:
                        raise Cancelled()
                    if job.model is not None:
                        await self._local(job, job.model, watch)
                    elif job.peer is not None:
                        await self._remote(job, job.peer, watch)
                    else:
                        raise _unknown(job)
                    break
                except RequestError as reason:
                    if not self._turned(job, watch, reason):
                        raise
        except CancelledError:
            if not job.cancelled:
                ending, error = "gone", ClientGone()
                raise
            ending, error = "cancelled", Cancelled()
            self._cancelled(job, watch)
        except Cancelled as reason:
            ending, error = "cancelled", reason
            self._cancelled(job, watch)
        except ClientGone as reason:
            ending, error = "gone", reason
        except UpstreamTruncated as reason:
            ending, error = "truncated", reason
            log.info("{model}: {reason}", model=job.name, reason=reason)
            self._broken(job, watch, str(reason))
        except ReaderStalled as reason:
            ending, error = "truncated", reason
            log.warn("{model}: the response is cut, because {reason}", model=job.name, reason=reason)
            job.exchange.sink.abort()  # words behind what the client does not read would not arrive
        except Exception as reason:
            ending, error = "refused", reason
            if not isinstance(reason, LlamaswapError):
                log.failure("request to {model} failed", model=job.name)
            self.answer(job.exchange, reason, job.path, watch)
        finally:
            self.active -= 1
            watch.flush()
            for scope in scopes:
                scope.closed(ending, error)
            if job.facts is not None:
                # Untied from the job: what is recorded later keeps no request alive.
                job.facts.cancel = job.facts.flush = _nothing
            if self._until_idle and not self.active:
                waiting, self._until_idle = self._until_idle, []
                for done in waiting:
                    done.callback(None)

    def answer(self, exchange: Exchange, error: BaseException, path: str, watch: ObserverFanout | None = None) -> None:
        """Tell the client of an error in the form it accepts; behind a loading stream as its last events."""
        if exchange.gone:
            return
        accept = b", ".join(value for name, value in exchange.head.headers if name.lower() == b"accept")
        sink = exchange.sink
        if sink.started:
            if watch is None or not watch.events:
                sink.abort()
                return
            status, _, body = self.render(error, "application/json", path)
            words = event(body) + DONE
            watch.data(words)
            sink.write(words)
            sink.finish()
            return
        status, headers, body = self.render(error, accept.decode("latin-1"), path)
        self._send(exchange, status, headers, body, watch)

    def _send(
        self, exchange: Exchange, status: int, headers: Headers, body: bytes, watch: ObserverFanout | None
    ) -> None:
        headers = [*headers, (b"Content-Length", b"%d" % len(body))]
        if watch is not None:
            watch.head(status, headers)
            if body:
                watch.data(body)
        exchange.sink.head(status, responses.get(status, "").encode(), headers, raw=True, data=body)
        exchange.sink.finish()

    def _open(self, job: ProxyRequest) -> list[RequestObserver]:
        self._number += 1
        head = job.exchange.head
        job.facts = facts = RequestInfo(
            id=str(self._number),
            method=head.method.decode("latin-1"),
            path=job.path,
            stored_path=job.stored_path or job.path,
            model=job.name,
            requested=job.requested,
            headers=header_rules.without_keys(head.headers, job.key_headers),
            remote_ip=header_rules.client_address(head.headers, job.exchange.peer),
            started=job.exchange.arrived,
            timestamp=self.wall() - (self.clock.seconds() - job.exchange.arrived),
            streaming=job.streaming,
            tracked=job.tracked,
            metered=job.metered,
            cancel=job.cancel,
            metadata=dict(job.metadata),
        )
        return [scope for factory in self.scopes if (scope := factory.open(facts)) is not None]

    def _turned(self, job: ProxyRequest, watch: ObserverFanout, error: RequestError) -> bool:
        """Turn to the next target, where there is one and this failure is a reason to."""
        exchange = job.exchange
        if not job.fallbacks or exchange.sink.started or exchange.gone or job.cancelled:
            return False
        if isinstance(error, FINAL):
            return False
        if status_of(error) not in DECLINED and not isinstance(error, DECLINED_FAILURES):
            return False
        failed = job.requested
        job.turn_to(job.fallbacks.pop(0)())
        log.info("{failed}: {error}; trying {next} next", failed=failed, error=error, next=job.requested)
        if job.facts is not None:
            job.facts.metadata.pop("fifo_priority", None)
            tried = job.facts.metadata.get("failover") or failed
            self._note(job, watch, "failover", f"{tried},{job.requested}")
        return True

    # -- a local model

    async def _local(self, job: ProxyRequest, model: Model, watch: ObserverFanout) -> None:
        if job.idle_reason is not None and self.router.state(model.id) != "ready":
            raise NotReady(model.id, job.idle_reason)
        if job.bypass:
            # It counts nowhere and keeps nobody waiting: the model's stop cuts it.
            endpoint = self.router.status(model.id).endpoint
            if endpoint is None:
                raise ServerVanished(model.id)
            await self._carry(job, self._to_model(job, model, endpoint), watch, answered=False)
            return
        ready: Lease | None = self.router.lease(model.id)
        if ready is not None and await self._served(job, model, watch, ready, answered=False, retried=False):
            return
        loading: LoadingStream | None = None
        retried = ready is not None
        while True:
            place = ReportedPosition(self._place_teller(job))
            origin = f"request:{job.facts.id}" if job.facts is not None else ""
            head, sessions = job.head, job.config.ui.activity.session_id
            heir = supersede_key(model, head.path, head.headers, job.exchange.peer, sessions)
            acquisition = self.succession.request(self.router, model.id, heir, on_position=place.told, origin=origin)
            if acquisition.refusal is not None:
                raise acquisition.refusal
            try:
                if loading is None and job.loading and not acquisition.ready and not job.fallbacks:
                    loading = self._show_loading(job, model, watch)
                    place.pass_to(loading.place)
                # One that is ready is granted already: nobody can leave meanwhile.
                granted = acquisition.granted
                lease: Lease = await (granted if granted.called else self._granted(job, acquisition))
            except ServerVanished:
                if retried or job.exchange.gone or job.cancelled:
                    raise
                retried = True  # it was ready and ended before anybody was told: nothing was sent yet
                continue
            except BaseException:
                acquisition.cancel()  # whatever it was: a place that nobody waits for would be granted one day
                raise
            finally:
                self.succession.over(heir, acquisition)
                if loading is not None:
                    job.exchange.sink.unregister_producer()
                    if job.exchange.gone:
                        loading.stop()
                    else:
                        loading.finish()
                    if job.facts is not None:
                        job.facts.loading = False
            if await self._served(job, model, watch, lease, answered=loading is not None, retried=retried):
                return
            retried = True

    async def _served(
        self,
        job: ProxyRequest,
        model: Model,
        watch: ObserverFanout,
        lease: Lease,
        *,
        answered: bool,
        retried: bool,
    ) -> bool:
        """Whether the lease's server served the request; if not, its end is to blame and a fresh one may be asked."""
        try:
            self._note(job, watch, "fifo_priority", str(lease.priority))
            await self._carry(job, self._to_model(job, model, lease.endpoint), watch, answered=answered, lease=lease)
        except UpstreamTruncated as error:
            if lease.unloaded:
                raise UpstreamTruncated(error.where, "the model was unloaded") from error
            if self._closing:
                raise UpstreamTruncated(error.where, "llamaswap is shutting down") from error
            raise
        except UpstreamUnreachable as error:
            crashed = not retried and await self._died(job, lease)
            if lease.unloaded:
                # A repetition would load again what an operator has just unloaded.
                raise ModelUnloaded(model.id) from error
            if not crashed or not self._may_repeat(job):
                raise
            log.info("{model}: {error}; retrying once on a new server", model=model.id, error=error)
            return False
        finally:
            lease.release()
        return True

    def _place_teller(self, job: ProxyRequest) -> Callable[[int], None] | None:
        placed, facts = self.placed, job.facts
        if placed is None or facts is None:
            return None
        return lambda position: placed(facts.id, position)

    def _may_repeat(self, job: ProxyRequest) -> bool:
        return not job.exchange.gone and not job.cancelled and (job.body.length == 0 or job.body.replayable)

    async def _died(self, job: ProxyRequest, lease: Lease) -> bool:
        """Whether the server that broke the connection is gone, or will be known to be in a moment."""
        if lease.lost:
            return True
        news: Deferred[None] = Deferred()
        timer = self.clock.callLater(EXIT_NEWS, news.callback, None)
        job.exchange.on_gone(news.cancel)
        try:
            await news
        except CancelledError:
            if not job.exchange.gone:
                raise
        finally:
            job.exchange.forget(news.cancel)
            if timer.active():
                timer.cancel()
        if job.exchange.gone:
            raise ClientGone()
        return lease.lost

    def _granted(self, job: ProxyRequest, acquisition: PendingLease) -> Deferred[Lease]:
        """The lease; ClientGone or Cancelled the moment the client or an operator ends the wait."""
        job.phase = "waiting"
        exchange = job.exchange
        over = False
        left: Callable[[], None] = _nothing

        def give_up(_: Deferred[Lease]) -> None:
            settle()
            acquisition.cancel()

        waiting: Deferred[Lease] = Deferred(give_up)

        def end(error: Exception) -> None:
            if not over:
                give_up(waiting)
                waiting.errback(error)

        def granted(lease: Lease) -> None:
            if over:
                lease.release()
                return
            settle()
            waiting.callback(lease)

        def refused(failure: Failure) -> None:
            if not over:
                settle()
                waiting.errback(failure)

        def settle() -> None:
            nonlocal over, left
            over = True
            exchange.forget(left)
            left = _nothing  # these functions know each other through it: untied, they need no garbage collector
            job.stop = None

        # on_gone calls back at once where the client has left already
        left = lambda: end(ClientGone())
        exchange.on_gone(left)
        job.stop = lambda: end(Cancelled())
        acquisition.granted.addCallbacks(granted, refused)
        return waiting

    def _show_loading(self, job: ProxyRequest, model: Model, watch: ObserverFanout) -> LoadingStream:
        sink = job.exchange.sink
        headers = list(header_rules.EVENT_STREAM)

        def write(data: bytes) -> None:
            watch.data(data)
            sink.write(data)

        loading = LoadingStream(self.clock, model.id, write, self.uniform, self.shuffled(REMARKS))
        if job.facts is not None:
            job.facts.loading = True
        watch.head(200, headers)
        sink.head(200, b"OK", headers, raw=False)
        sink.register_producer(loading)
        loading.start()
        return loading

    def _note(self, job: ProxyRequest, watch: ObserverFanout, key: str, value: str) -> None:
        if job.facts is not None and job.facts.metadata.get(key) != value:
            job.facts.metadata[key] = value
            for scope in watch.scopes:
                scope.metadata_changed()

    def _known_to(self, model: Model) -> frozenset[bytes]:
        """The words of a model's command and environment: a key among them is known to its server."""
        known = self._words.get(model.id)
        if known is None or known[0] is not model:
            texts = (model.cmd, *model.env, *self.environment)
            words = {word.encode() for text in texts for word in WORD_ENDS.split(text) if word}
            known = self._words[model.id] = model, frozenset(words)
        return known[1]

    def _to_model(self, job: ProxyRequest, model: Model, endpoint: Endpoint) -> tuple[UpstreamTarget, RequestHead]:
        kept = job.key_headers
        if kept:
            forward = model.forward_key or job.config.forward_key
            kept = header_rules.withheld(job.head.headers, kept, forward, self._known_to(model))
        headers = header_rules.to_local(
            job.head.headers,
            peer=job.exchange.peer,
            key_headers=kept,
            metered=job.metered,
        )
        upstream = self._upstreams.get(model.id)
        if upstream is None or upstream.endpoint is not endpoint or upstream.timeouts is not model.timeouts:
            upstream = UpstreamTarget(endpoint, model.timeouts, tls=endpoint.scheme == "https", name=model.id)
            self._upstreams[model.id] = upstream
        return upstream, _headed(job.head, joined(endpoint, job.head.target), headers)

    # -- a peer

    async def _remote(self, job: ProxyRequest, peer: Peer, watch: ObserverFanout) -> None:
        if self._closing:
            raise ShuttingDown("peer proxy") if isinstance(self._closing, ShuttingDown) else self._closing
        endpoint = peer.endpoint
        if endpoint is None:
            raise _unknown(job)
        hops = header_rules.hops(job.head.headers)
        if hops >= header_rules.HOP_LIMIT:
            raise PeerLoop(peer.id, hops)
        own_key = peer.api_key.value.encode() if peer.api_key is not None else b""
        kept = header_rules.withheld(
            job.head.headers,
            job.key_headers,
            peer.forward_key or job.config.forward_key,
            frozenset((own_key,)) if own_key else None,
        )
        headers = header_rules.to_peer(
            job.head.headers,
            authority=endpoint.authority.encode("latin-1"),
            api_key=own_key or None,
            key_headers=kept,
            metered=job.metered,
        )
        upstream = UpstreamTarget(
            endpoint, peer.timeouts, tls=endpoint.scheme == "https", name="peer proxy error", peer=True
        )
        head = _headed(job.head, joined(endpoint, job.head.target), headers)
        try:
            await self._carry(job, (upstream, head), watch, answered=False)
        except UpstreamUnreachable as error:
            if not error.sent:  # else it was there, and perhaps its model takes long to load
                self._heard(peer, error.cause)
            raise
        except (UpstreamDeclined, UpstreamTruncated):
            self._heard(peer, None)
            raise
        self._heard(peer, None)

    def _heard(self, peer: Peer, error: str | None) -> None:
        if self.peer_heard is not None:
            self.peer_heard(peer.id, error)

    # -- both

    async def _carry(
        self,
        job: ProxyRequest,
        way: tuple[UpstreamTarget, RequestHead],
        watch: ObserverFanout,
        *,
        answered: bool,
        lease: Lease | None = None,
    ) -> None:
        upstream, head = way
        if answered:
            # The head that went out names no coding, so the body must have none.
            plain = [item for item in head.headers if item[0].lower() != b"accept-encoding"]
            head = _headed(head, head.target, plain)
        job.phase = "asking"
        carrying = self.relay.carry(
            job.exchange,
            upstream,
            head=head,
            body=job.body,
            observer=None if job.bypass else watch,
            answered=answered,
            decline=DECLINED if job.fallbacks else (),
            reader=lease.reader_stalled if lease is not None else None,
        )
        job.stop = carrying.cancel
        stalled: ReaderStalled | None = None

        def interrupt(reason: ReaderStalled) -> None:
            nonlocal stalled
            stalled = reason
            carrying.cancel()

        if lease is not None:
            lease.interrupt = interrupt
        try:
            await carrying
        except CancelledError:
            if stalled is None:
                raise
            raise stalled from None
        finally:
            job.stop = None
            if lease is not None:
                lease.interrupt = None

    def _cancelled(self, job: ProxyRequest, watch: ObserverFanout) -> None:
        """An operator or the end of the service ended it and the client is still there."""
        exchange = job.exchange
        reason = self._closing or Cancelled()
        if exchange.gone:
            return
        if exchange.sink.started:
            self._broken(job, watch, str(reason))
        elif job.phase == "asking":
            self.answer(exchange, reason, job.path, watch)
        else:
            self._send(exchange, 200, [], b"", watch)

    def _broken(self, job: ProxyRequest, watch: ObserverFanout, message: str) -> None:
        """What the client has is incomplete: say so where the stream has room for it, then cut."""
        sink = job.exchange.sink
        if job.exchange.gone:
            return
        if watch.events:
            sink.last_word(error_event(job.path, 502, message, clean=watch.clean), job.exchange.last)
        sink.abort()


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


def _headed(head: RequestHead, target: bytes, headers: Headers) -> RequestHead:
    return RequestHead(head.method, target, headers, head.version)


def _unknown(job: ProxyRequest) -> Exception:
    return UnknownModel(job.requested)
