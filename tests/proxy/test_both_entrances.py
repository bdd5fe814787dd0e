"""What a client and a server see of the proxy, by either entrance."""

from attrs import evolve
from twisted.internet.defer import CancelledError
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.errors import BadUpstream, ClientGone, UpstreamDeclined, UpstreamTruncated, UpstreamUnreachable
from llamaswap.proxy.forward import ForwardOutcome
from llamaswap.proxy.upstream import NO_TIMEOUTS
from llamaswap.web.sink_wrapper import SinkWrapper
from llamaswap.wire.headers import ResponseHeaders
from tests.proxy.doubles import GET, KEPT, OK, POST, STREAM, World


class _Translated(SinkWrapper):
    """Takes no tunnel."""


class _Behaviour:
    entrance = ""

    def world(self, **options):
        return World(self.entrance, **options)

    def talk(self, request=POST, **options):
        world = self.world(**options)
        client = world.client()
        client.give(request)
        return world, client, world.server()

    def test_request_reaches_the_server_with_its_target_raw(self):
        _, _, server = self.talk()
        head, _, body = server.took().partition(b"\r\n\r\n")
        self.assertEqual(head.split(b"\r\n")[0], b"POST /v1/chat/completions?a=%2F HTTP/1.1")
        self.assertEqual(body, b"hello")
        self.assertIn(b"Content-Length: 5", head)

    def test_answer_reaches_the_client_verbatim(self):
        """http T097"""
        world, client, server = self.talk()
        server.give(b"HTTP/1.1 422 Odd\r\nX-Req: 7\r\nContent-Length: 3\r\n\r\n{x}")
        answer = client.took()
        self.assertTrue(answer.startswith(b"HTTP/1.1 422 Odd\r\nX-Req: 7\r\nContent-Length: 3\r\n"))
        self.assertTrue(answer.endswith(b"\r\n\r\n{x}"))
        self.assertEqual(world.outcomes, [ForwardOutcome(422, 3)])

    def test_chunked_request_is_chunked_to_the_server(self):
        _, _, server = self.talk(
            b"POST /v1/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"3;e=1\r\nabc\r\n2\r\nde\r\n0\r\nT: 1\r\n\r\n"
        )
        sent = server.took()
        body = sent.partition(b"\r\n\r\n")[2]
        self.assertIn(body, (b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", b"abcde"))

    def test_request_without_a_body_has_no_length(self):
        _, _, server = self.talk(GET)
        self.assertEqual(server.took(), b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")

    def test_chunks_pass_untouched_as_they_come(self):
        """http T096"""
        world, client, server = self.talk()
        server.give(STREAM)
        head = client.took()
        self.assertIn(b"\r\nX-Accel-Buffering: no\r\n", head)
        self.assertIn(b"\r\nContent-Type: text/event-stream\r\n", head)
        self.assertTrue(head.endswith(b"\r\n\r\n"))
        server.give(b"6;odd=1\r\ndata: ")
        self.assertEqual(client.took(), b"6;odd=1\r\ndata: ")
        server.give(b"\r\n")
        self.assertEqual(client.took(), b"\r\n")
        server.give(b"0\r\nX-Sum: 1\r\n\r\n")
        self.assertEqual(client.took(), b"0\r\nX-Sum: 1\r\n\r\n")
        self.assertEqual(world.outcomes, [ForwardOutcome(200, 6)])
        self.assertEqual((world.notes.body, len(world.outcomes)), (b"data: ", 1))

    def test_bytes_behind_the_end_of_a_response_are_discarded(self):
        world, client, server = self.talk()
        server.give(STREAM + b"2\r\nhi\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n")
        self.assertTrue(client.took().endswith(b"2\r\nhi\r\n0\r\n\r\n"))
        self.assertTrue(server.closing)
        self.assertEqual(world.pool.idle, 0)

    def test_a_client_that_reads_nothing_is_reported_once_and_again_when_it_reads(self):
        heard = []
        world, client, server = self.talk(reader=heard.append)
        server.give(STREAM + b"2\r\nhi\r\n")
        began = world.clock.seconds()
        client.dataBuffer = b"x" * 1000
        client.producer.pauseProducing()
        world.clock.pump([1.0] * 4)
        self.assertEqual(heard, [])
        client.dataBuffer = b"x" * 900
        world.clock.pump([1.0] * 4)
        self.assertEqual(heard, [])
        world.clock.pump([1.0] * 20)
        self.assertEqual(heard, [began + 5.0])
        client.dataBuffer = b"x" * 800
        world.clock.pump([1.0] * 5)
        self.assertEqual(heard[1:], [None])
        world.clock.pump([1.0] * 10)
        self.assertEqual(len(heard), 3)
        client.producer.resumeProducing()
        self.assertEqual(heard[3:], [None])
        server.give(b"0\r\n\r\n")
        self.assertEqual(len(world.outcomes), 1)
        world.clock.pump([1.0] * 10)
        self.assertEqual(len(heard), 4)

    def test_declined_response_is_not_sent(self):
        world, client, server = self.talk(decline=(503,))
        server.give(b"HTTP/1.1 503 Busy\r\nContent-Length: 3\r\n\r\nno!")
        self.assertEqual((client.took(), world.notes.body, world.outcomes), (b"", b"", []))
        (error,) = world.errors
        self.assertEqual((type(error), error.where, error.status), (UpstreamDeclined, "owl", 503))
        self.assertTrue(server.closing)

    def test_an_answer_of_any_other_status_is_taken(self):
        _, client, server = self.talk(decline=(503,))
        server.give(b"HTTP/1.1 504 Slow\r\nContent-Length: 3\r\n\r\nno!")
        self.assertTrue(client.took().endswith(b"no!"))

    def test_response_that_a_sink_changes_is_framed_once(self):
        world = self.world()

        def translated(exchange):
            exchange.translated = True
            return world.forward(exchange)

        world.handler = translated
        client = world.client()
        client.give(POST)
        world.server().give(STREAM)
        self.assertEqual(client.took().lower().count(b"transfer-encoding"), 1)

    def test_until_close_answer_is_chunked_for_the_client(self):
        world, client, server = self.talk()
        server.give(b"HTTP/1.1 200 OK\r\n\r\nabc")
        server.give(b"de")
        server.lose()
        answer = client.took()
        self.assertIn(b"\r\nTransfer-Encoding: chunked\r\n", answer)
        self.assertTrue(answer.endswith(b"\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"))
        self.assertFalse(client.closing)
        self.assertEqual(world.outcomes, [ForwardOutcome(200, 5)])

    def test_http_1_0_client_gets_plain_bytes_and_a_close(self):
        world, client, server = self.talk(b"GET /v1/x HTTP/1.0\r\nHost: x\r\n\r\n")
        server.give(STREAM + b"3\r\nabc\r\n")
        server.give(b"0\r\n\r\n")
        answer = client.took()
        self.assertNotIn(b"Transfer-Encoding", answer)
        self.assertTrue(answer.endswith(b"\r\n\r\nabc"))
        self.assertTrue(client.closing)
        self.assertEqual(world.outcomes, [ForwardOutcome(200, 3)])

    def test_server_receives_its_own_host_if_an_http_1_0_client_sent_none(self):
        server = self.talk(b"POST /v1/x HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi")[2]
        request = server.took()
        self.assertTrue(request.startswith(b"POST /v1/x HTTP/1.1\r\nHost: 127.0.0.1:9000\r\n"), request)
        self.assertEqual(request.lower().count(b"host:"), 1)
        server = self.talk(b"GET /v1/x HTTP/1.0\r\nHost: x\r\n\r\n")[2]
        self.assertIn(b"\r\nHost: x\r\n", server.took())

    def test_head_answer_has_a_length_and_no_body(self):
        world, client, server = self.talk(b"HEAD /v1/x HTTP/1.1\r\nHost: x\r\n\r\n")
        server.give(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
        answer = client.took()
        self.assertIn(b"Content-Length: 9", answer)
        self.assertTrue(answer.endswith(b"\r\n\r\n"))
        self.assertEqual(world.outcomes, [ForwardOutcome(200, 0)])

    def test_no_content_answer_needs_no_length(self):
        world, client, server = self.talk()
        server.give(b"HTTP/1.1 204 No Content\r\n\r\n")
        self.assertNotIn(b"Transfer-Encoding", client.took())
        self.assertEqual(world.outcomes, [ForwardOutcome(204, 0)])

    def test_interim_heads_pass_and_continue_does_not(self):
        _, client, server = self.talk()
        server.give(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        self.assertEqual(client.took(), b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        server.give(OK)
        self.assertTrue(client.took().endswith(b"ok"))

    def test_two_requests_share_a_client_connection(self):
        world, client, server = self.talk()
        server.give(KEPT)
        client.took()
        client.give(GET)
        self.assertEqual(world.dials, 1)
        self.assertIn(b"GET /v1/models", server.took())
        server.give(KEPT)
        self.assertTrue(client.took().endswith(b"ok"))

    def test_pipelined_requests_are_answered_in_order(self):
        world, client, server = self.talk(POST + GET)
        self.assertEqual(len(world.exchanges), 1)
        server.give(KEPT)
        self.assertEqual(len(world.exchanges), 2)
        server.give(KEPT)
        self.assertEqual(client.took().count(b"HTTP/1.1 200 OK"), 2)

    def test_full_client_pauses_the_server(self):
        _, client, server = self.talk()
        server.give(STREAM + b"1\r\na\r\n")
        client.fill()
        self.assertTrue(server.paused)
        client.drain()
        self.assertFalse(server.paused)

    def test_connection_paused_at_its_end_hears_the_next_answer(self):
        world, client, server = self.talk()
        server.give(b"HTTP/1.1 200 OK\r\nServer: uvicorn\r\nContent-Length: 4\r\n\r\nab")
        client.fill()
        server.give(b"cd")
        self.assertEqual(world.pool.idle, 1)
        self.assertFalse(server.paused)

    def test_client_leaving_during_dialling_stops_it(self):
        world = self.world()
        client = world.client()
        client.give(POST)
        stopped = []
        world.clock.connectors[0].disconnect = lambda: stopped.append(True)
        client.lose()
        self.assertEqual(stopped, [True])
        self.assertEqual(world.told(), [repr(ClientGone())])

    def test_client_leaving_before_the_answer_closes_the_server(self):
        world, client, server = self.talk()
        client.lose()
        self.assertTrue(server.aborted)
        self.assertEqual(world.told(), [repr(ClientGone())])

    def test_client_leaving_mid_stream_closes_the_server(self):
        world, client, server = self.talk()
        server.give(STREAM + b"1\r\na\r\n")
        client.lose(clean=False)
        self.assertTrue(server.aborted)
        self.assertEqual(world.told(), [repr(ClientGone())])

    def test_cancelling_closes_the_server(self):
        world, _, server = self.talk()
        world.results[0].cancel()
        self.assertTrue(server.aborted)
        self.assertIsInstance(world.errors[0], CancelledError)

    def test_truncated_answer_says_nothing_to_the_sink(self):
        world, client, server = self.talk()
        server.give(STREAM + b"4\r\nab")
        client.took()
        world.handler = None
        server.lose()
        self.assertIsInstance(world.errors[0], UpstreamTruncated)
        self.assertEqual(client.took(), b"")
        self.assertTrue(client.aborted)

    def test_bytes_written_past_the_sinks_are_known_at_the_end(self):
        world, client, server = self.talk()
        server.give(STREAM + b"4\r\nwith\r\n")
        server.give(b"6\r\nbehind\r\n")
        server.give(b"2\r\nit\r\n2\r\n")
        server.lose()
        (exchange,) = world.exchanges
        self.assertEqual(exchange.passed, 21)
        self.assertFalse(exchange.last.endswith(b"\r\n"))
        self.assertTrue(client.took().endswith(b"with\r\n6\r\nbehind\r\n2\r\nit\r\n2\r\n"))

    def test_a_stream_that_breaks_between_chunks_has_room_for_a_last_word(self):
        world, _, server = self.talk()
        server.give(STREAM + b"4\r\nwith\r\n")
        server.give(b"6\r\nbehind\r\n")
        server.lose()
        self.assertTrue(world.exchanges[0].last.endswith(b"\r\n"))

    def test_a_stream_that_breaks_before_its_first_chunk_has_room_for_a_last_word_too(self):
        world, client, server = self.talk()
        client.took()
        world.write_final = b"sorry"
        server.give(STREAM)
        server.lose()
        self.assertTrue(client.took().endswith(b"\r\n\r\n5\r\nsorry\r\n"))

    def test_a_last_word_is_not_reset_away(self):
        world, client, server = self.talk()
        world.write_final = b"sorry"
        server.give(STREAM)
        server.lose()
        self.assertFalse(client.aborted)
        self.assertTrue(client.half_closed or client.disconnecting)
        self.assertTrue(client.took().endswith(b"5\r\nsorry\r\n"))  # and no last chunk

    def test_no_last_word_is_put_into_a_chunk_that_broke_behind_a_line_of_its_own(self):
        for rest in (b"", b"20\r\nagain\r\n"):
            world, client, server = self.talk()
            world.write_final = b"sorry"
            server.give(STREAM + (b"5\r\nwhole\r\n" if rest else b"20\r\ndata: x\r\n"))
            if rest:
                server.give(rest)
            server.lose()
            self.assertNotIn(b"sorry", client.took())

    def test_length_that_is_not_reached_is_a_truncation(self):
        world, _, server = self.talk()
        server.give(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
        server.lose()
        self.assertIsInstance(world.errors[0], UpstreamTruncated)

    def test_broken_chunk_is_a_truncation(self):
        world, _, server = self.talk()
        server.give(STREAM)
        server.give(b"xyz\r\n")
        self.assertIsInstance(world.errors[0], UpstreamTruncated)
        self.assertTrue(server.aborted)

    def test_reset_until_close_answer_is_a_truncation(self):
        world, _, server = self.talk()
        server.give(b"HTTP/1.1 200 OK\r\n\r\nabc")
        server.lose(clean=False)
        self.assertIsInstance(world.errors[0], UpstreamTruncated)

    def test_silent_server_is_unreachable(self):
        world, client, server = self.talk()
        server.lose()
        self.assertEqual(world.told(), [repr(UpstreamUnreachable("owl", "connection closed", sent=True))])
        self.assertEqual(client.took(), b"")

    def test_answer_that_is_not_http_is_bad(self):
        world, client, server = self.talk()
        server.give(b"SSH-2.0-x\r\n")
        self.assertIsInstance(world.errors[0], BadUpstream)
        self.assertEqual(client.took(), b"")

    def test_endless_head_is_bad(self):
        world, _, server = self.talk()
        server.give(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 20000)
        self.assertIsInstance(world.errors[0], BadUpstream)

    def test_no_answer_in_time_is_unreachable(self):
        world, _, server = self.talk(timeouts=evolve(NO_TIMEOUTS, response_header=60.0))
        world.clock.advance(59)
        self.assertEqual(world.errors, [])
        world.clock.advance(1)
        self.assertEqual(world.told(), [repr(UpstreamUnreachable("owl", "no answer within 60 s", sent=True))])
        self.assertTrue(server.aborted)

    def test_answer_in_time_stops_the_clock(self):
        world, _, server = self.talk(timeouts=evolve(NO_TIMEOUTS, response_header=60.0))
        server.give(STREAM)
        world.clock.advance(3600)
        self.assertEqual(world.errors, [])

    def test_idle_connection_that_died_is_replaced_once(self):
        world, client, first = self.talk()
        first.give(KEPT)
        client.took()
        client.give(POST)
        self.assertTrue(first.took().endswith(b"hello"))
        first.lose()
        second = world.server()
        self.assertTrue(second.took().endswith(b"\r\n\r\nhello"))
        second.lose()
        self.assertEqual([type(error) for error in world.errors], [UpstreamUnreachable])

    def test_the_servers_hop_headers_stay_here(self):
        _, client, server = self.talk()
        server.give(OK.replace(b"\r\n\r\n", b"\r\nConnection: x-a\r\nX-A: 1\r\nX-Req: 7\r\n\r\n", 1))
        head = client.took()
        self.assertIn(b"\r\nX-Req: 7\r\n", head)
        self.assertNotIn(b"X-A: 1", head)

    def test_upgrade_becomes_a_tunnel(self):
        """http T104"""
        world, client, server = self.talk(
            b"GET /v1/ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        )
        self.assertIn(b"Upgrade: websocket", server.took())
        switch = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        server.give(switch + b"\x81\x00")
        self.assertEqual(client.took(), switch + b"\x81\x00")
        client.give(b"\x82\x01")
        self.assertEqual(server.took(), b"\x82\x01")
        self.give_back(server, b"\x83")
        self.assertEqual(client.took(), b"\x83")
        server.fill()
        self.assertTrue(client.paused)
        server.drain()
        self.assertFalse(client.paused)
        client.lose()
        self.assertTrue(server.closing)
        self.assertEqual(world.outcomes, [ForwardOutcome(101, 3, "tunnel")])

    def give_back(self, server, data):
        server.protocol.dataReceived(data)

    def test_server_ending_a_tunnel_closes_the_client(self):
        world, client, server = self.talk(
            b"GET /v1/ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        )
        server.give(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        server.protocol.dataReceived(b"bye")
        server.protocol.connectionLost()
        self.assertTrue(client.took().endswith(b"bye"))
        self.assertTrue(client.closing)
        self.assertEqual(world.outcomes, [ForwardOutcome(101, 3, "tunnel")])

    def test_a_tunnels_client_that_reads_nothing_is_reported(self):
        heard = []
        ask = b"GET /v1/ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        world, client, server = self.talk(ask, reader=heard.append)
        server.give(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        world.clock.pump([1.0] * 60)
        self.assertEqual(heard, [])
        client.fill()
        began = world.clock.seconds()
        world.clock.pump([1.0] * 20)
        self.assertEqual(heard, [began])
        client.drain()
        self.assertEqual(heard, [began, None])
        client.fill()
        world.results[0].cancel()
        self.assertTrue(client.aborted)
        world.clock.pump([1.0] * 20)
        self.assertEqual(len(heard), 2)

    def test_upgrade_to_another_protocol_is_bad(self):
        world, _, server = self.talk(
            b"GET /v1/ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        )
        server.give(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
        self.assertIsInstance(world.errors[0], BadUpstream)
        self.assertTrue(server.aborted)

    def test_unasked_upgrade_is_bad(self):
        world, _, server = self.talk()
        server.give(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        self.assertIsInstance(world.errors[0], BadUpstream)

    def test_upgrade_of_a_response_that_is_translated_is_bad(self):
        """The lease was never released, also if the client left."""
        world = self.world()

        def translate(exchange):
            exchange.sink = _Translated(exchange.sink)
            return world.forward(exchange)

        world.handler = translate
        client = world.client()
        client.give(b"GET /v1/ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        server = world.server()
        server.give(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        self.assertIsInstance(world.errors[0], BadUpstream)
        self.assertTrue(server.aborted)

    def test_refused_upgrade_is_a_plain_answer(self):
        _, client, server = self.talk(
            b"GET /v1/ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        )
        server.give(OK)
        self.assertTrue(client.took().endswith(b"ok"))

    def test_own_answer_without_framing_is_framed(self):
        world = self.world()

        def answer(exchange):
            from twisted.internet.defer import succeed

            exchange.sink.head(200, b"", ResponseHeaders.of([(b"Content-Type", b"text/plain")]), raw=False, data=b"one")
            exchange.sink.write(b"three")
            exchange.sink.finish()
            return succeed(None)

        world.handler = answer
        client = world.client()
        client.give(POST)
        sent = client.took()
        self.assertTrue(sent.startswith(b"HTTP/1.1 200 OK\r\n"))
        self.assertIn(b"\r\nDate: ", sent)
        self.assertTrue(sent.endswith(b"\r\n\r\n3\r\none\r\n5\r\nthree\r\n0\r\n\r\n"))

    def behind_loading(self):
        """(the world, a client whose loading stream has begun, the server it waits for)."""
        world = self.world()

        def load(exchange):
            exchange.sink.head(
                200, b"", ResponseHeaders.of([(b"Content-Type", b"text/event-stream")]), raw=False, data=b"wait"
            )
            return world.forward(exchange)

        world.handler = load
        client = world.client()
        client.give(POST)
        server = world.server()
        client.took()
        return world, client, server

    def test_answered_exchange_gets_the_body_without_its_framing(self):
        """http T107"""
        world, client, server = self.behind_loading()
        server.give(STREAM + b"3;x\r\nabc\r\n")
        self.assertEqual(client.took(), b"3\r\nabc\r\n")
        server.give(b"0\r\n\r\n")
        self.assertEqual(client.took(), b"0\r\n\r\n")
        self.assertEqual(len(world.outcomes), 1)

    def test_an_error_in_json_behind_a_loading_stream_is_an_event_that_its_client_can_read(self):
        for answer, events in (
            (
                b'Content-Type: application/json\r\nContent-Length: 17\r\n\r\n{"error":\r\n {\n}}\n',
                b'data: {"error":   { }} \n\ndata: [DONE]\n\n',
            ),
            (b"Content-Type: application/json\r\nContent-Length: 0\r\n\r\n", b"data: [DONE]\n\n"),
            (b"Content-Type: text/plain\r\nContent-Length: 3\r\n\r\na\nb", b"a\nb"),
        ):
            world, client, server = self.behind_loading()
            head, _, body = (b"HTTP/1.1 400 Bad Request\r\n" + answer).partition(b"\r\n\r\n")
            server.give(head + b"\r\n\r\n" + body[:9])
            if body[9:]:
                server.give(body[9:])
            sent = client.took()
            self.assertTrue(sent.endswith(b"0\r\n\r\n"), sent)
            chunks = sent.split(b"\r\n")
            self.assertEqual((b"".join(chunks[1:-3:2]), world.notes.body), (events, events))


class DirectEntranceTests(_Behaviour, SynchronousTestCase):
    """Through the listening protocol."""

    entrance = "direct"


class KleinEntranceTests(_Behaviour, SynchronousTestCase):
    """Through a twisted.web request."""

    entrance = "klein"
