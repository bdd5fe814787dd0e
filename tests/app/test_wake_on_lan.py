"""A sleeping machine: when it is probed, when it is woken, and for how long an answer counts."""

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.app.wake_on_lan import PACKET_INTERVAL, POLL_INTERVAL, TRUST_TIME, WakeableHost, magic_packet


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

    def wake(self, timeout):
        return Deferred.fromCoroutine(self.host.wake(timeout))

    def run_for(self, seconds):
        self.clock.pump([POLL_INTERVAL] * int(seconds / POLL_INTERVAL))

    def test_waiting_request_goes_on_when_the_machine_wakes(self):
        """core V115"""
        waiting = self.wake(60)
        self.run_for(20)
        self.assertNoResult(waiting)
        self.up = True
        self.clock.advance(POLL_INTERVAL)
        self.assertTrue(self.successResultOf(waiting))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_machine_that_does_not_wake_ends_the_wait(self):
        """core V115"""
        waiting = self.wake(60)
        self.run_for(60)
        self.assertFalse(self.successResultOf(waiting))
        self.run_for(1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_waiting_requests_share_probes_and_packets(self):
        """core V115 (fix: one packet a request)"""
        waiting = [self.wake(60) for _ in range(100)]
        self.run_for(2 * PACKET_INTERVAL - 1)
        self.assertEqual(self.packets, 2)
        self.assertLess(self.probes, 10 / POLL_INTERVAL + 2)
        self.up = True
        self.clock.advance(POLL_INTERVAL)
        self.assertEqual([self.successResultOf(waiter) for waiter in waiting], [True] * 100)

    def test_last_request_that_is_cancelled_ends_the_probing(self):
        """core W29 (fix)"""
        waiting = self.wake(60)
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.run_for(1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_awake_machine_gets_no_packet(self):
        self.up = True
        self.assertTrue(self.successResultOf(self.wake(60)))
        self.assertEqual(self.packets, 0)

    def test_answer_counts_for_a_limited_time(self):
        self.host.answered()
        self.assertTrue(self.host.known_awake)
        self.clock.advance(TRUST_TIME)
        self.assertFalse(self.host.known_awake)
        self.host.answered()
        self.host.lost()
        self.assertFalse(self.host.known_awake)

    def test_probe_does_not_wake_the_machine(self):
        """core V116"""
        self.assertFalse(self.successResultOf(self.host.is_awake()))
        self.assertEqual((self.packets, self.host.failures), (0, 1))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_refused_packet_is_only_logged(self):
        self.refused = True
        waiting = self.wake(1)
        self.run_for(1)
        self.assertFalse(self.successResultOf(waiting))


class PacketTests(SynchronousTestCase):
    def test_packet_is_six_ff_and_sixteen_times_the_address(self):
        packet = magic_packet("01:23:45:67:89:ab")
        self.assertEqual(packet, b"\xff" * 6 + bytes.fromhex("0123456789ab") * 16)
        self.assertEqual(magic_packet("01-23-45-67-89-AB"), packet)

    def test_invalid_address_is_refused(self):
        for text in ("", "01:23", "zz:23:45:67:89:ab"):
            self.assertRaises(ValueError, magic_packet, text)
