"""The listening protocol: whose request it is, how bytes that are none are refused, when it reads."""

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone
from twisted.logger import LogLevel, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.errors import ClientGone, NoRoom
from llamaswap.proxy import client_connection
from llamaswap.wire.byte_budget import ByteBudget
from llamaswap.wire.headers import ResponseHeaders
from tests.proxy.doubles import GET, KEPT, OK, POST, STREAM, World

SITE = b"GET /health?x=%2F HTTP/1.1\r\nHost: x\r\n\r\n"


class RefusalTests(SynchronousTestCase):
    def refused(self, data, status):
        world = World()
        client = world.client()
        client.give(data)
        answer = client.took()
        self.assertTrue(answer.startswith(b"HTTP/1.1 " + status), (data[:60], answer))
        self.assertIn(b"\r\nConnection: close\r\n", answer)
        self.assertTrue(client.half_closed)
        world.clock.advance(client_connection.LINGER_SECONDS)
        self.assertTrue(client.aborted)
        return world

    def test_bytes_that_are_no_request_get_a_400(self):
        for data in (
            b"nonsense\r\n\r\n",
            b"GET / HTTP/1.1\nHost: x\n\n",
            b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
        ):
            world = self.refused(data, b"400")
            self.assertEqual((world.exchanges, world.site_calls), ([], []))

    def test_heads_beyond_the_limits_get_a_431(self):
        self.refused(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 501 + b"\r\n", b"431")
        self.refused(b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 70000, b"431")

    def test_broken_chunk_gets_a_400_and_ends_the_exchange(self):
        world = self.refused(b"POST /v1/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", b"400")
        self.assertEqual(world.exchanges, [])
        world = World()
        client = world.client()
        client.give(b"POST /v1/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        server = world.server()
        client.give(b"-1\r\n")
        self.assertTrue(client.took().startswith(b"HTTP/1.1 400"))
        self.assertTrue(server.aborted)
        self.assertEqual(world.told(), [repr(ClientGone())])

    def test_broken_chunk_during_an_answer_cuts_the_connection(self):
        world = World()
        client = world.client()
        client.give(b"POST /v1/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        world.server().give(STREAM)
        client.took()
        client.give(b"-1\r\n")
        self.assertEqual(client.took(), b"")
        self.assertTrue(client.aborted)

    def test_a_client_still_sending_can_read_its_refusal(self):
        world = World()
        client = world.client()
        client.give(b"nonsense\r\n\r\n")
        client.give(b"more")
        client.lose()
        self.assertEqual(world.clock.getDelayedCalls(), [])


class SiteTests(SynchronousTestCase):
    def test_other_paths_go_to_the_site_raw(self):
        world = World()
        client = world.client()
        client.give(SITE)
        self.assertEqual(world.site_calls, [(b"/health?x=%2F", b"")])
        self.assertTrue(client.took().endswith(b"site:/health?x=%2F"))
        self.assertEqual(world.exchanges, [])

    def test_a_page_asked_for_in_full_or_in_letters_of_another_alphabet_is_found(self):
        for line, uri in (
            (b"GET http://h:1/health?x=%2F HTTP/1.1", b"/health?x=%2F"),
            (b"GET  HTTP://h  HTTP/1.1", b"/"),
            ("GET /logs/stream/größe HTTP/1.1".encode(), b"/logs/stream/gr%C3%B6%C3%9Fe"),
        ):
            world = World()
            client = world.client()
            client.give(line + b"\r\nHost: x\r\n\r\n")
            self.assertEqual(world.site_calls, [(uri, b"")], client.took())

    def test_body_of_a_site_request_arrives_whole_in_any_slices(self):
        for head, body in (
            (b"Content-Length: 4", b"a\r\nb"),
            (b"Transfer-Encoding: chunked", b"2;x\r\na\r\r\n2\r\n\nb\r\n0\r\nT: 1\r\n\r\n"),
        ):
            world = World()
            client = world.client()
            for byte in b"POST /api HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n\r\n" + body + SITE:
                client.give(bytes([byte]))
            self.assertEqual(world.site_calls, [(b"/api", b"a\r\nb"), (b"/health?x=%2F", b"")])

    def test_each_request_of_a_connection_is_routed_by_itself(self):
        world = World()
        client = world.client()
        client.give(SITE + POST)
        server = world.server()
        server.give(KEPT)
        client.give(SITE)
        client.give(POST)
        server.give(KEPT)
        answers = client.took()
        self.assertEqual(answers.count(b"HTTP/1.1 200 OK"), 4)
        self.assertEqual((len(world.exchanges), len(world.site_calls), world.dials), (2, 2, 1))

    def test_request_behind_a_slow_page_waits_for_it(self):
        world = World()
        client = world.client()
        client.give(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n" + GET)
        self.assertEqual(world.exchanges, [])
        world.waiting.write(b"done")
        world.waiting.finish()
        self.assertEqual(len(world.exchanges), 1)

    def test_slow_page_is_notified_of_a_client_that_leaves(self):
        world = World()
        client = world.client()
        client.give(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        notice = world.waiting.notifyFinish()
        client.lose()
        self.failureResultOf(notice)

    def test_page_producer_follows_the_client_during_its_turn_only(self):
        world = World()
        client = world.client()
        client.give(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")

        class Producer:
            said = []

            def pauseProducing(self):
                self.said.append("pause")

            def resumeProducing(self):
                self.said.append("resume")

            def stopProducing(self):
                self.said.append("stop")

        producer = Producer()
        world.waiting.registerProducer(producer, True)
        client.fill()
        self.assertEqual(producer.said, ["pause"])
        world.waiting.unregisterProducer()
        world.waiting.finish()
        self.assertIsNone(client.producer)
        client.give(SITE)
        self.assertEqual(len(world.site_calls), 2)
        self.assertFalse(client.paused)

    def test_http_1_0_page_closes(self):
        world = World()
        client = world.client()
        client.give(b"GET /health HTTP/1.0\r\n\r\n")
        self.assertTrue(client.closing)

    def test_expectation_of_a_page_is_answered_by_the_site(self):
        world = World()
        client = world.client()
        client.give(b"POST /api HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        self.assertEqual(client.took(), b"HTTP/1.1 100 Continue\r\n\r\n")
        client.give(b"ab")
        self.assertEqual(world.site_calls, [(b"/api", b"ab")])

    def test_a_page_may_be_an_exchange_and_a_tunnel(self):
        world = World()
        client = world.client()
        client.give(b"GET /through HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        server = world.server()
        server.give(b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        self.assertTrue(client.took().startswith(b"HTTP/1.1 101 X\r\n"))
        server.took()
        client.give(b"abc")
        self.assertEqual(server.took(), b"abc")
        server.protocol.dataReceived(b"def")
        self.assertEqual(client.took(), b"def")
        server.fill()
        self.assertTrue(client.paused)
        client.lose()
        self.assertTrue(server.closing)
        self.assertEqual(world.outcomes[0].reason, "tunnel")


class ExpectContinueTests(SynchronousTestCase):
    ASK = b"POST /v1/x HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"

    def test_continue_is_sent_when_the_body_is_first_read(self):
        world = World()
        world.handler = lambda exchange: Deferred()
        client = world.client()
        client.give(self.ASK)
        self.assertEqual(client.took(), b"")
        held = world.exchanges[0].body.read_all(10)
        self.assertEqual(client.took(), b"HTTP/1.1 100 Continue\r\n\r\n")
        client.give(b"ab")
        self.assertEqual(self.successResultOf(held), b"ab")

    def test_expectation_is_not_passed_on(self):
        world = World()
        client = world.client()
        client.give(self.ASK)
        server = world.server()
        self.assertNotIn(b"Expect", server.took())

    def test_refusal_without_reading_closes(self):
        world = World()

        def refuse(exchange):
            exchange.sink.head(401, b"", ResponseHeaders.of([(b"Content-Length", b"0")]), raw=False)
            exchange.sink.finish()
            return succeed(None)

        world.handler = refuse
        client = world.client()
        client.give(self.ASK)
        answer = client.took()
        self.assertTrue(answer.startswith(b"HTTP/1.1 401 Unauthorized\r\n"))
        self.assertIn(b"Connection: close", answer)
        self.assertTrue(client.half_closed)


class ReadTests(SynchronousTestCase):
    def test_full_server_pauses_the_client(self):
        world = World()
        client = world.client()
        client.give(b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\nabc")
        server = world.server()
        server.fill()
        self.assertTrue(client.paused)
        server.drain()
        world.clock.advance(0)
        self.assertFalse(client.paused)
        self.assertFalse(world.exchanges[0].body.replayable)

    def test_server_answering_early_leaves_the_client_unpaused(self):
        world = World()
        client = world.client()
        client.give(b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n\r\nabc")
        server = world.server()
        server.fill()
        self.assertTrue(client.paused)
        server.give(OK)
        self.assertFalse(client.paused)
        client.give(b"123456789" + SITE)
        self.assertEqual(len(world.site_calls), 1)

    def test_answer_before_a_large_body_was_read_hangs_up(self):
        world = World()
        client = world.client()
        client.give(b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\nabc")
        server = world.server()
        server.give(OK)
        self.assertTrue(server.aborted)
        self.assertTrue(client.took().endswith(b"ok"))
        self.assertTrue(client.half_closed)

    def test_pipelining_is_bounded(self):
        world = World()
        client = world.client()
        client.give(POST)
        client.give(b"POST /v1/y HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
        self.assertFalse(client.paused)
        client.give(b"x" * client_connection.PIPELINE_LIMIT)
        self.assertTrue(client.paused)
        world.server().give(KEPT)
        self.assertFalse(client.paused)

    def test_client_leaving_behind_a_pause_is_noticed(self):
        world = World()
        client = world.client()
        client.give(POST)
        server = world.server()
        client.give(b"x" * client_connection.PIPELINE_LIMIT)
        self.patch(client_connection, "client_has_closed", lambda wire: True)
        world.clock.advance(client_connection.CLOSE_CHECK_INTERVAL)
        self.assertTrue(server.aborted)
        self.assertEqual(world.told(), [repr(ClientGone())])

    def test_client_closing_its_half_counts_as_gone(self):
        world = World()
        client = world.client()
        client.give(POST)
        server = world.server()
        client.side.readConnectionLost()
        self.assertTrue(server.aborted)
        self.assertTrue(client.closing)


class UpstreamReuseTests(SynchronousTestCase):
    def test_large_upload_gets_a_fresh_connection(self):
        world = World()
        client = world.client()
        client.give(POST)
        world.server().give(KEPT)
        client.give(b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\nabc")
        self.assertEqual(world.dials, 2)
        self.assertEqual(world.pool.idle, 1)

    def test_an_encoded_body_that_came_with_its_head_takes_memory_from_the_budget(self):
        memory = ByteBudget("memory", lambda used: 1000)
        world = World(memory=memory)
        client = world.client()
        client.give(b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc")
        self.assertRaises(NoRoom, world.exchanges[0].body.reserve, 1001)
        world.server().give(KEPT)
        self.assertTrue(client.took().startswith(b"HTTP/1.1 200"))
        self.assertEqual(memory.used, 0)

    def test_a_served_request_leaves_nothing_to_the_garbage_collector(self):
        import gc

        world = World()
        client = world.client()
        client.give(POST)
        server = world.server()
        server.give(KEPT)
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        for _ in range(10):
            client.give(POST)
            server.give(KEPT)
            world.exchanges.clear()
            world.results.clear()
        self.assertLess(gc.collect(), 10)


class TimeoutTests(SynchronousTestCase):
    def test_slow_head_is_closed(self):
        world = World(head_timeout=60, idle_timeout=300)
        client = world.client()
        client.give(b"GET / HT")
        world.clock.pump([5] * 11)
        self.assertFalse(client.closing)
        world.clock.pump([5] * 2)
        self.assertTrue(client.closing)

    def test_a_body_that_stands_still_is_given_up(self):
        """a stalled upload would keep its model loaded for ever"""
        world = World(body_timeout=120, idle_timeout=300)
        client = world.client()
        client.give(b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
        world.clock.pump([5] * 20)
        client.give(b"d")
        world.clock.pump([5] * 23)
        self.assertFalse(client.closing)
        world.clock.pump([5] * 2)
        self.assertTrue(client.took().startswith(b"HTTP/1.1 408 Request Timeout"))
        self.assertEqual(world.told(), [repr(ClientGone())])

    def test_client_that_waits_for_100_continue_is_not_overdue(self):
        world = World(body_timeout=120, idle_timeout=300)
        client = world.client()
        client.give(b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\n")
        world.clock.pump([5] * 60)
        self.assertFalse(client.closing)

    def test_idle_connection_is_closed(self):
        world = World()
        client = world.client()
        client.give(SITE)
        world.clock.pump([5] * 14)
        self.assertFalse(client.closing)
        world.clock.pump([5] * 2)
        self.assertTrue(client.closing)

    def test_long_answer_is_not(self):
        world = World()
        client = world.client()
        client.give(POST)
        world.clock.pump([5] * 1000)
        self.assertFalse(client.closing)

    def test_nothing_ticks_without_clients(self):
        world = World()
        client = world.client()
        client.lose()
        self.assertEqual(world.clock.getDelayedCalls(), [])

    def test_draining_closes_what_is_idle_and_ends_the_rest_after_its_answer(self):
        world = World()
        idle, busy = world.client(), world.client()
        busy.give(POST)
        world.factory.drain()
        self.assertTrue(idle.closing)
        self.assertFalse(busy.closing)
        world.server().give(KEPT)
        answer = busy.took()
        self.assertIn(b"Connection: close", answer)
        self.assertTrue(busy.closing)


class HandlerTests(SynchronousTestCase):
    def test_failing_handler_cuts_its_own_connection_only(self):
        world = World()

        def fail(exchange):
            raise RuntimeError("bug")

        world.handler = fail
        client = world.client()
        client.give(POST)
        self.assertTrue(client.aborted)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_a_client_that_leaves_while_its_request_waits_is_no_error(self):
        world = World()
        waiting = Deferred()

        def wait(exchange):
            exchange.on_gone(lambda: waiting.callback(None))
            return waiting

        world.handler = wait
        errors = self.logged_errors()
        client = world.client()
        client.give(POST)
        client.side.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(errors(), [])

    def test_a_client_that_resets_in_the_middle_of_a_stream_is_no_error(self):
        """A transport stops its producer before it tells the protocol that it is lost."""
        for clean in (True, False):
            world = World()
            errors = self.logged_errors()
            client = world.client()
            client.give(POST)
            world.server().give(STREAM + b"1\r\na\r\n")
            client.lose(clean)
            self.assertTrue(world.exchanges[0].gone)
            self.assertEqual(errors(), [])

    def logged_errors(self):
        said = []
        globalLogPublisher.addObserver(said.append)
        self.addCleanup(globalLogPublisher.removeObserver, said.append)
        return lambda: [event["log_format"] for event in said if event["log_level"] is LogLevel.error]

    def test_handler_that_forgets_to_answer_cuts_the_connection(self):
        world = World()
        world.handler = lambda exchange: succeed(None)
        client = world.client()
        client.give(POST)
        self.assertTrue(client.aborted)

    def test_peer_and_moment_are_known(self):
        world = World()
        world.handler = lambda exchange: Deferred()
        world.clock.advance(7)
        world.client().give(POST)
        self.assertEqual((world.exchanges[0].client_address, world.exchanges[0].arrived), ("192.168.1.1", 7))

    def test_http_1_0_connection_is_kept_when_asked(self):
        world = World()
        client = world.client()
        client.give(b"GET /v1/x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        world.server().give(KEPT)
        self.assertIn(b"Connection: keep-alive", client.took())
        self.assertFalse(client.closing)


class HoldTests(SynchronousTestCase):
    """Connections that are handed to another program: no request begins, and each is idle."""

    def test_request_sent_during_a_hold_is_served_afterwards(self):
        world = World()
        client = world.client()
        client.give(GET)
        self.assertEqual(world.factory.busy, 1)
        world.factory.hold()
        self.assertFalse(client.paused, "its request is under way")
        world.server().give(OK)
        self.assertTrue(client.paused)
        self.assertEqual(world.factory.busy, 0)
        world.factory.release()
        self.assertFalse(client.paused)
        client.give(GET)
        self.assertEqual(len(world.exchanges), 2)

    def test_a_request_that_was_read_already_is_served(self):
        world = World()
        client = world.client()
        client.give(GET + SITE)
        world.factory.hold()
        world.server().give(OK)
        self.assertIn(b"site:", client.took())
        self.assertEqual(world.factory.busy, 0)
        self.assertTrue(client.paused)

    def test_part_of_a_head_goes_along(self):
        world = World()
        client = world.client()
        client.getHandle = lambda: "socket"
        client.give(GET[:10])
        world.factory.hold()
        self.assertEqual(world.factory.handover(), [("socket", GET[:10])])

    def test_a_page_and_a_tunnel_are_not_at_rest(self):
        world = World()
        client = world.client()
        client.give(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        world.factory.hold()
        self.assertEqual((world.factory.busy, world.factory.handover()), (1, []))
        world.waiting.finish()
        self.assertEqual(world.factory.busy, 0)

    def test_busy_connections_can_be_closed_alone(self):
        world = World()
        idle, busy = world.client(), world.client()
        busy.give(GET)
        world.factory.hold()
        world.factory.abort_busy()
        self.assertEqual((idle.aborted, busy.aborted), (False, True))

    def test_the_end_of_a_broken_answer_is_not_cut_with_everything_else(self):
        world = World()
        world.write_final = b"sorry"
        broken, busy = world.client(), world.client()
        broken.give(POST)
        server = world.server()
        server.give(STREAM)
        busy.give(POST)
        server.lose()
        world.factory.abort()
        self.assertEqual((broken.aborted, busy.aborted), (False, True))
        world.clock.advance(client_connection.LINGER_SECONDS)
        self.assertTrue(broken.aborted)

    def test_secure_connections_are_closed_when_idle(self):
        world = World()
        idle, busy = world.client(), world.client()
        idle.side.secure = busy.side.secure = True
        busy.give(GET)
        idle.give(SITE)
        world.factory.hold()
        self.assertEqual((idle.closing, busy.closing), (True, False))
        world.server().give(OK)
        self.assertIn(b"Connection: close", busy.took())
        self.assertTrue(busy.closing)
        self.assertEqual(world.factory.handover(), [])

    def test_a_secure_connection_in_its_handshake_is_waited_for(self):
        world = World()
        new, silent = world.client(), world.client()
        new.side.secure = silent.side.secure = True
        world.factory.hold()
        self.assertEqual((new.closing, new.paused, world.factory.busy), (False, False, 2))
        new.give(SITE)
        self.assertIn(b"site:", new.took())
        self.assertTrue(new.closing)
        world.clock.advance(client_connection.HANDSHAKE_SECONDS)
        self.assertTrue(silent.side.idle)


class SizeLimitTests(SynchronousTestCase):
    """A page's body is kept whole before anybody looks at the request, so it has a bound."""

    def refused(self, *pieces):
        world = World(body_limit=lambda head: 100 if head.path.startswith(b"/api") else 10**9)
        client = world.client()
        for piece in pieces:
            client.give(piece)
        self.assertTrue(client.took().startswith(b"HTTP/1.1 413 "))
        self.assertTrue(client.half_closed)
        self.assertEqual(world.site_calls, [])

    def test_a_body_announced_too_large_is_refused_at_once(self):
        self.refused(b"POST /api/x HTTP/1.1\r\nHost: x\r\nContent-Length: 101\r\n\r\n")

    def test_body_that_becomes_too_large_is_refused(self):
        head = b"POST /api/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        self.refused(head, *[b"a\r\n0123456789\r\n"] * 7)

    def test_others_may_have_more(self):
        world = World(body_limit=lambda head: 100 if head.path.startswith(b"/api") else 10**9)
        client = world.client()
        client.give(b"POST /other HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n" + b"x" * 500)
        self.assertEqual(world.site_calls, [(b"/other", b"x" * 500)])
        client.give(b"POST /api/x HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n" + b"y" * 100)
        self.assertEqual(world.site_calls[1:], [(b"/api/x", b"y" * 100)])

    def test_a_body_without_room_gets_a_507_that_names_the_limit(self):
        world = World()

        def full(length):
            raise ByteBudget("disk", lambda used: 0, lambda: "folder of temporary files /full").full()

        world.factory.site.getContentFile = full
        client = world.client()
        client.give(b"POST /api/x HTTP/1.1\r\nHost: x\r\nContent-Length: 101\r\n\r\n")
        told = client.took()
        self.assertTrue(told.startswith(b"HTTP/1.1 507 "))
        self.assertIn(b"/full", told)
        self.assertTrue(client.half_closed)


class SiteLoadingTests(SynchronousTestCase):
    """The site is made when the first request for it comes."""

    def setUp(self):
        self.world = World()
        self.site, self.world.factory.site = self.world.factory.site, None
        self.loads = []
        self.world.factory.load_site = self.load

    def load(self):
        self.loads.append(Deferred())
        return self.loads[-1]

    def test_requests_wait_until_the_site_is_loaded_once(self):
        first, second = self.world.client(), self.world.client()
        first.give(SITE)
        second.give(SITE)
        self.assertEqual((len(self.loads), self.world.site_calls), (1, []))
        self.loads[0].callback(self.site)
        self.assertEqual(self.world.site_calls, [(b"/health?x=%2F", b"")] * 2)
        self.assertTrue(first.took().startswith(b"HTTP/1.1 200 "))
        first.give(SITE)
        self.assertEqual((len(self.loads), len(self.world.site_calls)), (1, 3))

    def test_the_body_that_follows_is_kept_and_no_more_than_a_bound_is_read(self):
        client = self.world.client()
        body = b"b" * client_connection.PIPELINE_LIMIT
        client.give(b"POST /api/x HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (len(body) + 1))
        self.assertFalse(client.paused)
        client.give(body)
        self.assertTrue(client.paused)
        self.loads[0].callback(self.site)
        self.assertFalse(client.paused)
        client.give(b"c")
        self.assertEqual(self.world.site_calls, [(b"/api/x", body + b"c")])

    def test_requests_for_models_do_not_load_it(self):
        client = self.world.client()
        client.give(GET)
        self.assertEqual((len(self.world.exchanges), self.loads), (1, []))

    def test_a_path_may_be_a_models_after_all_when_the_routes_of_the_site_are_known(self):
        client = self.world.client()
        client.give(SITE)
        self.world.factory.routes = lambda head: True
        self.loads[0].callback(self.site)
        self.assertEqual((len(self.world.exchanges), self.world.site_calls), (1, []))

    def test_a_client_that_left_meanwhile_is_not_served(self):
        client = self.world.client()
        client.give(SITE)
        client.lose()
        self.loads[0].callback(self.site)
        self.assertEqual(self.world.site_calls, [])

    def test_if_it_cannot_be_loaded_the_connection_is_closed_and_the_next_request_tries_again(self):
        client = self.world.client()
        client.give(SITE)
        self.loads[0].errback(Failure(ImportError("no klein")))
        self.assertEqual(len(self.flushLoggedErrors(ImportError)), 1)
        self.assertTrue(client.aborted)
        other = self.world.client()
        other.give(SITE)
        self.loads[1].callback(self.site)
        self.assertEqual(len(self.world.site_calls), 1)
