"""What a program inherits from the one before an upgrade."""

import os
import socket

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.proxy.listen import ListenAddress
from llamaswap.upgrade.program import AdoptingReactor, InheritedState, inherited
from llamaswap.upgrade.state import INHERIT, pack, write_memfd
from tests.upgrade.test_state import STATE


class InheritedTests(SynchronousTestCase):
    def test_state_is_read_from_its_descriptor_and_the_notice_removed(self):
        here, there = socket.socketpair()
        self.addCleanup(there.close)
        deposited = write_memfd(pack(STATE))
        environ = {INHERIT: f"{here.fileno()}:{deposited}:[::1]:80", "PATH": "/bin"}
        self.assertEqual(inherited(environ), InheritedState(here.detach(), "[::1]:80", STATE))
        self.assertEqual(environ, {"PATH": "/bin"})
        self.assertRaises(OSError, os.fstat, deposited)
        self.assertIsNone(inherited(environ))

    def test_unreadable_state_still_leaves_the_socket(self):
        here, there = socket.socketpair()
        self.addCleanup(there.close)
        self.addCleanup(here.close)
        deposited = write_memfd(b"{")
        found = inherited({INHERIT: f"{here.fileno()}:{deposited}::80"})
        self.assertEqual((found.listening, found.where, found.state), (here.fileno(), ":80", None))
        self.assertTrue(found.problem)


class AdoptingTests(SynchronousTestCase):
    def test_every_endpoint_gets_the_inherited_socket(self):
        class Reactor:
            def __init__(self):
                self.adopted = []

            def adoptStreamPort(self, descriptor, family, factory):
                self.adopted.append((descriptor, family, factory))
                return "port"

        for text in ("127.0.0.1:8080", ":0", "tcp:80", "unix:/nowhere/x.sock", "systemd:domain=INET:index=0"):
            reactor = Reactor()
            with socket.socket() as there:
                there.bind(("127.0.0.1", 0))
                there.listen()
                descriptor = os.dup(there.fileno())
            listening = AdoptingReactor(reactor, descriptor).endpoint(ListenAddress(text)).listen("factory")
            self.assertEqual(self.successResultOf(listening), "port")
            self.assertEqual(reactor.adopted, [(descriptor, socket.AF_INET, "factory")])
            self.assertRaises(OSError, os.fstat, descriptor)
