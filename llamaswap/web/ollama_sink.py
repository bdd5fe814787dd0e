"""The response to a request of the Ollama API: what the model's server sends, translated while it passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from functools import partial
from http.client import responses

from attrs import define, field
from twisted.logger import Logger

from llamaswap.errors import BadUpstream
from llamaswap.observe.worker import RunBlocking
from llamaswap.proxy.exchange import Exchange, RequestHead, ResponseSink
from llamaswap.proxy.response_forwarder import ForwardOutcome, ResponseObserver
from llamaswap.proxy.task import Future
from llamaswap.web.sink_wrapper import SinkWrapper
from llamaswap.wire.headers import ResponseHeaders
from llamaswap.wire.json_members import LARGE
from llamaswap.wire.ollama import TranslatedRequest
from llamaswap.wire.ollama_response import ResponseTooLong, ResponseTranslator, error_line, error_message

log = Logger()

NDJSON = (b"Content-Type", b"application/x-ndjson")
JSON_TYPE = (b"Content-Type", b"application/json; charset=utf-8")
DOCUMENT_LIMIT = 64 << 20  # bytes of a response that is translated as a whole; embeddings of many texts are large


def timestamp(seconds: float) -> str:
    """A unix time as Ollama's clients read it; Python's older ones know no Z and no nanoseconds."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="microseconds")


def plain_head(head: RequestHead) -> RequestHead:
    """The head of a request whose response is translated: it asks for no content coding, and its body is of JSON."""
    left_out = (b"accept-encoding", b"content-type")
    headers = [(name, value) for name, value in head.headers if name.lower() not in left_out]
    return RequestHead(head.method, head.target, [*headers, (b"Content-Type", b"application/json")], head.version)


@define(eq=False)
class OllamaSink(SinkWrapper):
    """Takes a server's response without its framing, and sends it as Ollama would.

    The request came at `arrived`, in unix seconds, as `now` gives them.
    What has a framing is a response of our own, and passes unchanged. A document is complete only after `complete`.
    """

    request: TranslatedRequest
    arrived: float
    now: Callable[[], float]
    _exchange: Exchange
    _translator: ResponseTranslator = field(init=False)
    _translating: bool = field(default=False, init=False)
    _status: int = field(default=0, init=False)
    _document: bytearray | None = field(default=None, init=False)

    @classmethod
    def install(
        cls,
        exchange: Exchange,
        request: TranslatedRequest,
        arrived: float,
        now: Callable[[], float],
    ) -> OllamaSink:
        """Translate the response of this exchange."""
        sink = cls(exchange.sink, request, arrived, now, exchange)
        exchange.sink, exchange.translated = sink, True
        return sink

    def __attrs_post_init__(self) -> None:
        self._translator = ResponseTranslator(self.request, self.arrived, timestamp)

    def granted(self) -> None:
        """The server is ready."""
        self._translator.granted = self.now()

    def notice(self, facts: Mapping[str, object]) -> bytes:
        """A line without text, for a client that waits; `facts` are about the wait."""
        return self._translator.notice(facts, self.now())

    def respond(self, observer: ResponseObserver | None = None) -> None:
        """Respond to a request that generates nothing."""
        body = self._translator.without_generation(self.now())
        self._respond(200, JSON_TYPE, body, observer)

    def responded(self, observer: ResponseObserver) -> Future[ForwardOutcome]:
        """The same in place of the forwarding of a request."""
        self.respond(observer)
        done: Future[ForwardOutcome] = Future(lambda error: None)
        done.settle(ForwardOutcome(200, 0))
        return done

    def _respond(
        self, status: int, kind: tuple[bytes, bytes], body: bytes, observer: ResponseObserver | None = None
    ) -> None:
        if self._exchange.gone:
            return
        length = (b"Content-Length", b"%d" % len(body))
        headers = ResponseHeaders.of([kind, length, *self._exchange.added_headers])
        if observer is not None:
            observer.response_head(status, headers)
            observer.response_data(body)
        self.sink.head(status, responses.get(status, "").encode(), headers, raw=True, data=body)
        self.sink.finish()

    async def complete(self, run: RunBlocking) -> None:
        """Send a response that is a document; a large one is translated by `run`."""
        document, self._document = self._document, None
        if document is None:
            return
        if 200 <= self._status < 300:
            work = partial(self._translator.document, bytes(document), self.now())
            body = await run(work) if len(document) > LARGE else work()
            kind = NDJSON if self.request.streaming else JSON_TYPE
        else:
            body, kind = error_line(error_message(bytes(document))), JSON_TYPE
        self._respond(self._status, kind, body)

    # -- what the forwarder and the error sender call ------------------------------------------------------

    def head(self, status: int, reason: bytes, headers: ResponseHeaders, *, raw: bool, data: bytes = b"") -> None:
        """The head. The client gets that of a document when the document is translated."""
        if raw:
            self._document = None
            self.sink.head(status, reason, headers, raw=True, data=data)
        elif headers.event_stream and 200 <= status < 300:
            self._translating = True
            kept = ResponseHeaders.of([NDJSON, *self._exchange.added_headers])
            self.sink.head(status, reason, kept, raw=False)
            self.write(data)
        else:
            self._status, self._document = status, bytearray(data)

    def write(self, data: bytes) -> None:
        """Some bytes of the body."""
        if self._document is not None:
            self._document += data
            if len(self._document) > DOCUMENT_LIMIT:
                self._cut(ResponseTooLong())
        elif self._translating and (lines := self._translated(lambda: self._translator.feed(data, self.now()))):
            self.sink.write(lines)

    def _translated(self, work: Callable[[], bytes]) -> bytes | None:
        """The lines that `work` makes; None if the response is cut, because what the server sent has no translation."""
        try:
            return work()
        except ResponseTooLong as error:
            self._cut(error)
        except RecursionError:
            self._cut(BadUpstream(self.request.model, "sent a tool's arguments that are nested too deeply"))
        return None

    def _cut(self, error: Exception) -> None:
        """End the response, which the server's cannot become, with the reason."""
        log.warn("{model}: the response is cut: {reason}", model=self.request.model, reason=error)
        if self.sink.started:
            self.sink.write_final(error_line(str(error)), b"")
        self._translating, self._document = False, None
        self.sink.abort()

    def finish(self) -> None:
        """The server's response, or one of our own, is complete."""
        if self._document is not None:
            return
        if self._translating:
            lines = self._translated(lambda: self._translator.finish(self.now()))
            if lines is None:
                return
            if lines:
                self.sink.write(lines)
        self.sink.finish()


_check: type[ResponseSink] = OllamaSink
