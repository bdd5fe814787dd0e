"""What the service manager is told."""

import os
import socket

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.app.systemd import SystemdNotifier, given_socket, sender, without_ours


class NotifierTests(SynchronousTestCase):
    def setUp(self):
        self.sent = []
        self.clock = Clock()

    def notifier(self, every=None):
        return SystemdNotifier(self.sent.append, every, self.clock, lambda: 1.5)

    def test_each_message_is_lines_of_name_and_value(self):
        notifier = self.notifier()
        notifier.ready("listening")
        notifier.reloading()
        notifier.stopping()
        self.assertEqual(
            self.sent,
            [b"READY=1\nSTATUS=listening", b"RELOADING=1\nMONOTONIC_USEC=1500000", b"STOPPING=1\nSTATUS=ending"],
        )

    def test_without_a_manager_nothing_happens(self):
        notifier = SystemdNotifier.of({}, self.clock)
        notifier.ready("x")
        notifier.watch(lambda: True)
        self.assertFalse(notifier.listens)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_the_watchdog_is_fed_twice_a_period_while_all_is_well(self):
        well = [True]
        notifier = self.notifier(30.0)
        notifier.watch(lambda: well[0])
        self.clock.pump([15.0] * 2)
        self.assertEqual(self.sent, [b"WATCHDOG=1"] * 3)
        well[0] = False
        self.clock.pump([15.0] * 4)
        self.assertEqual(len(self.sent), 3)
        self.assertEqual(len(self.flushLoggedErrors()), 0)
        notifier.rest()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_manager_that_is_gone_is_nobodys_trouble(self):
        SystemdNotifier(sender("/does/not/exist")).ready("x")

    def test_the_period_is_read_from_the_environment_if_it_is_meant_for_us(self):
        said = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}
        self.assertEqual(SystemdNotifier.of(said, self.clock, 7).every, 30.0)
        self.assertIsNone(SystemdNotifier.of(said, self.clock, 8).every)
        self.assertIsNone(SystemdNotifier.of({**said, "WATCHDOG_USEC": "soon"}, self.clock, 7).every)

    def test_other_processes_do_not_inherit_what_is_ours(self):
        said = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "1", "LISTEN_FDS": "1", "LISTEN_PID": "1", "PATH": "/bin"}
        self.assertEqual(without_ours(said), {"PATH": "/bin"})


class SocketTests(SynchronousTestCase):
    def test_a_datagram_reaches_the_socket(self):
        path = self.mktemp()[-80:]
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
            line.bind(path)
            line.settimeout(5)
            sender(path)(b"READY=1")
            self.assertEqual(line.recv(100), b"READY=1")

    def test_a_socket_that_was_handed_over_is_named_by_its_family(self):
        with socket.socket(socket.AF_INET) as line:
            self.assertEqual(given_socket([line.fileno()]), "systemd:domain=INET:index=0")
        with socket.socket(socket.AF_UNIX) as line:
            self.assertEqual(given_socket([line.fileno()]), "systemd:domain=UNIX:index=0")

    def test_without_one_there_is_none(self):
        self.assertIsNone(given_socket([]))
        self.assertIsNone(given_socket())  # also: the place where Twisted keeps them has not moved

    def test_what_is_no_socket_is_not_used(self):
        with open(os.devnull) as file:
            self.assertIsNone(given_socket([file.fileno()]))
