"""Which idle connections are kept, for how long, and which is handed out."""

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.proxy import pool
from llamaswap.proxy.upstream import NO_TIMEOUTS, UpstreamTarget
from tests.proxy.doubles import GET, World


def answer(*lines):
    return b"\r\n".join((b"HTTP/1.1 200 OK", b"Content-Length: 0", *lines)) + b"\r\n\r\n"


PLAIN = answer()
EVENTFUL = answer(b"Server: uvicorn")


class PoolTests(SynchronousTestCase):
    def burst(self, world, count, reply):
        """`count` requests at once, then all their answers."""
        clients = [world.client() for _ in range(count)]
        servers = []
        for client in clients:
            dials = world.dials
            client.give(GET)
            if world.dials > dials:
                servers.append(world.server())
        for server in servers:
            server.give(reply)
        return servers

    def test_unknown_server_keeps_one_connection(self):
        world = World()
        servers = self.burst(world, 12, PLAIN)
        self.assertEqual(world.pool.idle, 1)
        self.assertEqual(sum(server.closing for server in servers), 11)

    def test_unknown_server_keeps_it_for_two_seconds(self):
        world = World()
        (server,) = self.burst(world, 1, PLAIN)
        world.clock.advance(1.9)
        self.assertFalse(server.closing)
        world.clock.advance(0.2)
        self.assertTrue(server.closing)
        self.assertEqual(world.pool.idle, 0)

    def test_short_wait_is_not_hidden_behind_a_long_one(self):
        world = World()
        self.burst(world, 1, answer(b"Server: nginx"))
        world.pool.forget(world.upstream.endpoint)
        (server,) = self.burst(world, 1, PLAIN)
        world.clock.advance(2.1)
        self.assertTrue(server.closing)

    def test_event_driven_server_keeps_many(self):
        for name in (b"uvicorn", b"Python/3.12 aiohttp/3.11", b"hypercorn-h11", b"nginx/1.22.1", b"uvicorn/0.3"):
            world = World()
            self.burst(world, 12, answer(b"Server: " + name))
            self.assertEqual(world.pool.idle, 12, name)

    def test_even_those_are_bounded(self):
        world = World()
        self.burst(world, pool.EVENT_DRIVEN_IDLE + 3, EVENTFUL)
        self.assertEqual(world.pool.idle, pool.EVENT_DRIVEN_IDLE)

    def test_a_peer_of_few_threads_keeps_one(self):
        for name in (b"llama.cpp", b"cpp-httplib/0.15"):
            world = World()
            world.upstream = UpstreamTarget(world.upstream.endpoint, name="den", peer=True)
            self.burst(world, 12, answer(b"Server: " + name, b"Keep-Alive: timeout=5, max=100"))
            self.assertEqual(world.pool.idle, 1, name)

    def test_peer_keeps_many(self):
        world = World()
        world.upstream = UpstreamTarget(world.upstream.endpoint, name="den", peer=True)
        self.burst(world, 5, PLAIN)
        self.assertEqual(world.pool.idle, 5)

    def test_connection_is_dropped_before_the_server_may_close_it(self):
        world = World()
        self.burst(world, 1, answer(b"Server: uvicorn", b"Keep-Alive: timeout=3, max=5"))
        world.clock.advance(1.9)
        self.assertIsNotNone(world.pool.acquire(world.upstream))
        self.burst(world, 1, answer(b"Server: uvicorn", b"Keep-Alive: timeout=3"))
        world.clock.advance(2.0)
        self.assertIsNone(world.pool.acquire(world.upstream))

    def test_server_that_gives_no_time_is_closed(self):
        world = World()
        (server,) = self.burst(world, 1, answer(b"Keep-Alive: timeout=1"))
        self.assertTrue(server.closing)

    def test_configured_idle_limit_holds(self):
        world = World(timeouts=evolve(NO_TIMEOUTS, idle_conn=1.0))
        self.burst(world, 1, EVENTFUL)
        world.clock.advance(1.1)
        self.assertIsNone(world.pool.acquire(world.upstream))

    def test_closing_answer_is_not_kept(self):
        world = World()
        (server,) = self.burst(world, 1, answer(b"Server: uvicorn", b"Connection: close"))
        self.assertTrue(server.closing)
        self.assertEqual(world.pool.idle, 0)

    def test_connection_lost_while_idle_is_forgotten(self):
        world = World()
        (server,) = self.burst(world, 1, EVENTFUL)
        server.lose()
        self.assertEqual(world.pool.idle, 0)

    def test_server_that_speaks_unasked_is_closed(self):
        world = World()
        (server,) = self.burst(world, 1, EVENTFUL)
        server.give(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
        self.assertTrue(server.aborted)
        self.assertEqual(world.pool.idle, 0)

    def test_stopped_server_is_forgotten(self):
        world = World()
        servers = self.burst(world, 3, EVENTFUL)
        world.pool.forget(world.upstream.endpoint)
        self.assertTrue(all(server.closing for server in servers))
        self.assertEqual(world.pool.idle, 0)

    def test_closed_pool_keeps_nothing_and_no_clock(self):
        world = World()
        self.burst(world, 3, EVENTFUL)
        world.pool.close()
        (server,) = self.burst(world, 1, EVENTFUL)
        self.assertTrue(server.closing)
        self.assertEqual(world.clock.getDelayedCalls()[1:], [])  # the sweep of client connections remains

    def test_nothing_ticks_while_nothing_is_idle(self):
        world = World()
        self.burst(world, 3, EVENTFUL)
        world.clock.advance(10)
        world.clock.advance(10)
        self.assertEqual(world.clock.getDelayedCalls()[1:], [])  # the sweep of client connections remains
