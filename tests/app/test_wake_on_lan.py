"""A machine that sleeps is waked once, asked often, and believed for a moment."""

from twisted.internet.defer import CancelledError, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.app.wake_on_lan import FRESH, LOOK, PACKET_EVERY, WakeableHost, magic_packet


class HostTests(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.up = self.refused = False
        self.probes = self.packets = 0

        def probe():
            self.probes += 1
            return succeed(self.up)

        def wake():
            if self.refused:
                raise OSError("no network")
            self.packets += 1

        self.host = WakeableHost(self.clock, probe, wake)

    def run_for(self, seconds):
        self.clock.pump([LOOK] * int(seconds / LOOK))

    def test_who_waits_is_answered_when_it_wakes(self):
        """core V115"""
        waiting = self.host.awake(60)
        self.run_for(20)
        self.assertNoResult(waiting)
        self.up = True
        self.clock.advance(LOOK)
        self.assertTrue(self.successResultOf(waiting))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_who_waits_too_long_is_told_so(self):
        """core V115"""
        waiting = self.host.awake(60)
        self.run_for(60)
        self.assertFalse(self.successResultOf(waiting))
        self.run_for(1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_many_who_wait_are_one_who_asks_and_packets_are_few(self):
        """core V115 (fix: one packet a request)"""
        waiting = [self.host.awake(60) for _ in range(100)]
        self.run_for(2 * PACKET_EVERY - 1)
        self.assertEqual(self.packets, 2)
        self.assertLess(self.probes, 10 / LOOK + 2)
        self.up = True
        self.clock.advance(LOOK)
        self.assertEqual([self.successResultOf(waiter) for waiter in waiting], [True] * 100)

    def test_who_leaves_waits_no_longer_and_the_last_one_ends_the_asking(self):
        """core W29 (fix)"""
        waiting = self.host.awake(60)
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.run_for(1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_machine_that_is_awake_gets_no_packet(self):
        self.up = True
        self.assertTrue(self.successResultOf(self.host.awake(60)))
        self.assertEqual(self.packets, 0)

    def test_what_was_heard_is_believed_for_a_moment_and_no_longer(self):
        self.host.heard()
        self.assertTrue(self.host.fresh)
        self.clock.advance(FRESH)
        self.assertFalse(self.host.fresh)
        self.host.heard()
        self.host.lost()
        self.assertFalse(self.host.fresh)

    def test_looking_never_wakes(self):
        """core V116"""
        from twisted.internet.defer import Deferred

        self.assertFalse(self.successResultOf(Deferred.fromCoroutine(self.host.look())))
        self.assertEqual((self.packets, self.host.failures), (0, 1))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_network_that_refuses_the_packet_is_only_logged(self):
        self.refused = True
        waiting = self.host.awake(1)
        self.run_for(1)
        self.assertFalse(self.successResultOf(waiting))


class PacketTests(SynchronousTestCase):
    def test_it_is_six_ff_and_sixteen_times_the_address(self):
        packet = magic_packet("01:23:45:67:89:ab")
        self.assertEqual(packet, b"\xff" * 6 + bytes.fromhex("0123456789ab") * 16)
        self.assertEqual(magic_packet("01-23-45-67-89-AB"), packet)

    def test_nonsense_is_refused(self):
        for text in ("", "01:23", "zz:23:45:67:89:ab"):
            self.assertRaises(ValueError, magic_packet, text)
