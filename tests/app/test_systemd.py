"""The notifications to the service manager."""

import os
import socket

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.app.systemd import SystemdNotifier, child_environment, inherited_endpoint, sender


class NotifierTests(SynchronousTestCase):
    def setUp(self):
        self.sent = []
        self.clock = Clock()

    def notifier(self, every=None):
        return SystemdNotifier(self.sent.append, every, self.clock, lambda: 1.5)

    def test_message_is_lines_of_name_and_value(self):
        notifier = self.notifier()
        notifier.ready("listening")
        notifier.reloading()
        notifier.stopping()
        self.assertEqual(
            self.sent,
            [b"READY=1\nSTATUS=listening", b"RELOADING=1\nMONOTONIC_USEC=1500000", b"STOPPING=1\nSTATUS=ending"],
        )

    def test_notifier_without_a_manager_does_nothing(self):
        notifier = SystemdNotifier.of({}, self.clock)
        notifier.ready("x")
        notifier.start_watchdog(lambda: True)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_keep_alive_is_sent_twice_a_period_while_the_service_is_healthy(self):
        well = [True]
        notifier = self.notifier(30.0)
        notifier.start_watchdog(lambda: well[0])
        self.clock.pump([15.0] * 2)
        self.assertEqual(self.sent, [b"WATCHDOG=1"] * 3)
        well[0] = False
        self.clock.pump([15.0] * 4)
        self.assertEqual(len(self.sent), 3)
        self.assertEqual(len(self.flushLoggedErrors()), 0)
        notifier.stopping()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_unreachable_manager_is_ignored(self):
        SystemdNotifier(sender("/does/not/exist")).ready("x")
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_watchdog_period_is_read_if_it_is_for_this_process(self):
        said = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}
        self.assertEqual(SystemdNotifier.of(said, self.clock, 7).watchdog_period, 30.0)
        self.assertIsNone(SystemdNotifier.of(said, self.clock, 8).watchdog_period)
        self.assertIsNone(SystemdNotifier.of({**said, "WATCHDOG_USEC": "soon"}, self.clock, 7).watchdog_period)

    def test_child_environment_has_no_variables_of_the_manager(self):
        said = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "1", "LISTEN_FDS": "1", "LISTEN_PID": "1", "PATH": "/bin"}
        self.assertEqual(child_environment(said), {"PATH": "/bin"})


class SocketTests(SynchronousTestCase):
    def test_datagram_reaches_the_socket(self):
        path = self.mktemp()[-80:]
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
            line.bind(path)
            line.settimeout(5)
            sender(path)(b"READY=1")
            self.assertEqual(line.recv(100), b"READY=1")

    def test_inherited_socket_has_an_endpoint_of_its_family(self):
        with socket.socket(socket.AF_INET) as line:
            self.assertEqual(inherited_endpoint([line.fileno()]), "systemd:domain=INET:index=0")
        with socket.socket(socket.AF_UNIX) as line:
            self.assertEqual(inherited_endpoint([line.fileno()]), "systemd:domain=UNIX:index=0")

    def test_no_inherited_socket_has_no_endpoint(self):
        self.assertIsNone(inherited_endpoint([]))
        self.assertIsNone(inherited_endpoint())  # this also checks the private place of Twisted

    def test_descriptor_that_is_not_a_socket_is_not_used(self):
        with open(os.devnull) as file:
            self.assertIsNone(inherited_endpoint([file.fileno()]))
