"""Requests from a known model to the end of the response, whatever ends it."""

from __future__ import annotations

import gc
import json
import weakref

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.errors import (
    BadUpstream,
    ClientGone,
    ModelUnloaded,
    ReaderStalled,
    ServerVanished,
    StartFailed,
    TooManyRequests,
    UpstreamTruncated,
    UpstreamUnreachable,
)
from llamaswap.web.proxy_request import PIECES_JOINED, SMALL_PIECE
from tests.web.pipeline import ArrivingBody, Stage, config, model

CHAT = b"/v1/chat/completions"
MULTIPART = (b"Content-Type", b"multipart/form-data; boundary=XX")


def upload(model: str = "alpha", last: bool = False) -> bytes:
    named = b'--XX\r\nContent-Disposition: form-data; name="model"\r\n\r\n' + model.encode() + b"\r\n"
    file = b'--XX\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + b"\x00\xff" * 50 + b"\r\n"
    return (file + named if last else named + file) + b"--XX--\r\n"


def message(sink) -> str:
    return sink.json["error"]["message"]


class ServeTests(SynchronousTestCase):
    def setUp(self):
        self.stage = Stage()

    def test_a_request_is_carried_to_the_leases_server_and_the_lease_given_back(self):
        asked = self.stage.post({"model": "alpha"}, CHAT, (b"Accept-Encoding", b"br, gzip"))
        forwarding, lease = self.stage.forwarding, self.stage.router.asked[0].lease
        self.assertEqual(forwarding.upstream.endpoint.port, 9001)
        self.assertEqual(forwarding.header(b"x-forwarded-for"), b"1.2.3.4")
        self.assertEqual(forwarding.header(b"accept-encoding"), b"gzip")
        forwarding.begin(b"{}", headers=[(b"X-Req", b"7"), (b"Keep-Alive", b"x")])
        self.assertEqual(lease.releases, 0)
        idle = self.stage.handler.when_idle()
        self.assertNoResult(idle)
        forwarding.end()
        self.successResultOf(idle)
        self.assertEqual((lease.releases, asked.done, asked.sink.ending), (1, [None], "finished"))
        self.assertEqual(asked.sink.header(b"x-req"), b"7")
        self.assertIsNone(asked.sink.header(b"keep-alive"))
        witness = self.stage.witness
        self.assertEqual((witness.body, witness.endings), (b"{}", [("complete", None)]))
        self.assertEqual(self.stage.handler.active, 0)

    def test_facts_say_who_asked_for_what_and_when(self):
        self.stage.post({"model": "al", "stream": True}, b"/v1/completions", (b"X-Forwarded-For", b"9.9.9.9, 8.8.8.8"))
        facts = self.stage.witness.facts
        self.assertEqual(
            (facts.id, facts.method, facts.model, facts.requested, facts.remote_ip, facts.streaming),
            ("1", "POST", "alpha", "al", "9.9.9.9", True),
        )
        self.assertEqual((facts.started, facts.timestamp, facts.tracked, facts.metered), (99.5, 999_999.5, True, True))

    def test_a_get_is_tracked_and_not_metered(self):
        self.stage.ask(b"GET", b"/sdapi/v1/loras?model=alpha", b"", (b"Accept-Encoding", b"br"))
        facts = self.stage.witness.facts
        self.assertEqual((facts.tracked, facts.metered), (True, False))
        self.assertEqual(self.stage.forwarding.header(b"accept-encoding"), b"br")

    def test_refusal_is_sent_at_once_as_json(self):
        """http T100"""
        self.stage.router.refusal = TooManyRequests("alpha", 1)
        asked = self.stage.post({"model": "alpha", "stream": True}, CHAT, (b"Accept", b"text/plain"))
        self.assertEqual((asked.sink.status, asked.sink.header(b"retry-after")), (429, b"1"))
        self.assertEqual(asked.sink.json["error"]["code"], "concurrency_limit")

    def test_response_to_a_failed_start_has_its_cause(self):
        """http T091"""
        self.stage.router.auto = False
        asked = self.stage.post({"model": "beta"})
        self.stage.router.asked[0].settle(StartFailed("beta", "upstream command exited prematurely"))
        self.assertEqual(asked.sink.status, 500)
        self.assertEqual(message(asked.sink), "unspecific error: upstream command exited prematurely")

    def test_an_unload_ends_the_wait(self):
        self.stage.router.auto = False
        asked = self.stage.post({"model": "beta"})
        self.stage.router.asked[0].settle(ModelUnloaded("beta"))
        self.assertEqual(asked.sink.status, 503)

    def test_a_request_of_an_unloaded_model_is_refused_and_does_not_load_it_again(self):
        asked = self.stage.post({"model": "alpha"})
        lease = self.stage.router.asked[0].lease
        lease.process.unloaded = lease.process.lost = True
        self.stage.forwarding.result.errback(UpstreamUnreachable("alpha", "connection reset"))
        self.assertEqual((asked.sink.status, message(asked.sink)), (503, "unspecific error: model unloaded"))
        self.assertEqual((len(self.stage.router.asked), lease.releases), (1, 1))

    def test_response_to_an_unload_has_the_form_of_the_clients_api(self):
        asked = self.stage.post({"model": "alpha"}, b"/v1/messages")
        lease = self.stage.router.asked[0].lease
        lease.process.unloaded = lease.process.lost = True
        self.stage.forwarding.result.errback(UpstreamUnreachable("alpha", "connection reset"))
        told = json.loads(asked.sink.body)
        self.assertEqual((told["type"], told["error"]["message"]), ("error", "unspecific error: model unloaded"))

    def test_stream_cut_by_an_unload_ends_with_that_reason(self):
        asked = self.stage.post({"model": "alpha", "stream": True})
        self.stage.forwarding.begin(b"data: 1\n\n", kind=b"text/event-stream")
        self.stage.router.asked[0].lease.process.unloaded = True
        self.stage.forwarding.result.errback(UpstreamTruncated("alpha", "connection lost"))
        self.assertIn(b"alpha: answer cut short: the model was unloaded", asked.sink.body)

    def test_a_response_that_its_client_does_not_read_is_cut_for_others(self):
        asked = self.stage.post({"model": "alpha", "stream": True})
        lease = self.stage.router.asked[0].lease
        self.stage.forwarding.begin(b"data: 1\n\n", kind=b"text/event-stream")
        self.stage.forwarding.reader(5.0)
        self.stage.forwarding.reader(None)
        self.assertEqual(lease.stalled_since, [5.0, None])
        lease.interrupt(ReaderStalled(60.0, "beta"))
        self.assertEqual((asked.sink.ending, lease.releases), ("aborted", 1))
        self.assertTrue(self.stage.forwarding.stopped)

    def test_a_broken_connection_to_a_living_server_is_a_502_with_a_body(self):
        asked = self.stage.post({"model": "alpha"})
        self.stage.forwarding.result.errback(UpstreamUnreachable("alpha", "connection refused", sent=False))
        self.stage.clock.advance(1)
        self.assertEqual((asked.sink.status, message(asked.sink)), (502, "alpha: connection refused"))
        self.assertEqual(len(self.stage.router.asked), 1)
        self.assertEqual(self.stage.clock.getDelayedCalls(), [])

    def test_a_server_that_died_before_its_first_byte_is_replaced_once(self):
        """core V35"""
        asked = self.stage.post({"model": "alpha"})
        first = self.stage.router.asked[0].lease
        first.process.lost = True
        self.stage.forwarding.result.errback(UpstreamUnreachable("alpha", "connection reset"))
        self.assertEqual(first.releases, 1)
        again = self.stage.forwarder.forwarded[1]
        self.assertEqual(again.sent, b'{"model":"alpha"}')
        again.begin(b"{}")
        again.end()
        self.assertEqual((asked.sink.status, asked.sink.ending), (200, "finished"))
        self.assertEqual(self.stage.router.asked[1].lease.releases, 1)

    def test_a_server_whose_exit_is_heard_of_late_is_replaced_too(self):
        self.stage.post({"model": "alpha"})
        self.stage.forwarding.result.errback(UpstreamUnreachable("alpha", "connection reset"))
        self.stage.clock.advance(0.02)
        self.stage.router.asked[0].lease.process.lost = True
        self.stage.clock.advance(0.1)
        self.assertEqual(len(self.stage.forwarder.forwarded), 2)

    def test_request_without_a_response_waits_until_its_host_has_ended_and_goes_elsewhere(self):
        """It got 502 if a server of the host took more than a moment to end."""
        asked = self.stage.post({"model": "alpha"})
        process = self.stage.router.asked[0].lease.process
        process.unreachable = True
        self.stage.forwarding.result.errback(UpstreamUnreachable("alpha", "connection reset"))
        self.stage.clock.pump([0.1] * 20)
        self.assertEqual((asked.sink.status, asked.sink.ending), (0, ""))
        process.lost = True
        self.stage.clock.advance(0.1)
        self.assertEqual(len(self.stage.forwarder.forwarded), 2)

    def test_request_whose_host_answers_again_does_not_wait_for_its_end(self):
        asked = self.stage.post({"model": "alpha"})
        process = self.stage.router.asked[0].lease.process
        process.unreachable = True
        self.stage.forwarding.result.errback(UpstreamUnreachable("alpha", "connection reset"))
        self.stage.clock.pump([0.1] * 5)
        process.unreachable = False
        self.stage.clock.advance(0.1)
        self.assertEqual((asked.sink.status, len(self.stage.forwarder.forwarded)), (502, 1))

    def test_a_server_that_ends_between_its_readiness_and_the_grant_is_replaced_once(self):
        """core W15, core V57"""
        self.stage.router.auto = False
        asked = self.stage.post({"model": "alpha"})
        self.stage.router.asked[0].settle(ServerVanished("alpha"))
        self.stage.router.asked[1].grant()
        self.assertEqual(self.stage.forwarding.sent, b'{"model":"alpha"}')
        self.stage.forwarding.begin(b"{}")
        self.stage.forwarding.end()
        self.assertEqual((asked.sink.status, asked.sink.ending), (200, "finished"))

    def test_request_whose_server_vanishes_twice_gets_503(self):
        self.stage.router.auto = False
        asked = self.stage.post({"model": "alpha"})
        for turn in (0, 1):
            self.stage.router.asked[turn].settle(ServerVanished("alpha"))
        self.assertEqual((asked.sink.status, len(self.stage.router.asked)), (503, 2))

    def test_a_request_that_kills_its_server_twice_gets_an_error(self):
        asked = self.stage.post({"model": "alpha"})
        for turn in (0, 1):
            self.stage.router.asked[turn].lease.process.lost = True
            self.stage.forwarder.forwarded[turn].result.errback(UpstreamUnreachable("alpha", "connection reset"))
        self.assertEqual((asked.sink.status, len(self.stage.forwarder.forwarded)), (502, 2))
        self.assertEqual([acquisition.lease.releases for acquisition in self.stage.router.asked], [1, 1])

    def test_the_body_of_a_client_that_left_its_place_in_the_queue_is_freed_at_once(self):
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        stage = Stage(auto=False)
        asked = stage.post({"model": "alpha"})
        alive = weakref.ref(asked.exchange.body)
        asked.leave()
        del asked
        stage.router.asked.clear()
        stage.witnesses.seen.clear()
        self.assertIsNone(alive())

    def test_a_body_that_is_gone_is_not_sent_again(self):
        body = ArrivingBody(replayable=False)
        asked = self.stage.ask(b"POST", b"/v1/audio/transcriptions", body, MULTIPART)
        body.feed(upload())
        self.stage.router.asked[0].lease.process.lost = True
        self.stage.forwarding.result.errback(UpstreamUnreachable("alpha", "connection reset"))
        self.assertEqual((asked.sink.status, len(self.stage.forwarder.forwarded)), (502, 1))

    def test_malformed_response_is_a_502(self):
        asked = self.stage.post({"model": "alpha"})
        self.stage.forwarding.result.errback(BadUpstream("alpha", "garbage"))
        self.assertEqual(asked.sink.status, 502)

    def test_error_of_a_peer_that_is_down_has_the_form_of_the_clients_api(self):
        """http T099, core V92"""
        asked = self.stage.post({"model": "zeta"}, CHAT, (b"Accept", b"text/plain"))
        upstream = self.stage.forwarding.upstream
        self.stage.forwarding.result.errback(UpstreamUnreachable(upstream.where, "refused"))
        self.assertEqual((asked.sink.status, asked.sink.body), (502, b"llama-swap: peer proxy error: refused"))

    def test_a_request_that_peers_pass_around_is_refused_at_the_third_hop(self):
        """A peer that is oneself was asked 9,900 times by one request."""
        asked = self.stage.post({"model": "zeta"}, CHAT, (b"X-Llamaswap-Hops", b"1"))
        self.assertEqual(asked.sink.status, 0)
        self.assertIn((b"X-Llamaswap-Hops", b"2"), self.stage.forwarding.head.headers)
        refused = self.stage.post({"model": "zeta"}, CHAT, (b"X-Llamaswap-Hops", b"2"))
        self.assertEqual(refused.sink.status, 508)
        self.assertIn("loop detected", message(refused.sink))
        self.assertEqual(len(self.stage.forwarder.forwarded), 1)

    def test_peers_are_refused_while_closing(self):
        self.stage.handler.close()
        asked = self.stage.post({"model": "zeta"})
        self.assertEqual(asked.sink.status, 503)
        self.assertEqual(message(asked.sink), "unspecific error: peer proxy is shutting down")

    def test_our_own_fault_is_a_500_and_a_traceback_in_the_log(self):
        def broken(*_, **__):
            raise RuntimeError("secret")

        self.stage.forwarder.forward = broken
        asked = self.stage.post({"model": "alpha"})
        self.assertEqual((asked.sink.status, message(asked.sink)), (500, "internal error"))
        self.assertEqual(self.stage.router.asked[0].lease.releases, 1)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)


