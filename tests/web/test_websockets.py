"""Websockets on the model routes: which model they are for, what a client sees if there is none, and their lease."""

from __future__ import annotations

import json

from attrs import evolve
from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config import ApiKey, Secret, Selector
from llamaswap.errors import StartFailed
from llamaswap.proxy.bodies import BytesBody
from llamaswap.proxy.exchange import Exchange, RequestHead
from llamaswap.proxy.tunnel import ClientPipe
from llamaswap.web.auth import Authenticator
from llamaswap.web.head_facts import Authenticated
from llamaswap.web.key_access import KeyAccess
from llamaswap.web.websockets import EARLY_LIMIT, EARLY_TOGETHER, IDLE_TIME, NAMING_TIME
from llamaswap.wire.headers import ResponseHeaders
from llamaswap.wire.websocket import BINARY, CLOSE, PING, PONG, TEXT, MessageReader, frame
from tests.proxy.doubles import Wire
from tests.web.pipeline import FakeSink, Stage, config, model

UPGRADE = (
    (b"Host", b"me"),
    (b"Connection", b"Upgrade"),
    (b"Upgrade", b"websocket"),
    (b"Sec-WebSocket-Key", b"dGhlIHNhbXBsZSBub25jZQ=="),
    (b"Sec-WebSocket-Extensions", b"permessage-deflate"),
)


def event(**members):
    return frame(TEXT, json.dumps(members).encode(), masked=True)


class PipeSink(FakeSink):
    """Hands its connection over, as that of a client does."""

    def __init__(self, wire):
        super().__init__()
        self.wire = wire

    def upgrade(self, status_line_and_head):
        self.wire.write(status_line_and_head)
        self.pipe = ClientPipe(self.wire)
        return self.pipe


class Opened:
    """A client that asks for a websocket."""

    def __init__(self, stage, target, *headers, drop=b"", body=b""):
        self.wire = Wire()
        self.sink = PipeSink(self.wire)
        sent = [header for header in (*UPGRADE, *headers) if header[0] != drop]
        head = RequestHead(b"GET", target, sent)
        self.exchange = Exchange(head, BytesBody(body), self.sink, "1.2.3.4", 99.5)
        self.done = []
        stage.inference.serve(self.exchange).addBoth(self.done.append)

    def send(self, data):
        self.sink.pipe.received(data)

    def leave(self):
        self.exchange.client_left()
        self.sink.pipe.lost(Failure(ConnectionLost()))

    def frames(self):
        """What came behind the handshake."""
        data = self.wire.took()
        data = data.partition(b"\r\n\r\n")[2] if data.startswith(b"HTTP") else data
        found = []
        while data:
            size, start = data[1] & 127, 2
            if size == 126:
                size, start = int.from_bytes(data[2:4], "big"), 4
            found.append((data[0] & 15, data[start : start + size]))
            data = data[start + size :]
        return found


