"""Two transports joined: pace, half-close, the end."""

from twisted.internet.interfaces import IHalfCloseableDescriptor
from twisted.internet.protocol import connectionDone
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import directlyProvides

from llamaswap.proxy.tunnel import ClientPipe, Tunnel
from tests.proxy.doubles import Wire


class TunnelTests(SynchronousTestCase):
    def join(self, half=False, **early):
        self.client, self.server, self.closed = Wire(), Wire(), []
        if half:
            directlyProvides(self.client, IHalfCloseableDescriptor)
            directlyProvides(self.server, IHalfCloseableDescriptor)
        return Tunnel(self.client, self.server, closed=lambda: self.closed.append(1), **early)

    def test_early_bytes_go_first(self):
        self.join(early_server=b"b")
        self.assertEqual((self.client.took(), self.server.took()), (b"b", b""))

    def test_pace_is_kept_both_ways(self):
        self.join()
        self.client.fill()
        self.assertTrue(self.server.paused)
        self.server.fill()
        self.assertTrue(self.client.paused)
        self.client.drain()
        self.assertFalse(self.server.paused)

    def test_half_close_leaves_the_other_direction_open(self):
        self.join(half=True)
        self.client.protocol.readConnectionLost()
        self.assertTrue(self.server.half_closed)
        self.server.protocol.dataReceived(b"last words")
        self.assertEqual(self.client.took(), b"last words")
        self.assertEqual(self.closed, [])
        self.server.protocol.readConnectionLost()
        self.assertEqual(self.closed, [1])
        self.assertTrue(self.client.closing and self.server.closing)

    def test_half_close_where_it_cannot_be_passed_on_is_the_end(self):
        self.join()
        self.client.protocol.readConnectionLost()
        self.assertEqual(self.closed, [1])

    def test_lost_side_closes_the_other_once(self):
        self.join()
        self.client.protocol.connectionLost()
        self.server.protocol.connectionLost()
        self.assertEqual(self.closed, [1])
        self.assertTrue(self.server.closing)

    def test_cut_tunnel_is_cut_both_ways(self):
        tunnel = self.join()
        tunnel.abort()
        self.assertTrue(self.client.aborted and self.server.aborted)
        self.assertEqual(self.closed, [1])


class PipeTests(SynchronousTestCase):
    def test_bytes_before_the_tunnel_stands_are_kept(self):
        pipe = ClientPipe(Wire())
        pipe.received(b"a")
        pipe.received(b"b")
        server = Wire()
        Tunnel(pipe, server, closed=lambda: None)
        self.assertEqual(server.took(), b"ab")

    def test_loss_before_the_tunnel_stands_is_kept(self):
        pipe = ClientPipe(Wire())
        pipe.lost(connectionDone)
        closed = []
        server = Wire()
        Tunnel(pipe, server, closed=lambda: closed.append(1))
        self.assertEqual(closed, [1])
        self.assertTrue(server.closing)
