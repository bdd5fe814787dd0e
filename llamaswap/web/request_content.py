"""What a request says in its query and body: the model it names, and how to make it name another.

A JSON or form body is kept in memory; a multipart body stays where it is and is read only as far as necessary.
"""

from __future__ import annotations

import re
from functools import partial

from attrs import define, evolve

from llamaswap.config.schema.model import Filters
from llamaswap.errors import BadRequest, BodyTooLarge
from llamaswap.observe.worker import RunBlocking, at_once
from llamaswap.proxy.bodies import BODY_COPIES, BytesBody
from llamaswap.proxy.exchange import BodySource, RequestHead
from llamaswap.proxy.incoming_body import SpooledBody
from llamaswap.web.jobs import JobFollower
from llamaswap.web.ollama_sink import OllamaSink
from llamaswap.web.responses import ResponseKeeper
from llamaswap.web.uploads import SplicedBody, read
from llamaswap.web.websockets import AcceptedWebsocket
from llamaswap.wire import filters
from llamaswap.wire.byte_budget import TakenBytes
from llamaswap.wire.content_coding import CODINGS, Decoding, Undecodable
from llamaswap.wire.form import MultipartScan, form_value, with_form_value
from llamaswap.wire.json_body import JsonBody
from llamaswap.wire.json_members import LARGE

JSON_LIMIT = 256 << 20  # bytes of a JSON body kept in memory; images in base64 are large, this is beyond them
DECODED_RATIO = 100  # a body may have so many times its encoded size; only a decompression bomb has more
DECODED_MINIMUM = 1 << 20  # bytes that any encoded body may have when decoded
JOINED_LIMIT = 8 << 20  # bytes; a larger body is sent in pieces, because joining it would hold up other requests
FORM_LIMIT = 1 << 20  # bytes of an urlencoded body: it is searched in the reactor thread, at once

_OPENS_OBJECT = re.compile(rb"[ \t\r\n]{0,10000}\{")


@define(eq=False)
class RequestContent:
    """A request's query and parsed body.

    `model` is the name it asks for. After `rename` the edits are in `json`, `query` or `form`; a multipart body is
    edited while it is sent. `decoded`: the body had a content coding, and is sent without it. `ollama` translates the
    response to a request of the Ollama API. `ttl`: the model is to be unloaded after so many idle seconds.
    `websocket` is the client's, if it was accepted before the model was known. `job` follows what it asks of a job,
    and `keeper` keeps the response. `reserved` bytes were taken for a conversation that it continues.
    """

    model: str
    streaming: bool
    query: bytes = b""
    json: JsonBody | None = None
    form: bytes | None = None
    scan: MultipartScan | None = None
    new_name: str | None = None
    decoded: bool = False
    short: bool = False  # a JSON body that can be edited at once
    ollama: OllamaSink | None = None
    ttl: float | None = None
    websocket: AcceptedWebsocket | None = None
    job: JobFollower | None = None
    keeper: ResponseKeeper | None = None
    reserved: TakenBytes | None = None

    @property
    def json_text(self) -> bytes:
        """The body that a server could read as JSON, as it will be sent."""
        return self.json.render() if self.json is not None else self.form or b""

    def copy(self) -> RequestContent:
        """The same content, to be edited apart from this one."""
        return evolve(self, json=self.json.copy() if self.json is not None else None)

    def rename(self, name: str) -> None:
        """Name another model wherever the request names one."""
        self.model = name
        self.query = with_form_value(self.query, "model", name)
        if self.json is not None:
            self.json.set_model(name)
        elif self.form is not None and len(self.form) <= FORM_LIMIT:
            self.form = with_form_value(self.form, "model", name)
        elif self.scan is not None:
            self.new_name = name

    async def filter(self, rules: Filters, use_model_name: str, run: RunBlocking) -> None:
        """Apply a model's or peer's filters to a JSON body; a large one in a thread by `run`."""
        if self.json is None:
            return
        work = partial(filters.apply, self.json, rules, requested=self.model, use_model_name=use_model_name)
        if self.json.large:
            await run(work)
        else:
            work()

    async def body(self, source: BodySource, run: RunBlocking) -> BodySource:
        """The body to send. One of JSON or a form is new, and a large one of JSON is put together by `run` or sent in
        pieces; another is `source`, unless its model was renamed."""
        if self.json is not None:
            if self.json.size > JOINED_LIMIT and isinstance(source, SpooledBody):
                return source.edited(self.json.pieces())
            return BytesBody(await run(self.json.render) if self.json.large else self.json.render())
        if self.form is not None:
            return BytesBody(self.form)
        if self.scan is None or self.new_name is None:
            return source
        scan = self.scan
        if not scan.ended:
            # Every model field is replaced, and one may stand behind the files.
            scan = self.scan = scan.restarted()
            await read(source, scan, None)
        if scan.broken:
            raise BadRequest("could not parse multipart form")
        places = [place for place in scan.places if place.name == "model"]
        return SplicedBody(source, places, self.new_name.encode("utf-8", "replace"))


