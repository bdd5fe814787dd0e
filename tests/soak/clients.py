"""Clients that ask for whatever there is, in every shape, and judge how each request ended.

A request ends in exactly one way: with the whole answer it was due, with an error that says what happened, with a cut
that its client can see, or because the client itself left. Everything else is a fault: an end that looks whole and is
not, an answer of another model, a connection closed without a word, no end at all.
"""

import http.client
import json
import socket
import threading
import time
from collections import Counter

PATIENCE = 60.0  # seconds after which a request counts as forgotten
TOKENS = 6  # chunks of an engine's streamed answer; see world.py
BIG = 300_000
BLOCK = b"0123456789abcdef"


class Fault(Exception):
    """A request that ended as no request may end."""


class Tally:
    """What became of the requests: counts by kind and end, and the first faults in words."""

    def __init__(self):
        self.ends = Counter()
        self.faults = []
        self.slowest = 0.0
        self._lock = threading.Lock()

    def note(self, kind, end, seconds):
        with self._lock:
            self.ends[kind, end] += 1
            self.slowest = max(self.slowest, seconds)

    def fault(self, kind, words):
        with self._lock:
            self.ends[kind, "FAULT"] += 1
            if len(self.faults) < 50:
                self.faults.append(f"{kind}: {words}")

    def total(self, *ends):
        return sum(count for (_, end), count in self.ends.items() if not ends or end in ends)


class Client(threading.Thread):
    """One client: asks, judges, and asks again, until `over` is set."""

    def __init__(self, number, port, chance, tally, models):
        super().__init__(daemon=True, name=f"client-{number}")
        self.port, self.chance, self.tally, self.models = port, chance, tally, models
        self.over = threading.Event()
        self.resting = threading.Event()  # set: ask nothing for now
        self.idle = threading.Event()
        self.kept = None

    def run(self):
        kinds = [
            self.plain,
            self.plain,
            self.streamed,
            self.streamed,
            self.upload,
            self.big,
            self.listing,
            self.leaving,
            self.events,
        ]
        while not self.over.is_set():
            if self.resting.is_set():
                self.drop()
                self.idle.set()
                time.sleep(0.02)
                continue
            self.idle.clear()
            ask = self.chance.choice(kinds)
            began = time.monotonic()
            try:
                end = ask()
            except Fault as fault:
                self.tally.fault(ask.__name__, str(fault))
                self.drop()
            except TimeoutError:
                self.tally.fault(ask.__name__, f"no end after {PATIENCE:.0f} s")
                self.drop()
            except Exception as error:  # a fault of the client's own must not end the soak unseen
                self.tally.fault(ask.__name__, f"{type(error).__name__}: {error}")
                self.drop()
            else:
                self.tally.note(ask.__name__, end, time.monotonic() - began)
            time.sleep(self.chance.random() * 0.05)
        self.drop()
        self.idle.set()

    # -- the shapes of requests ----------------------------------------------------------------------------

    def plain(self):
        model = self.chance.choice(self.models)
        status, body = self.exchange(
            "POST", self.chance.choice(("/v1/chat/completions", "/v1/embeddings")), chat(model)
        )
        if status == 200:
            answer = parsed(body)
            expect(answer.get("model") == model, f"{model} was asked and {answer.get('model')} answered")
            words = answer["choices"][0]["message"]["content"]
            expect(words == "tok " * TOKENS, f"an answer that is not the known one: {words[:80]!r}")
            return "whole"
        return refused(status, body)

    def streamed(self):
        model = self.chance.choice(self.models)
        path = self.chance.choice(("/v1/chat/completions", "/v1/messages"))
        status, body, whole = self.stream(path, chat(model, stream=True))
        if status != 200:
            return refused(status, body)
        return judge_stream(model, body, whole)

    def upload(self):
        """A body comes out at the engine as it went in; the echo is checked byte for byte."""
        model = self.chance.choice(self.models)
        text = self.chance.choice("abcdef") * self.chance.choice((10, 5_000, 200_000))
        status, body = self.exchange("POST", f"/upstream/{model}/echo", {"model": model, "text": text})
        if status == 200:
            seen = parsed(body)
            sent = {"model": model, "text": text}
            expect(json.loads(seen["body"]) == sent, f"{seen['length']} bytes arrived that were not sent")
            return "whole"
        return refused(status, body)

    def big(self):
        model = self.chance.choice(self.models)
        chunked = self.chance.choice((0, 1))
        status, body, whole = self.stream(f"/upstream/{model}/big?bytes={BIG}&chunked={chunked}", None)
        if status != 200:
            return refused(status, body)
        if whole:
            expect(len(body) == BIG and body[: len(BLOCK)] == BLOCK, f"a whole answer of {len(body)} bytes")
            return "whole"
        return "cut"

    def listing(self):
        status, body = self.exchange("GET", self.chance.choice(("/v1/models", "/running", "/health", "/readyz")), None)
        expect(status == 200, f"{status} {body[:200]!r}")
        return "whole"

    def leaving(self):
        """A client that leaves in the middle, wherever that is."""
        model = self.chance.choice(self.models)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            ask(connection, "POST", "/v1/chat/completions", chat(model, stream=True))
            connection.sock.settimeout(self.chance.random() * 0.4 + 0.001)
            try:
                while connection.sock.recv(self.chance.choice((1, 200, 4096))) and self.chance.random() < 0.7:
                    pass
            except TimeoutError:
                pass
            except OSError:
                return "cut"
        finally:
            connection.close()
        return "left"

    def events(self):
        """An event client: some read what comes, some read nothing, all leave after a moment."""
        with socket.socket() as wire:
            wire.settimeout(PATIENCE)
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            wire.connect(("127.0.0.1", self.port))
            wire.sendall(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            if self.chance.random() < 0.5:
                begin = wire.recv(4096)
                expect(begin.startswith(b"HTTP/1.1 200 "), f"the event stream began with {begin[:60]!r}")
            time.sleep(self.chance.random() * 0.5)
        return "left"

    # -- sending and receiving -----------------------------------------------------------------------------

    def exchange(self, method, path, body):
        status, data, whole = self.stream(path, body, method)
        if not whole:
            if status == 200:
                return 0, b""  # cut where its client sees it
            raise Fault(f"{path}: an error answer ({status}) that was cut")
        return status, data

    def stream(self, path, body, method=None):
        """(status, body, whether it came to its proper end)."""
        connection = self.kept
        if connection is None or self.chance.random() < 0.3:
            self.drop()
            connection = self.kept = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
            connection.connect()
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ask(connection, method or ("GET" if body is None else "POST"), path, body)
        try:
            answer = connection.getresponse()
        except (http.client.HTTPException, ConnectionError) as error:
            self.drop()
            raise Fault(f"{path}: no answer at all ({type(error).__name__})")
        data = bytearray()
        try:
            while piece := answer.read1(65536):
                data += piece
        except (http.client.HTTPException, ConnectionError):
            self.drop()
            return answer.status, bytes(data), False
        if answer.length:  # what was announced did not come
            self.drop()
            return answer.status, bytes(data), False
        if answer.will_close:
            self.drop()
        answer.close()
        return answer.status, bytes(data), True

    def drop(self):
        kept, self.kept = self.kept, None
        if kept is not None:
            kept.close()


def ask(connection, method, path, body):
    data = None if body is None else json.dumps(body).encode()
    try:
        connection.request(method, path, data, {"Content-Type": "application/json"} if data else {})
    except ConnectionError as error:
        raise Fault(f"{path}: the request could not be sent ({type(error).__name__})")


def chat(model, **more):
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], **more}