class FirstEventTests(SynchronousTestCase):
    def setUp(self):
        self.stage = Stage()

    def open(self, target=b"/v1/realtime", *headers):
        self.client = Opened(self.stage, target, *headers)
        return self.client

    def joined(self):
        """What the server gets once it has accepted the handshake."""
        server = Wire()
        self.client.exchange.sink.upgrade(b"HTTP/1.1 101 of the server").protocol = server.side = _Collects()
        return MessageReader(EARLY_LIMIT).feed(server.side.data)

    def test_the_model_of_the_query_needs_no_event(self):
        self.open(b"/v1/realtime?model=al")
        forwarding = self.stage.forwarding
        self.assertEqual((forwarding.upstream.name, forwarding.head.target), ("alpha", b"/v1/realtime?model=al"))
        self.assertEqual(forwarding.header(b"sec-websocket-extensions"), b"permessage-deflate")
        self.assertEqual(self.client.wire.took(), b"")

    def test_the_first_session_update_names_the_model(self):
        client = self.open(b"/v1/realtime", (b"Sec-WebSocket-Protocol", b"other, realtime"))
        head = client.wire.value()
        self.assertIn(b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n", head)
        self.assertIn(b"Sec-WebSocket-Protocol: realtime\r\n", head)
        self.assertEqual(json.loads(client.frames()[0][1])["type"], "session.created")
        client.send(frame(BINARY, b"sound", masked=True) + event(type="response.create")[:5])
        self.assertEqual(self.stage.forwarder.forwarded, [])
        client.send(event(type="response.create")[5:] + event(type="session.update", session={"model": "al"}))
        client.send(event(type="more"))
        forwarding = self.stage.forwarding
        self.assertEqual(forwarding.upstream.name, "alpha")
        self.assertIsNone(forwarding.header(b"sec-websocket-extensions"))
        sent = self.joined()
        self.assertEqual([opcode for opcode, _ in sent], [BINARY, TEXT, TEXT, TEXT])
        self.assertEqual(json.loads(sent[2][1])["session"], {"model": "al"})
        self.assertEqual(client.frames(), [])

    def test_the_event_names_the_model_as_its_server_does(self):
        self.open().send(event(type="session.update", model="beta"))
        self.assertEqual(json.loads(self.joined()[0][1])["model"], "beta-up")

    def test_a_message_that_is_still_arriving_is_passed_on_whole(self):
        late = event(type="input", audio="x" * 300)
        self.open().send(event(type="session.update", model="alpha") + late[:150])
        server = _Collects()
        self.client.exchange.sink.upgrade(b"").protocol = server
        self.client.send(late[150:])
        self.assertEqual(len(MessageReader(EARLY_LIMIT).feed(server.data)), 2)

    def test_a_session_update_without_a_model_is_an_error_event(self):
        self.open().send(event(type="session.update", session={}))
        (_, _), (kind, text), (ending, reason) = self.client.frames()
        self.assertEqual((kind, json.loads(text)["type"]), (TEXT, "error"))
        self.assertIn("no model id", json.loads(text)["error"]["message"])
        self.assertEqual((ending, reason[:2]), (CLOSE, (1008).to_bytes(2, "big")))
        self.assertTrue(self.client.wire.closing)
        self.assertEqual(self.client.done, [None])

    def test_a_default_model_serves_a_session_update_without_one(self):
        routing = evolve(config().routing, default_model="alpha")
        self.stage = Stage(config=config(routing=routing))
        self.open().send(event(type="session.update", session={}))
        self.assertEqual(self.stage.forwarding.upstream.name, "alpha")

    def test_a_default_model_serves_a_session_update_without_a_session(self):
        routing = evolve(config().routing, default_model="beta")
        for members in ({}, {"session": None}, {"session": "text"}):
            self.stage = Stage(config=config(routing=routing))
            self.open().send(event(type="session.update", **members))
            self.assertEqual(self.stage.forwarding.upstream.name, "beta", members)
            self.assertEqual(json.loads(self.joined()[0][1])["model"], "beta-up")

    def test_events_behind_a_close_or_a_malformed_frame_are_ignored(self):
        update = event(type="session.update", model="alpha")
        for ending in (frame(CLOSE, b"", masked=True), b"\xff\xff\xff\xff"):
            self.open().send(ending + update)
            self.client.send(update)
            self.assertEqual((self.client.done, self.stage.forwarder.forwarded), ([None], []))

    def test_the_next_target_of_a_selector_finds_its_own_name_in_the_event(self):
        routing = config().routing
        safe = Selector("both", strategy="failover", targets=("alpha", "beta"))
        self.stage = Stage(config=config(routing=routing))
        self.stage.router.config.selectors["both"] = safe
        self.open().send(event(type="session.update", model="both"))
        self.stage.forwarding.begin(status=503)
        self.assertEqual(self.stage.forwarder.forwarded[-1].upstream.name, "beta")
        self.assertEqual(json.loads(self.joined()[0][1])["model"], "beta-up")

    def test_a_load_that_fails_is_an_error_event(self):
        self.stage = Stage(refusal=StartFailed("alpha", "no such file"))
        self.open().send(event(type="session.update", model="alpha"))
        (_, _), (_, text), (_, reason) = self.client.frames()
        self.assertIn("no such file", json.loads(text)["error"]["message"])
        self.assertEqual(reason[:2], (1011).to_bytes(2, "big"))
        self.assertEqual([outcome for outcome, _ in self.stage.witness.endings], ["refused"])

    def test_a_server_without_this_websocket_is_an_error_event(self):
        self.open().send(event(type="session.update", model="alpha"))
        sink = self.client.exchange.sink
        sink.head(404, b"Not Found", ResponseHeaders([]), raw=False, data=b'{"error": {"mess')
        sink.writer()(b'age": "no such path"}}')
        sink.finish()
        self.assertEqual(json.loads(self.client.frames()[1][1])["error"], {"message": "no such path"})

    def test_pings_are_answered_while_no_model_is_named(self):
        self.open().send(frame(PING, b"42", masked=True))
        self.assertEqual(self.client.frames()[1:], [(PONG, b"42")])

    def test_a_client_that_names_no_model_is_closed_in_time(self):
        self.open()
        self.stage.clock.advance(NAMING_TIME)
        self.assertEqual(self.client.frames()[-1][0], CLOSE)
        self.assertEqual((self.client.done, self.client.wire.closing), ([None], True))

    def test_a_client_that_leaves_ends_the_wait(self):
        self.open().leave()
        self.assertEqual((self.client.done, self.stage.clock.getDelayedCalls()), ([None], []))
        self.stage.router.auto = False
        self.open().send(event(type="session.update", model="alpha"))
        self.client.leave()
        self.assertEqual((self.client.done, self.stage.router.asked[-1].cancelled), ([None], True))

    def test_a_client_that_closes_ends_the_wait(self):
        self.open().send(frame(CLOSE, b"", masked=True))
        self.assertEqual((self.client.done, self.client.wire.closing), ([None], True))

    def test_too_much_before_the_model_is_ready_ends_it(self):
        self.stage.router.auto = False
        self.open().send(event(type="session.update", model="alpha"))
        sound = frame(BINARY, bytes(EARLY_LIMIT // 2), masked=True)
        self.client.send(sound)
        self.client.send(sound)
        self.assertEqual(self.client.frames()[-1][1][:2], (1009).to_bytes(2, "big"))
        self.assertEqual(self.client.done, [None])

    def test_events_of_all_clients_together_are_bounded(self):
        self.stage.router.auto = False
        sound, clients = frame(BINARY, bytes(EARLY_LIMIT - 100), masked=True), []
        for _ in range(EARLY_TOGETHER // len(sound) + 1):
            clients.append(self.open())
            self.client.send(sound)
        self.assertEqual(self.client.frames()[-1][1][:2], (1013).to_bytes(2, "big"))
        for client in clients:
            client.leave()
        self.open().send(sound)
        self.assertFalse(self.client.wire.closing)

    def test_malformed_frames_end_it(self):
        self.open().send(b"\xff\xff\xff\xff")
        self.assertEqual(self.client.frames()[-1][1][:2], (1002).to_bytes(2, "big"))
        for text in (b"[" * 100_000, b"\xff", b"[]", b'"session.update"'):
            self.open().send(frame(TEXT, text, masked=True))
            self.assertFalse(self.client.wire.closing, text[:10])

    def test_a_key_is_checked_before_the_websocket_is_accepted(self):
        self.stage.keys[b"authorization"] = b"Bearer mine"
        self.assertEqual((self.open().sink.status, self.client.wire.value()), (401, b""))
        limited = KeyAccess("child", key=ApiKey(Secret("x"), "child", rpm=5))
        self.stage.inference.authenticate = lambda head: Authenticated(frozenset(), limited)
        self.assertEqual((self.open().sink.status, self.client.wire.value()), (403, b""))

    def test_a_handshake_without_a_key_is_refused(self):
        self.client = Opened(self.stage, b"/v1/realtime", drop=b"Sec-WebSocket-Key")
        self.assertEqual((self.client.sink.status, self.client.wire.value()), (400, b""))

    def test_a_handshake_with_a_body_is_refused(self):
        self.client = Opened(self.stage, b"/v1/realtime", body=b"12345")
        self.assertEqual((self.client.sink.status, self.client.wire.value()), (400, b""))

    def test_pages_of_other_sites_open_no_websocket(self):
        cors = evolve(config().security.cors, allow_origins=("https://page",))
        self.stage = Stage(config=config(security=evolve(config().security, cors=cors)))
        self.assertEqual(self.open(b"/v1/realtime", (b"Origin", b"https://evil")).sink.status, 403)


class _Collects:
    """A protocol that keeps what it gets."""

    def __init__(self):
        self.data = b""

    def dataReceived(self, data):
        self.data += data


class PageKeyTests(SynchronousTestCase):
    """A page can send a key only among the protocols that it offers."""

    OFFERED = b"realtime, openai-insecure-api-key.%b, openai-beta.realtime-v1"

    def open(self, key, target=b"/v1/realtime?model=alpha", headers=(), **more):
        self.stage = Stage(states={"alpha": "ready"}, config=config(**more))
        keys = (ApiKey(Secret("sk-page"), "page"), ApiKey(Secret("sk-other"), "other", models=("beta",)))
        self.stage.inference.authenticate = Authenticator(lambda: keys)
        return Opened(self.stage, target, (b"Sec-WebSocket-Protocol", self.OFFERED % key), *headers)

    def sent(self):
        return self.stage.forwarding.header(b"sec-websocket-protocol")

    def test_the_key_of_a_page_is_accepted_and_not_forwarded(self):
        self.open(b"sk-page")
        self.assertEqual(self.sent(), b"realtime, openai-beta.realtime-v1")
        self.assertEqual(self.stage.witness.facts.key_name, "page")
        self.assertNotIn("sk-page", str(self.stage.witness.facts.headers))

    def test_protocols_on_several_lines_are_one_list(self):
        self.open(b"sk-page")
        lines = ((b"Sec-WebSocket-Protocol", b"chat"), (b"sec-websocket-protocol", self.OFFERED % b"sk-page"))
        Opened(self.stage, b"/v1/realtime?model=alpha", *lines)
        sent = [value for name, value in self.stage.forwarder.forwarded[-1].head.headers if name.lower() == lines[1][0]]
        self.assertEqual(sent, [b"chat", b"realtime, openai-beta.realtime-v1"])
        accepted = Opened(self.stage, b"/v1/realtime", *lines).wire.took()
        self.assertIn(b"Sec-WebSocket-Protocol: realtime\r\n", accepted)

    def test_no_key_of_several_is_forwarded(self):
        for first, second in ((b"sk-page", b"sk-other"), (b"sk-wrong", b"sk-page")):
            self.open(first + b", openai-insecure-api-key." + second, headers=((b"X-Api-Key", b"sk-page"),))
            self.assertEqual(self.sent(), b"realtime, openai-beta.realtime-v1")

    def test_a_wrong_key_of_a_page_is_refused(self):
        self.assertEqual(self.open(b"sk-wrong").sink.status, 401)
        self.assertEqual(self.open(b"sk-other").sink.status, 403)

    def test_the_key_of_a_page_goes_to_a_server_that_has_it_too(self):
        self.open(b"sk-page", b"/v1/realtime?model=own", models=[model("own", cmd="serve --api-key sk-page")])
        self.assertIn(b"sk-page", self.sent() or b"")

    def test_a_websocket_that_is_accepted_first_chooses_no_key_as_its_protocol(self):
        for offered, chosen in (
            (self.OFFERED % b"sk-page", b"realtime"),
            (b"openai-insecure-api-key.sk-page, chat", b"chat"),
            (b"openai-insecure-api-key.sk-page", None),
        ):
            self.open(b"sk-page")
            client = Opened(self.stage, b"/v1/realtime", (b"Sec-WebSocket-Protocol", offered))
            head = client.wire.took().partition(b"\r\n\r\n")[0]
            self.assertNotIn(b"sk-page", head)
            line = b"Sec-WebSocket-Protocol: " + chosen if chosen else b"HTTP/1.1 101"
            self.assertIn(line, head)
            self.assertEqual(b"Sec-WebSocket-Protocol" in head, bool(chosen))


class ResponsesTests(SynchronousTestCase):
    def open(self, target, **router):
        self.stage = Stage(**router)
        return Opened(self.stage, target)

    def refused(self, target, **router):
        client = self.open(target, **router)
        self.assertEqual((client.sink.status, client.done), (426, [None]))
        headers = [client.sink.header(name) for name in (b"upgrade", b"connection")]
        self.assertEqual(headers, [b"websocket", b"Upgrade"])
        return client.sink.json["error"]["message"]

    def test_without_a_model_there_is_none(self):
        self.assertIn("names no model", self.refused(b"/v1/responses"))
        self.assertEqual(self.stage.router.asked, [])

    def test_a_model_that_is_not_loaded_is_not_loaded_for_it(self):
        self.assertIn("not loaded", self.refused(b"/v1/responses?model=alpha"))
        self.assertEqual(self.stage.router.asked, [])

    def test_a_server_that_has_it_is_asked_and_one_that_has_not_is_426(self):
        for status in (200, 400, 404, 405, 426, 500, 503):
            client = self.open(b"/v1/responses?model=alpha", states={"alpha": "ready"})
            self.assertEqual(self.stage.forwarding.header(b"upgrade"), b"websocket")
            self.stage.forwarding.begin(status=status)
            self.assertEqual(client.sink.status, 426)
            self.assertIn(str(status), client.sink.json["error"]["message"])
            self.assertIn("POST /v1/responses", client.sink.json["error"]["message"])

    def test_a_default_model_is_asked(self):
        routing = evolve(config().routing, default_model="alpha")
        self.open(b"/v1/responses", config=config(routing=routing), states={"alpha": "ready"})
        self.assertEqual(self.stage.forwarding.upstream.name, "alpha")

    def test_a_limited_key_uses_post_which_is_counted(self):
        stage = Stage(states={"alpha": "ready"})
        limited = KeyAccess("child", key=ApiKey(Secret("x"), "child", rpm=5))
        stage.inference.authenticate = lambda head: Authenticated(frozenset(), limited)
        self.assertEqual(Opened(stage, b"/v1/responses?model=alpha").sink.status, 426)

    def test_a_peer_is_asked_too(self):
        client = self.open(b"/v1/responses?model=lab/delta")
        self.stage.forwarding.begin(status=426)
        self.assertEqual(client.sink.status, 426)


class LeaseTests(SynchronousTestCase):
    def setUp(self):
        self.stage = Stage(states={"alpha": "ready"})
        self.client = Opened(self.stage, b"/v1/realtime?model=alpha")
        self.passing = self.stage.forwarding.passing
        self.passing(b"")

    def held(self):
        return sum(one.lease.releases == 0 for one in self.stage.router.asked)

    def test_an_idle_websocket_does_not_keep_its_model(self):
        self.assertEqual(self.held(), 1)
        self.stage.clock.advance(IDLE_TIME - 1)
        self.passing(event(type="input"))
        self.stage.clock.advance(IDLE_TIME - 1)
        self.assertEqual(self.held(), 1)
        self.stage.clock.advance(1)
        self.assertEqual(self.held(), 0)

    def test_pings_are_no_messages(self):
        for _ in range(3):
            self.stage.clock.advance(IDLE_TIME / 2)
            self.passing(frame(PING, b"", masked=True))
        self.assertEqual(self.held(), 0)
        self.passing(frame(PONG, b""))
        self.assertEqual(self.held(), 0)

    def test_the_next_message_keeps_it_again(self):
        self.stage.clock.advance(IDLE_TIME)
        self.passing(event(type="input"))
        self.assertEqual(self.held(), 1)
        self.stage.clock.advance(IDLE_TIME)
        self.assertEqual(self.held(), 0)

    def test_its_end_releases_what_it_holds(self):
        for idle in (False, True):
            self.setUp()
            if idle:
                self.stage.clock.advance(IDLE_TIME)
            self.stage.forwarding.result.callback(None)
            self.passing(event(type="late"))
            self.assertEqual((self.held(), self.stage.clock.getDelayedCalls()), (0, []))

    def test_a_websocket_of_upstream_holds_its_lease_as_before(self):
        stage = Stage(states={"alpha": "ready"})
        stage.upstream(b"GET", b"/upstream/alpha/ws", b"", *UPGRADE)
        self.assertIsNone(stage.forwarding.passing)