class CutResponseTests(SynchronousTestCase):
    """After the head: no client may take a cut response for a complete one."""

    def setUp(self):
        self.stage = Stage()

    def events(self, asked) -> list[bytes]:
        """The payload of the chunks that the client received; every chunk must be whole."""
        found, rest = [], asked.sink.body
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            data, rest = rest[: int(size, 16)], rest[int(size, 16) :]
            self.assertTrue(rest.startswith(b"\r\n"))
            rest = rest[2:]
            found.append(data)
        return found

    def test_a_chunked_event_stream_gets_an_error_event_and_is_cut(self):
        """http T103 (the Go program ends it like a complete one)"""
        asked = self.stage.post({"model": "alpha", "stream": True})
        self.stage.forwarding.begin(b"data: 1\n\n", kind=b"text/event-stream")
        self.stage.forwarding.result.errback(UpstreamTruncated("alpha", "connection lost"))
        *_, last = self.events(asked)
        self.assertEqual(json.loads(last.removeprefix(b"data: "))["error"]["code"], "bad_gateway")
        self.assertEqual(asked.sink.ending, "aborted")
        self.assertEqual(self.stage.witness.endings[0][0], "truncated")
        self.assertEqual(self.stage.router.asked[0].lease.releases, 1)

    def test_nothing_is_put_inside_a_broken_chunk(self):
        asked = self.stage.post({"model": "alpha", "stream": True})
        self.stage.forwarding.begin(b"data: 1\n\n", kind=b"text/event-stream")
        asked.exchange.sink.write(b"20\r\ndata: 2")
        before = asked.sink.body
        self.stage.forwarding.result.errback(UpstreamTruncated("alpha", "connection lost"))
        self.assertEqual((asked.sink.body, asked.sink.ending), (before, "aborted"))

    def test_bytes_written_past_the_sink_count_as_the_last_bytes(self):
        for last, room in ((b"20\r\ndata: 2", False), (b"9\r\ndata: 2\n\n\r\n", True)):
            self.setUp()
            asked = self.stage.post({"model": "alpha", "stream": True})
            self.stage.forwarding.begin(b"data: 1\n\n", kind=b"text/event-stream")
            before = asked.sink.body
            asked.exchange.last = last
            self.stage.forwarding.result.errback(UpstreamTruncated("alpha", "connection lost"))
            self.assertEqual((asked.sink.body != before, asked.sink.ending), (room, "aborted"))

    def test_a_stream_that_we_frame_gets_its_event_plain(self):
        asked = self.stage.post({"model": "alpha"}, b"/v1/messages")
        self.stage.forwarding.begin(b"data: {", kind=b"text/event-stream", raw=False)
        self.stage.forwarding.result.errback(UpstreamTruncated("alpha", "connection lost"))
        self.assertIn(b'data: {\n\nevent: error\ndata: {"type":"error"', asked.sink.body)
        self.assertEqual(asked.sink.ending, "aborted")

    def test_any_other_answer_is_cut(self):
        asked = self.stage.post({"model": "alpha"})
        self.stage.forwarding.begin(b'{"a":')
        before = asked.sink.body
        self.stage.forwarding.result.errback(UpstreamTruncated("alpha", "connection lost"))
        self.assertEqual((asked.sink.body, asked.sink.ending), (before, "aborted"))


