"""One request whose model is known: what will be sent where, and who observes its response."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from attrs import define, field

from llamaswap.config import Config
from llamaswap.errors import Cancelled
from llamaswap.observe.worker import RunBlocking
from llamaswap.proxy.bodies import BytesBody, PiecesBody
from llamaswap.proxy.exchange import BodySource, Exchange
from llamaswap.proxy.incoming_body import SpooledBody
from llamaswap.proxy.loading import LoadingStream
from llamaswap.routing.interfaces import TargetChoice
from llamaswap.web.head_facts import HeadFacts
from llamaswap.web.jobs import JobFollower
from llamaswap.web.ollama_sink import OllamaSink
from llamaswap.web.request_content import RequestContent
from llamaswap.web.responses import ResponseKeeper
from llamaswap.web.target import Target
from llamaswap.web.uploads import KeptBody
from llamaswap.wire import filters
from llamaswap.wire import headers as header_rules
from llamaswap.wire.byte_budget import TakenBytes
from llamaswap.wire.headers import ResponseHeaders
from llamaswap.wire.request_info import RequestInfo, RequestObserver, RequestObserverFactory, RequestOutcome
from llamaswap.wire.sse import Tail

PIECES_JOINED = 8  # small pieces of an event stream that reach the observers in one call
SMALL_PIECE = 2048  # bytes; a larger piece reaches them at once


def least(one: float, other: float) -> float:
    """The smaller of two bounds; 0 stands for none."""
    return min(one, other) if one and other else one or other


def _bounded(target: Target, facts: HeadFacts) -> bool:
    key, model = facts.access.key, target.model
    of_key = key.max_tokens or key.max_duration
    return bool(of_key or (model is not None and (model.max_tokens or model.max_duration)))


@define(eq=False, kw_only=True)
class ProxyRequest(RequestInfo):
    """A request from the moment its model is known to the end of its response; the forwarder's observer.

    `raw_target` (path and query) and `source` (the body) are what will be sent. `other_targets` follow, in order, if
    `target` fails before a byte of its response went out; `content` is the request as it came, to be edited for them.
    `choice` is the selector's, if one was asked. `failure` is why its content cannot be sent, `decoded` says that it is
    sent without the client's content coding. `ollama` translates the response. `ttl`: from now on the model is unloaded
    after so many idle seconds. `websocket`: it opens one on a model route. `prefers_post`: without one its client sends
    a POST. `job` follows the job that the request is about or begins, `keeper` keeps its response.
    `reserved` is the memory for a conversation that it continues. `bounded`: its tokens or its time have a limit.
    """

    exchange: Exchange
    facts: HeadFacts
    target: Target
    raw_target: bytes
    source: BodySource
    content: RequestContent | None = None
    other_targets: list[Target] = field(factory=list)
    choice: TargetChoice | None = None
    failure: Exception | None = None
    decoded: bool = False
    ollama: OllamaSink | None = None
    ttl: float | None = None
    websocket: bool = False
    prefers_post: bool = False
    job: JobFollower | None = None
    keeper: ResponseKeeper | None = None
    reserved: TakenBytes | None = None
    bounded: bool = False
    cancelled: bool = False
    forwarding: bool = False  # whether a server or peer has been asked
    stop: Callable[[Exception], None] | None = None  # ends the present wait
    status: int = 0
    event_stream: bool = False
    queue_position: int | None = None
    _loading_stream: LoadingStream | None = None
    _observers: list[RequestObserver] = field(factory=list)
    _tail: Tail = field(factory=Tail)
    _pieces: list[bytes] = field(factory=list)
    _pieces_limit: int = 1  # the first piece reaches the observers at once

    @classmethod
    def of(
        cls,
        exchange: Exchange,
        facts: HeadFacts,
        target: Target,
        *,
        path: str,
        raw_target: bytes,
        stored_path: str = "",
        streaming: bool = False,
        tracked: bool = True,
        metered: bool = True,
    ) -> ProxyRequest:
        """The request of an exchange; its number and its time are set when it is opened."""
        return cls(
            "",
            facts.method,
            path,
            stored_path or path,
            target.name if target.model is None else target.model.id,
            target.name,
            facts.headers(exchange.head),
            facts.remote_ip,
            exchange.arrived,
            0.0,
            streaming,
            tracked and not target.bypass,
            metered and not target.bypass,
            key_name=facts.access.name,
            server=target.name if target.model is None else target.model.id,
            exchange=exchange,
            facts=facts,
            target=target,
            raw_target=raw_target,
            source=exchange.body,
            bounded=_bounded(target, facts),
        )

    @property
    def config(self) -> Config:
        """The configuration under which the request began."""
        return self.facts.config

    # -- what is sent --------------------------------------------------------------------------------------

    async def send_content(self, content: RequestContent, run: RunBlocking) -> None:
        """Send this content, with the target's filters and under the target's own name for the model."""
        model, peer = self.target.model, self.target.peer
        if model is not None:
            await content.filter(model.filters, model.use_model_name, run)
            if model.use_model_name and content.scan is not None:
                content.rename(model.use_model_name)
        elif peer is not None:
            await content.filter(peer.filters, "", run)
            if self.target.peer_model != content.model:
                content.rename(self.target.peer_model)
        if self.facts.access.filters is not None:
            await content.filter(self.facts.access.filters, "", run)
        self._bound_tokens(content)
        await self.send_as_is(content, run)

    def send_short(self, content: RequestContent) -> None:
        """The same for a short JSON body, which needs no waiting."""
        json, model, peer = content.json, self.target.model, self.target.peer
        assert json is not None  # a short content has one
        if model is not None:
            filters.apply(json, model.filters, requested=content.model, use_model_name=model.use_model_name)
        elif peer is not None:
            filters.apply(json, peer.filters, requested=content.model)
            if self.target.peer_model != content.model:
                content.rename(self.target.peer_model)
        if self.facts.access.filters is not None:
            filters.apply(json, self.facts.access.filters, requested=content.model)
        if self.bounded:
            self._bound_tokens(content)
        self.captured_body = data = json.render()
        self.source = self.exchange.body = BytesBody(data)
        if content.query != self.exchange.head.query:
            self.raw_target = self.raw_target.partition(b"?")[0] + b"?" + content.query

    @property
    def token_limit(self) -> int:
        """How many tokens the response may have; 0: any number."""
        own, of_key = self.target.model, self.facts.access.key.max_tokens
        return int(least(of_key, 0 if own is None else own.max_tokens))

    @property
    def time_limit(self) -> float:
        """How many seconds the response may take; 0: any."""
        own, of_key = self.target.model, self.facts.access.key.max_duration
        return least(of_key, 0.0 if own is None else own.max_duration)

    def _bound_tokens(self, content: RequestContent) -> None:
        if content.json is not None and (limit := self.token_limit):
            path = self.stored_path if content.ollama is None else content.ollama.request.target
            filters.bound_tokens(content.json, path, limit)

    async def send_as_is(self, content: RequestContent, run: RunBlocking) -> None:
        """Send this content, with the edits that were made to it."""
        exchange = self.exchange
        self.decoded = content.decoded
        self.source = await content.body(exchange.body, run)
        if isinstance(self.source, BytesBody) and content.scan is None:
            self.captured_body = self.source.data
        if isinstance(self.source, (BytesBody, PiecesBody)):
            if self.source is not exchange.body:
                # The body as it came is not read again, and a long response would keep it in memory.
                if isinstance(exchange.body, SpooledBody):
                    exchange.body.release()
                exchange.body = self.source
        elif self.other_targets:
            self.source = KeptBody(self.source)
        path, query_mark, _ = self.raw_target.partition(b"?")
        self.raw_target = path + b"?" + content.query if query_mark else path

    async def retarget(self, run: RunBlocking) -> None:
        """Continue with the next of `other_targets`."""
        assert self.content is not None  # kept for the other targets
        failed = self.requested
        self.target = target = self.other_targets.pop(0)
        self.requested = target.name
        self.bounded = _bounded(target, self.facts)
        self.model = self.server = target.model.id if target.model is not None else target.name
        content = self.content.copy()
        content.rename(target.name)
        if content.websocket is not None:
            content.websocket.rename(target.own_name)
        await self.send_content(content, run)
        self.metadata.pop("fifo_priority", None)
        self.metadata["failover"] = f"{self.metadata.get('failover') or failed},{target.name}"
        for observer in self._observers:
            observer.retargeted()

    @property
    def repeatable(self) -> bool:
        """Whether the request may be sent once more."""
        return not self.exchange.gone and not self.cancelled and (self.source.length == 0 or self.source.replayable)

    def cancel(self) -> None:
        """End the request because an operator asks for it. Idempotent."""
        if not self.cancelled:
            self.cancelled = True
            if self.stop is not None:
                self.stop(Cancelled())

    def shown_error(self, error: BaseException) -> BaseException:
        """An error as the client may see it."""
        return self.facts.access.shown_error(error, self.config)

    # -- its observers -------------------------------------------------------------------------------------

    def open(self, number: int, timestamp: float, factories: Iterable[RequestObserverFactory]) -> None:
        """Open the observers; `timestamp` is its arrival in seconds since the epoch."""
        self.id = str(number)
        self.timestamp = timestamp
        if self.tracked or self.metered:
            self._observers = [observer for factory in factories if (observer := factory.open(self)) is not None]
        if self.job is not None:
            self.job.request = self
            self._observers.append(self.job)
        if self.keeper is not None:
            self._observers.append(self.keeper)
            self.followed = True
        if self.charge is not None:
            self.exchange.added_headers = self.charge.headers
            self.failure = self.charge.refusal or self.failure

    def close(self, outcome: RequestOutcome, error: Exception | None) -> None:
        """Notify the observers of the end, and release everything that only the serving needed."""
        if self._pieces:
            self.flush()
        observers, self._observers = self._observers, []
        for observer in observers:
            observer.ended(outcome, error)
        if self.choice is not None:
            self.choice.release()
        if self.reserved is not None:
            self.reserved.release()
        self.content = self.choice = self.stop = self.ollama = self.job = self.keeper = self._loading_stream = None
        del self.exchange, self.source  # an observer may keep the record of the request for a while

    @property
    def known_job(self) -> bool:
        """Whether only one server can serve it, because that has the job."""
        return self.job is not None and self.job.job is not None

    @property
    def standing(self) -> tuple[int, float]:
        """What the client's key adds to the priority, and what it has used."""
        return (0, 0.0) if self.charge is None else self.charge.standing

    def granted(self, priority: int) -> None:
        """A server is reserved for the request."""
        if self.ollama is not None:
            self.ollama.granted()
        self.metadata["fifo_priority"] = str(priority)
        for observer in self._observers:
            observer.granted()

    def response_head(self, status: int, headers: ResponseHeaders) -> None:
        """The head that the client receives. Behind a loading stream the server's own is not seen by the client."""
        if self.status:
            return
        self.status = status
        self.event_stream = headers.event_stream
        for observer in self._observers:
            observer.head(status, headers)

    def response_data(self, data: bytes) -> None:
        """Some bytes of the body. Observing each small piece would be most of the cost of a stream."""
        if self._pieces_limit == 1 and not self.event_stream:
            # A document, most often complete in its first piece.
            self._pieces_limit = 1 if self.loading else PIECES_JOINED
            for observer in self._observers:
                observer.data(data)
            return
        pieces = self._pieces
        pieces.append(data)
        if len(pieces) >= self._pieces_limit or len(data) > SMALL_PIECE or self.followed:
            self.flush()

    def flush(self) -> None:
        """Pass buffered pieces on to the observers."""
        pieces = self._pieces
        if not pieces:
            return
        self._pieces = []
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if self.event_stream:
            self._tail.feed(data)
        for observer in self._observers:
            observer.data(data)
        # Our own text about the load must not be joined with the server's data.
        self._pieces_limit = 1 if self.loading else PIECES_JOINED

    @property
    def between_events(self) -> bool:
        """Whether the last event of the stream so far is complete."""
        self.flush()
        return self._tail.clean

    # -- while its model loads -----------------------------------------------------------------------------

    def show_loading(self, stream: LoadingStream) -> None:
        """Begin the response with a stream that reports the load."""
        sink = self.exchange.sink
        headers = ResponseHeaders.of([*header_rules.EVENT_STREAM, *self.exchange.added_headers])
        self.loading = True
        self._loading_stream = stream
        self.response_head(200, headers)
        sink.head(200, b"OK", headers, raw=False)
        sink.register_producer(stream)
        stream.start()
        if self.queue_position is not None:
            stream.show_position(self.queue_position)

    def write_loading(self, data: bytes) -> None:
        """Some of the loading stream's text."""
        self.response_data(data)
        self.exchange.sink.write(data)

    def end_loading(self) -> None:
        """The wait is over, however it ended: complete the loading stream, if there is one."""
        stream, self._loading_stream = self._loading_stream, None
        if stream is None:
            return
        self.exchange.sink.unregister_producer()
        if self.exchange.gone:
            stream.stop()
        else:
            stream.finish()
        self.loading = False

    def moved_in_queue(self, position: int) -> None:
        """The request stands at this position, counted from 1."""
        self.queue_position = position
        if self._loading_stream is not None:
            self._loading_stream.show_position(position)