def expect(truth, words):
    if not truth:
        raise Fault(words)


def parsed(body):
    try:
        return json.loads(body)
    except ValueError:
        raise Fault(f"a whole answer that is no JSON: {body[:120]!r}")


def refused(status, body):
    """An error must say in the known envelope what happened."""
    if status == 0:
        return "cut"
    error = parsed(body).get("error")
    expect(isinstance(error, dict) and error.get("message"), f"{status} without an error's envelope: {body[:200]!r}")
    expect(status in (404, 429, 500, 502, 503), f"{status}: {error}")
    return f"refused {status}"


def judge_stream(model, body, whole):
    """A stream is whole with every token in order and its [DONE], or it was cut, or it ends in an error event."""
    events = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: ")]
    done = events[-1:] == [b"[DONE]"]
    failed = any(b'"error"' in event for event in events)
    numbers = [event for event in events if b'"tok' in event]
    for number, event in enumerate(numbers):
        expect(b'"tok%d ' % number in event, f"token {number} is {event[:100]!r}")
        expect(json.dumps(model).encode() in event, f"{model} was asked, another answered: {event[:100]!r}")
    if failed:
        expect(not whole or done, "an error event, and then an end that looks whole")
        return "error event" if whole else "error event, cut"
    if not whole:
        return "cut"
    expect(done and len(numbers) == TOKENS, f"an end that looks whole after {len(numbers)} tokens: {body[-200:]!r}")
    return "whole"