class BufferedObserverTests(SynchronousTestCase):
    """Observers get small pieces of a response a few at a time."""

    def setUp(self):
        self.stage = Stage()
        self.stage.post({"model": "alpha", "stream": True})
        self.forwarding = self.stage.forwarding
        self.forwarding.begin(b"data: 0\n\n", kind=b"text/event-stream")
        self.facts = self.forwarding.observer

    def test_first_piece_is_observed_at_once_and_later_ones_together_in_order(self):
        self.assertEqual(self.stage.witness.body, b"data: 0\n\n")
        for number in range(1, PIECES_JOINED):
            self.forwarding.more(b"data: %d\n\n" % number)
        self.assertEqual(self.stage.witness.body, b"data: 0\n\n")
        self.forwarding.more(b"data: last\n\n")
        told = b"".join(b"data: %d\n\n" % number for number in range(PIECES_JOINED))
        self.assertEqual(self.stage.witness.body, told + b"data: last\n\n")

    def test_a_large_one_and_the_end_leave_nothing_untold(self):
        self.forwarding.more(b"data: small\n\n")
        self.forwarding.more(bytes(SMALL_PIECE + 1))
        self.assertTrue(self.stage.witness.body.endswith(b"small\n\n" + bytes(SMALL_PIECE + 1)))
        self.forwarding.more(b"rest")
        self.forwarding.end()
        self.assertTrue(self.stage.witness.body.endswith(b"rest"))
        self.assertEqual(self.stage.witness.endings[0][0], "complete")

    def test_nothing_is_held_back_from_who_asks_or_follows(self):
        self.forwarding.more(b"1")
        self.facts.flush()
        self.assertTrue(self.stage.witness.body.endswith(b"1"))
        self.facts.followed = True
        self.forwarding.more(b"2")
        self.assertTrue(self.stage.witness.body.endswith(b"12"))