def short_json(body: BodySource, query: bytes) -> RequestContent | None:
    """The content of a body of JSON that is in memory and so short that no thread is needed; else None, also of an
    empty body, with which the query may name the model."""
    if not isinstance(body, BytesBody) or not 0 < len(body.data) <= LARGE:
        return None
    json = JsonBody.parse(body.data)
    if json is None:
        return RequestContent("", False, query, form=body.data)
    return RequestContent(json.model, json.streaming, query, json, short=True, ttl=json.idle_time)


async def read_content(
    head: RequestHead, body: BodySource, *, wants_json: bool, needs_model: bool = True, run: RunBlocking = at_once
) -> RequestContent:
    """Read as much of the request as it takes to know its model. Without `needs_model` it may be in no part of it.

    With `wants_json` a body that opens like a JSON object counts as one, whatever its content type says, because many
    clients forget the header. Raises BodyTooLarge, and ClientGone if the client leaves before its body is complete.
    """
    query = head.query
    if head.method in (b"GET", b"HEAD"):
        return RequestContent(form_value(query, "model"), form_value(query, "stream") == "true", query)
    content_type = head.first(b"content-type") or b""
    kind = content_type.lower()
    if b"multipart/form-data" in kind:
        return await _read_multipart(query, content_type, body)
    if not wants_json and b"x-www-form-urlencoded" in kind and (body.length or 0) > FORM_LIMIT:
        raise BodyTooLarge(FORM_LIMIT)  # before the client sends it
    text = await _whole_body(body)
    coding = (head.first(b"content-encoding") or b"").decode("latin-1").strip().lower()
    decoded = coding in CODINGS
    text = await _decoded(text, coding, body, run) if decoded else text
    content = await _read_text(text, query, kind, wants_json, needs_model, run)
    content.decoded = decoded
    return content


async def _decoded(text: bytes, coding: str, body: BodySource, run: RunBlocking) -> bytes:
    """The body without its content coding; raises BadRequest if that is broken or the body is far too large.

    The memory for each part is taken when it is known, so that small bodies cannot grow beyond what there is.
    """
    limit = min(JSON_LIMIT, max(DECODED_MINIMUM, DECODED_RATIO * len(text)))
    decoding = Decoding(text, coding, limit)
    reserved = 0
    try:
        while not decoding.done:
            if limit > DECODED_MINIMUM:
                await run(decoding.advance)
            else:
                decoding.advance()
            if isinstance(body, SpooledBody):
                body.reserve((decoding.size - reserved) * BODY_COPIES)
            reserved = decoding.size
    except Undecodable as error:
        raise BadRequest(f"the request's body cannot be decoded as {coding}: {error}") from error
    return decoding.result


async def _read_text(
    text: bytes, query: bytes, kind: bytes, wants_json: bool, needs_model: bool, run: RunBlocking
) -> RequestContent:
    if text and b"application/json" in kind:
        json = await parse_json(text, run)
        if json is None:
            return RequestContent("", False, query, form=text)
        return RequestContent(json.model, json.streaming, query, json=json, ttl=json.idle_time)
    if wants_json and _OPENS_OBJECT.match(text):
        json = await parse_json(text, run)
        if json is not None and json.model:
            return RequestContent(json.model, json.streaming, query, json=json, ttl=json.idle_time)
        name, streaming = form_value(query, "model"), form_value(query, "stream")
    elif len(text) <= FORM_LIMIT:
        name = form_value(text, "model") or form_value(query, "model")
        streaming = form_value(text, "stream") or form_value(query, "stream")
    else:
        name, streaming = form_value(query, "model"), form_value(query, "stream")
        if needs_model and (not name or b"x-www-form-urlencoded" in kind):
            raise BodyTooLarge(FORM_LIMIT)
    return RequestContent(name, streaming == "true", query, form=text)


async def parse_json(text: bytes, run: RunBlocking) -> JsonBody | None:
    """A JSON body's members, None if it is not an object; a large one by `run`, because that takes up to seconds."""
    return JsonBody.parse(text) if len(text) <= LARGE else await run(partial(JsonBody.parse, text))


async def _whole_body(body: BodySource) -> bytes:
    if isinstance(body, BytesBody):
        return body.data
    return b"" if body.length == 0 else await body.read_all(JSON_LIMIT)


async def _read_multipart(query: bytes, content_type: bytes, body: BodySource) -> RequestContent:
    scan = MultipartScan.of(content_type)
    name = form_value(query, "model")
    if not name and not scan.broken:
        await read(body, scan, "model")
        name = scan.value("model") or ""
    streaming = (scan.value("stream") or form_value(query, "stream")) == "true"
    return RequestContent(name, streaming, query, scan=scan)
