"""What is fuzzed: where foreign bytes come in, a function that takes any bytes and raises only for a fault.

A target's first byte decides how the rest is cut into pieces, as a network would: what is true of the whole must be
true of every slicing. The seeds are small and written by hand; the fuzzer grows them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import httptools
from attrs import asdict, frozen
from twisted.logger import globalLogPublisher

from llamaswap.config import ConfigText, load
from llamaswap.errors import ConfigError
from llamaswap.proxy.framing import MalformedMessage, parse_request, write_head
from llamaswap.upgrade.state import unpack
from llamaswap.wire import headers as header_rules
from llamaswap.wire.form import MultipartScan, form_value, with_form_value, with_places
from llamaswap.wire.json_body import EditError, JsonBody
from llamaswap.wire.sse import Tail
from llamaswap.wire.usage import LINE_BOUND, LINE_TAIL, StreamScanner, from_document, from_fragment, from_lines
from tests.proxy.doubles import World


@frozen
class Target:
    """`run` takes any bytes; `seeds` are what the fuzzer begins with, `words` what it may put in."""

    name: str
    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    words: tuple[bytes, ...] = ()


def pieces(data: bytes) -> tuple[bytes, Iterator[bytes]]:
    """The first byte taken off, and the rest cut as it says: 0 whole, 1 byte by byte, else by that many."""
    size, rest = (data[0] % 32 or max(1, len(data)), data[1:]) if data else (1, b"")
    return rest, (rest[at : at + size] for at in range(0, len(rest), size))


# -- requests' bodies --------------------------------------------------------------------------------------


def _object(data: bytes) -> dict[str, Any] | None:
    """A JSON object without a key twice, as the standard library reads it."""
    twice = False

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal twice
        twice = twice or len(dict(pairs)) < len(pairs)
        return dict(pairs)

    try:
        found = json.loads(data.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and not twice else None


def _lone(text: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def json_body(data: bytes) -> None:
    """What a parser reads is what we read, and renaming the model changes nothing else."""
    body = JsonBody.parse(data)
    known = _object(data)
    if body is None:
        assert known is None or len(known) > 1000, "an object that is not read as one"
        return
    assert body.render() is data
    named, _ = body.model, body.streaming
    if known is not None and isinstance(known.get("model"), str) and not _lone(known["model"]):
        assert named == known["model"], (named, known["model"])
    if named:  # who names no model is never renamed
        body.set_model("other")
        renamed = _object(body.render())
        if known is not None:
            assert renamed == {**known, "model": "other"}, "renaming changed more than the name"
    for path in ("model", "options.stop.0", "a", "messages.-1"):
        again = JsonBody.parse(data)
        assert again is not None
        try:
            again.set(path, {"x": 1})
            again.delete(path)
        except EditError:
            continue
        if known is not None:
            assert _object(again.render()) is not None, f"{path} broke the document"


def multipart(data: bytes) -> None:
    """Fields stand where they are said to stand, however the body was cut; renaming keeps every other byte."""
    body, cuts = pieces(data)
    whole = MultipartScan.of(b'multipart/form-data; boundary="XX"')
    whole.feed(body)
    sliced = whole.restarted()
    for piece in cuts:
        sliced.feed(piece)
    assert (whole.ended, whole.broken) == (sliced.ended, sliced.broken) and whole.places == sliced.places
    last = 0
    for place in whole.places:
        assert last <= place.start <= place.end <= len(body)
        assert body[place.start : place.end].decode("utf-8", "replace") == place.value
        last = place.end
    renamed = with_places(body, whole.places, "model", "other")
    again = whole.restarted()
    again.feed(renamed)
    assert [place.value for place in again.places if place.name == "model"] == [
        "other" for place in whole.places if place.name == "model"
    ]
    MultipartScan.of(body[:300]).feed(body)


def form(data: bytes) -> None:
    """A form's field is renamed in place, and read back."""
    before = form_value(data, "model")
    renamed = with_form_value(data, "model", "a b&c=d")
    if before:
        assert form_value(renamed, "model") == "a b&c=d"


# -- heads and connections ---------------------------------------------------------------------------------


def headers(data: bytes) -> None:
    """A head that is taken crosses without its framing, and is a head again on the other side."""
    try:
        head, _ = parse_request(data + b"\r\n\r\n")
    except MalformedMessage:
        return
    local = header_rules.to_local(
        head.headers, socket_address="10.0.0.1", key_headers=frozenset([b"authorization"]), metered=True
    )
    peer = header_rules.to_peer(head.headers, authority=b"peer", api_key=b"k", key_headers=frozenset())
    for crossed in (local, peer):
        lower = [name.lower() for name, _ in crossed]
        assert not {b"transfer-encoding", b"content-length"} & set(lower), "the client's framing crossed"
        assert not {b"proxy-authorization", b"keep-alive", b"proxy-connection"} & set(lower)
        if b"host" in lower:
            parse_request(write_head(b"POST /x HTTP/1.1", crossed))
    assert b"authorization" not in [name.lower() for name, _ in local], "our key crossed"
    back = [name.lower() for name, _ in header_rules.to_client(head.headers).items]
    assert b"transfer-encoding" not in back
    header_rules.real_client_address(head.first, "10.0.0.1")