class ClientGoneTests(SynchronousTestCase):
    """The client disconnects: the lease is released and the connection to the server closed at once."""

    def setUp(self):
        self.stage = Stage()

    def test_client_that_leaves_the_queue_frees_its_place(self):
        self.stage.router.auto = False
        asked = self.stage.post({"model": "beta"})
        asked.leave()
        self.assertTrue(self.stage.router.asked[0].cancelled)
        self.assertEqual((asked.done, asked.sink.started), ([None], False))
        self.assertEqual(self.stage.witness.endings[0][0], "gone")

    def test_client_that_leaves_before_its_body_is_read_ends_the_request(self):
        stage = Stage()
        body = ArrivingBody()
        asked = stage.ask(b"POST", b"/v1/audio/transcriptions", body, MULTIPART)
        asked.leave()
        body.consumer.body_failed(ClientGone())
        self.assertEqual(asked.done, [None])

    def test_a_fault_of_ours_before_the_wait_leaves_no_place_in_the_queue(self):
        """A lease granted later would have no owner and keep its model loaded for ever."""

        def broken(model, write):
            raise ZeroDivisionError

        self.stage.router.auto = self.stage.router.ready = False
        self.stage.handler.loading_stream = broken
        self.stage.post({"model": "alpha", "stream": True})
        self.assertTrue(self.stage.router.asked[0].cancelled)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_client_that_leaves_during_the_loading_text_stops_it(self):
        self.stage.router.auto = self.stage.router.ready = False
        asked = self.stage.post({"model": "alpha", "stream": True})
        self.assertTrue(self.stage.witness.facts.loading)
        asked.leave()
        self.assertFalse(self.stage.witness.facts.loading)
        self.assertEqual(self.stage.clock.getDelayedCalls(), [])
        self.assertNotIn(b"Done!", asked.sink.body)
        self.assertTrue(self.stage.router.asked[0].cancelled)

    def test_client_that_leaves_before_the_response_stops_the_server(self):
        asked = self.stage.post({"model": "alpha"})
        asked.leave()
        self.assertTrue(self.stage.forwarding.stopped)
        self.assertEqual(self.stage.router.asked[0].lease.releases, 1)
        self.assertEqual(self.stage.witness.endings[0][0], "gone")

    def test_client_that_leaves_during_the_stream_releases_its_lease(self):
        asked = self.stage.post({"model": "alpha", "stream": True})
        self.stage.forwarding.begin(b"data: 1\n\n", kind=b"text/event-stream")
        asked.leave()
        self.assertEqual(self.stage.router.asked[0].lease.releases, 1)
        self.assertEqual(asked.sink.ending, "")

    def test_client_that_leaves_while_a_dead_server_is_checked_leaves_no_timer(self):
        asked = self.stage.post({"model": "alpha"})
        self.stage.forwarding.result.errback(UpstreamUnreachable("alpha", "reset"))
        asked.leave()
        self.assertEqual(self.stage.clock.getDelayedCalls(), [])
        self.assertEqual((asked.done, self.stage.witness.endings[0][0]), ([None], "gone"))


class CancelTests(SynchronousTestCase):
    """An operator ends a request whose client is still there."""

    def setUp(self):
        self.stage = Stage()

    def cancel(self):
        self.stage.witness.facts.cancel()
        self.stage.witness.facts.cancel()

    def test_a_waiting_request_is_answered_empty(self):
        self.stage.router.auto = False
        asked = self.stage.post({"model": "beta"})
        self.cancel()
        self.assertTrue(self.stage.router.asked[0].cancelled)
        self.assertEqual((asked.sink.status, asked.sink.body, asked.sink.ending), (200, b"", "finished"))
        self.assertEqual(self.stage.witness.endings[0][0], "cancelled")

    def test_a_request_without_an_answer_yet_is_a_502(self):
        asked = self.stage.post({"model": "alpha"})
        self.cancel()
        self.assertTrue(self.stage.forwarding.stopped)
        self.assertEqual((asked.sink.status, asked.sink.ending), (502, "finished"))
        self.assertEqual(self.stage.router.asked[0].lease.releases, 1)

    def test_a_stream_is_cut_and_says_why(self):
        """http T156 (the Go program ends it like a complete one)"""
        asked = self.stage.post({"model": "alpha", "stream": True})
        self.stage.forwarding.begin(b"data: 1\n\n", kind=b"text/event-stream")
        self.cancel()
        self.assertIn(b"request cancelled", asked.sink.body)
        self.assertEqual(asked.sink.ending, "aborted")

    def test_finished_request_cannot_be_cancelled(self):
        self.stage.post({"model": "alpha"})
        self.stage.forwarding.begin(b"{}")
        self.stage.forwarding.end()
        self.cancel()
        self.assertEqual(len(self.stage.witness.endings), 1)