class _Faults:
    """Hears failures that were logged rather than raised."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def __call__(self, event: dict[str, Any]) -> None:
        failure = event.get("log_failure")
        if failure is not None:
            self.heard.append(failure.getTraceback())

    def __enter__(self) -> None:
        globalLogPublisher.addObserver(self)  # type: ignore[arg-type] # callable is all that is asked

    def __exit__(self, *_: object) -> None:
        globalLogPublisher.removeObserver(self)  # type: ignore[arg-type] # the same
        assert not self.heard, "\n".join(self.heard)


_CLOSING = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"


def client_connection(data: bytes) -> None:
    """Whatever a client sends, it gets HTTP or nothing, and is not kept when it stops."""
    _, cuts = pieces(data)
    with _Faults():
        world = World(idle_timeout=75, head_timeout=60, body_timeout=120)
        client, answered = world.client(), 0
        for piece in cuts:
            if client.closing or client.half_closed:
                break
            client.give(piece)
            while answered < world.dials:
                server = world.server(answered)
                answered += 1
                if server.side is not None and not server.closing:
                    server.give(_CLOSING)
        answer = client.took()
        assert not answer or answer.startswith(b"HTTP/1."), answer[:80]
        assert answer.count(b"HTTP/1.1 400") <= 1, "one refusal ends a connection"
        world.clock.pump([5] * 40)
        assert client.closing or client.aborted or client.half_closed, "an idle client is kept"


class _Reader:
    """A client that reads answers as llhttp does."""

    def __init__(self) -> None:
        self.said: list[tuple[int, bytes]] = []
        self.complete = 0
        self.parser = httptools.HttpResponseParser(self)

    def on_message_begin(self) -> None:
        self.said.append((0, b""))

    def on_headers_complete(self) -> None:
        self.said[-1] = (self.parser.get_status_code(), b"")

    def on_body(self, piece: bytes) -> None:
        status, body = self.said[-1]
        self.said[-1] = (status, body + piece)

    def on_message_complete(self) -> None:
        self.complete += 1


def _read(data: bytes) -> list[tuple[int, bytes]]:
    """(status, body) of the answers in what a client got."""
    reader = _Reader()
    reader.parser.feed_data(data)
    assert reader.complete == len(reader.said), f"a client waits for more: {data!r}"
    return reader.said


def _answered(cuts: Iterator[bytes]) -> tuple[bytes, bool]:
    """What a client sees of a server's answer that comes in these pieces, and whether it was cut."""
    world = World()
    client = world.client()
    client.give(b"GET /v1/x HTTP/1.1\r\nHost: x\r\n\r\n")
    server = world.server()
    for piece in cuts:
        if server.closing or server.aborted:
            break
        server.give(piece)
    if server.side is not None:
        server.lose()
    world.clock.pump([5] * 10)
    assert world.outcomes or world.errors, "the exchange never ends"
    return client.took(), client.aborted


def answer(data: bytes) -> None:
    """A complete answer is the same however the network cuts it; another one is never passed off as complete."""
    body, cuts = pieces(data)
    with _Faults():
        whole, cut = _answered(iter([body]) if body else iter(()))
        sliced, cut_too = _answered(cuts)
    assert cut == cut_too, "whether it is complete depends on the slicing"
    if not cut:
        assert _read(whole) == _read(sliced), (whole, sliced)
    for one in (whole, sliced):
        assert not one or one.startswith(b"HTTP/1."), one[:80]


# -- streams -----------------------------------------------------------------------------------------------


def stream(data: bytes) -> None:
    """The end of an event and the numbers are found whatever the slicing; nothing grows, and no number is nonsense."""
    body, cuts = pieces(data)
    whole, sliced = Tail(), Tail()
    scans = StreamScanner(), StreamScanner()
    whole.feed(body)
    scans[0].feed(body)
    for piece in cuts:
        sliced.feed(piece)
        scans[1].feed(piece)
        assert len(scans[1].carry) <= LINE_BOUND + LINE_TAIL + len(piece)
    assert whole.clean is sliced.clean
    lines = scans[0].lines()
    assert lines == scans[1].lines()
    for usage in (from_lines(lines), from_document(body), from_document(body, "/infill"), from_fragment(body)):
        for name, value in asdict(usage).items() if usage is not None else ():
            assert math.isfinite(value) and -1 <= value < 2**63, (name, value)