class LoadingTextTests(SynchronousTestCase):
    def setUp(self):
        self.stage = Stage(auto=False, ready=False)

    def test_a_stream_for_a_cold_model_begins_at_once(self):
        """http T107, core V95"""
        asked = self.stage.post({"model": "al", "stream": True})
        sink = asked.sink
        self.assertEqual((sink.status, sink.header(b"content-type")), (200, b"text/event-stream"))
        self.assertEqual(sink.header(b"cache-control"), b"no-cache")
        self.assertIn("━━━━━".encode(), sink.body)
        self.stage.clock.advance(0.1)
        self.stage.router.asked[0].grant()
        self.assertIn(b"Done! (", sink.body.replace(b'"}}]}\n\ndata: {"choices":[{"delta":{"reasoning_content":"', b""))
        forwarding = self.stage.forwarding
        self.assertTrue(forwarding.answered)
        forwarding.begin(b"data: real\n\n", kind=b"text/event-stream")
        forwarding.end()
        self.assertTrue(sink.body.endswith(b"data: real\n\n"))
        self.assertEqual((sink.ending, sink.producer), ("finished", None))
        witness = self.stage.witness
        self.assertEqual(len(witness.heads), 1)
        self.assertEqual(witness.body, sink.body)
        self.assertEqual(self.stage.clock.getDelayedCalls(), [])

    def test_the_server_is_asked_for_no_coding_that_the_head_did_not_name(self):
        asks = (b"Accept-Encoding", b"gzip, br")
        self.stage.post({"model": "alpha", "stream": True}, CHAT, asks)
        self.stage.router.asked[0].grant()
        self.assertIsNone(self.stage.forwarding.header(b"accept-encoding"))
        warm = Stage()
        warm.post({"model": "alpha", "stream": True}, CHAT, asks)
        self.assertEqual(warm.forwarding.header(b"accept-encoding"), b"gzip")

    def test_nothing_is_injected_elsewhere(self):
        """http T108"""
        for body, path in (
            ({"model": "alpha", "stream": False}, CHAT),
            ({"model": "alpha", "stream": True}, b"/v1/completions"),
            ({"model": "alpha", "stream": True}, b"/v/chat/completions"),
            ({"model": "org", "stream": True}, CHAT),
        ):
            stage = Stage(auto=False, ready=False)
            self.assertFalse(stage.post(body, path).sink.started, path)
        self.assertFalse(Stage().post({"model": "alpha", "stream": True}).sink.started)

    def test_a_failed_start_is_said_in_events_and_the_stream_ends(self):
        """http T109 (framed, so that clients can read it), core V41"""
        asked = self.stage.post({"model": "alpha", "stream": True}, CHAT, (b"Accept", b"text/plain"))
        self.stage.router.asked[0].settle(StartFailed("alpha", "upstream command exited prematurely"))
        *_, said, done, empty = asked.sink.body.split(b"\n\n")
        self.assertEqual((done, empty), (b"data: [DONE]", b""))
        error = json.loads(said.removeprefix(b"data: "))["error"]
        self.assertEqual(error["message"], "unspecific error: upstream command exited prematurely")
        self.assertEqual((asked.sink.status, asked.sink.ending), (200, "finished"))

    def test_error_of_a_failed_start_is_not_the_first_data_of_a_server(self):
        asked = self.stage.post({"model": "alpha", "stream": True}, CHAT)
        self.stage.router.asked[0].settle(StartFailed("alpha", "upstream command exited prematurely"))
        self.assertEqual(asked.sink.ending, "finished")
        self.assertEqual(set(self.stage.witness.loading), {True})

    def test_loading_text_shows_the_queue_position(self):
        """http T111"""
        asked = self.stage.post({"model": "alpha", "stream": True})
        self.stage.router.asked[0].on_position(1)
        self.stage.clock.pump([0.05] * 60)
        text = asked.sink.body.replace(b'"}}]}\n\ndata: {"choices":[{"delta":{"reasoning_content":"', b"")
        self.assertIn(b"Queue position: #1", text)
        asked.leave()

    def test_queue_position_reaches_the_list_of_requests(self):
        told = []
        self.stage.handler.position_changed = lambda request, position: told.append((request, position))
        asked = self.stage.post({"model": "org"})
        self.stage.router.asked[0].on_position(2)
        self.assertEqual(told, [("1", 2)])
        asked.leave()

    def test_a_refusal_comes_before_any_event(self):
        """http T100"""
        self.stage.router.refusal = TooManyRequests("alpha", 1)
        asked = self.stage.post({"model": "alpha", "stream": True})
        self.assertEqual(asked.sink.status, 429)

    def test_a_retry_goes_on_in_the_same_stream(self):
        asked = self.stage.post({"model": "alpha", "stream": True})
        self.stage.router.asked[0].grant(lost=True)
        self.stage.forwarding.result.errback(UpstreamUnreachable("alpha", "reset"))
        self.stage.router.asked[1].grant()
        forwarding = self.stage.forwarder.forwarded[1]
        self.assertTrue(forwarding.answered)
        forwarding.begin(b"data: real\n\n", kind=b"text/event-stream")
        forwarding.end()
        self.assertEqual(asked.sink.ending, "finished")


class ReplicaTests(SynchronousTestCase):
    def test_server_of_a_model_is_chosen_and_the_request_counts_for_the_model(self):
        copy = model("alpha.r2", replica_of="alpha", unlisted=True)
        stage = Stage(config=config(models=[copy]))
        asked = stage.post({"model": "al"})
        facts = stage.witness.facts
        self.assertEqual((facts.model, facts.requested, facts.server), ("alpha", "al", "alpha.r2"))
        self.assertEqual([lease.model for lease in stage.router.asked], ["alpha.r2"])
        self.assertEqual(json.loads(stage.forwarding.sent)["model"], "al")
        self.assertEqual(stage.router.released, [])
        stage.forwarding.begin(b"{}")
        stage.forwarding.end()
        self.assertEqual((asked.sink.status, stage.router.released), (200, ["alpha"]))

    def test_server_that_cannot_be_started_is_replaced_by_a_ready_one(self):
        stage = Stage(config=config(models=[model("alpha.r2", replica_of="alpha")]), states={"alpha": "ready"})
        stage.router.ready = stage.router.auto = False
        asked = stage.post({"model": "alpha"})
        stage.router.ready = stage.router.auto = True
        stage.router.asked[0].settle(StartFailed("alpha.r2", "no memory"))
        self.assertEqual(stage.witness.facts.server, "alpha")
        stage.forwarding.begin(b"{}")
        stage.forwarding.end()
        self.assertEqual((asked.sink.status, stage.router.released), (200, ["alpha", "alpha"]))

    def test_server_that_cannot_be_started_is_an_error_if_no_other_is_ready(self):
        stage = Stage(config=config(models=[model("alpha.r2", replica_of="alpha")]))
        stage.router.ready = stage.router.auto = False
        asked = stage.post({"model": "alpha"})
        stage.router.asked[0].settle(StartFailed("alpha.r2", "no memory"))
        self.assertEqual((asked.sink.status, len(stage.router.asked)), (500, 1))

    def test_model_without_replicas_is_served_by_itself(self):
        stage = Stage()
        stage.post({"model": "alpha"})
        self.assertEqual((stage.router.choices, stage.witness.facts.server), ([], "alpha"))