# -- configuration and state -------------------------------------------------------------------------------


def config(data: bytes) -> None:
    """Any text is a configuration or a ConfigError that says where; never anything else."""
    text = data.decode("utf-8", "replace")
    try:
        loaded = load([ConfigText("fuzz.yaml", text)], {"HOME": "/root"})
    except ConfigError as error:
        assert error.problems and str(error)
        return
    for warning in loaded.warnings:
        str(warning)


def state(data: bytes) -> None:
    """What an earlier program left is read or refused."""
    try:
        unpack(data)
    except ValueError:
        pass


# -- all of them -------------------------------------------------------------------------------------------

_HEAD = b"POST /v1/x HTTP/1.1\r\nHost: x\r\n"
_PART = b'--XX\r\nContent-Disposition: form-data; name="model"\r\n\r\nkiwi\r\n'
_CONFIG = b"""macros: {m: "-m x"}
models:
  owl: {cmd: "srv ${m} -p ${PORT}", aliases: [o], ttl: 5m, filters: {stripParams: "a, b", setParams: {t: 1}}}
  bee: {cmd: |
    srv --port ${PORT}
    , concurrencyLimit: 2, stall: {after: 1m}}
groups: {g: {members: [owl], swap: false}}
hooks: {on_startup: {preload: [owl]}}
"""
_MATRIX = b"""models: {a: {cmd: x, proxy: "http://h:1"}, b: {cmd: y, proxy: "http://h:2"}}
matrix: {vars: {x: a, y: b}, sets: {s: "x & y", t: "(x | y)"}, evict_costs: {x: 3}}
"""
_EVENT = b'data: {"usage":{"prompt_tokens":3,"completion_tokens":5}}\n\n'

TARGETS = {
    target.name: target
    for target in (
        Target(
            "json",
            json_body,
            (b'{"model":"a","stream":true,"messages":[{"a":"\\u0041"}]}', b'{"mod\\u0065l": null , "a":[1,2,{}]}'),
            (b'"model"', b'"stream"', b"\\u", b"null", b"true", b"\xef\xbb\xbf", b'{"', b"}", b"[", b"\\"),
        ),
        Target(
            "multipart",
            multipart,
            (b"\x00" + _PART + b"--XX--\r\n", b"\x03" + _PART + _PART.replace(b'"model"', b"stream") + b"--XX--"),
            (b"\r\n--XX", b"--XX--", b"Content-Disposition: form-data", b"; name=", b"; filename=", b"model", b"\r\n"),
        ),
        Target("form", form, (b"model=a+b&stream=true", b"x&model"), (b"model", b"&", b"=", b"%6d", b"+", b";")),
        Target(
            "headers",
            headers,
            (_HEAD + b"Connection: close, X-A\r\nX-A: 1\r\nContent-Length: 3", _HEAD + b"Transfer-Encoding: chunked"),
            (b"Connection: ", b"Upgrade: ", b"Transfer-Encoding", b"Content-Length: ", b"Host: ", b"chunked", b"TE"),
        ),
        Target(
            "front",
            client_connection,
            (
                b"\x00" + _HEAD + b"Content-Length: 3\r\n\r\nabcGET /health HTTP/1.1\r\nHost: x\r\n\r\n",
                b"\x01" + _HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
                b"\x05" + _HEAD + b"Expect: 100-continue\r\nContent-Length: 1\r\n\r\nx",
            ),
            (b"\r\n\r\n", b"Content-Length: ", b"Transfer-Encoding: chunked\r\n", b"Connection: upgrade\r\n", b"0\r\n"),
        ),
        Target(
            "answer",
            answer,
            (
                b"\x00HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
                b"\x01HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX: y\r\n\r\n",
                b"\x07HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 204 No Content\r\n\r\n",
            ),
            (b"HTTP/1.1 ", b"\r\n\r\n", b"Content-Length: ", b"Transfer-Encoding: chunked", b"Connection: keep-alive"),
        ),
        Target(
            "stream",
            stream,
            (b"\x00" + _EVENT, b"\x04" + _EVENT.replace(b"\n", b"\r\n") + b"data: [DONE]\n\n"),
            (b"data:", b"\n\n", b'"usage":', b'"timings":{', b'"metrics":', b'"prompt_n":', b"1e999", b"event: "),
        ),
        Target(
            "config",
            config,
            (_CONFIG, _MATRIX, b"peers: {p: {proxy: http://h, models: [a]}}\nselectors: {s: {targets: [a]}}\n"),
            (b"models:", b"${", b"}", b"cmd: ", b"<<: *a", b"&a", b"!!", b"[", b"macros", b"groups", b"ttl: ", b"- "),
        ),
        Target("state", state, (b'{"format":1,"servers":[],"connections":[]}',), (b'"logs":', b'"keeper":', b"null")),
    )
}
