"""The second listening socket."""

import os

from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.app.ollama_listener import OllamaListener, listen_address
from llamaswap.config.schema import OllamaSettings
from llamaswap.proxy.listen import ListenAddress


class AddressTests(SynchronousTestCase):
    def test_only_an_enabled_api_with_an_address_listens(self):
        self.assertIsNone(listen_address(OllamaSettings()))
        self.assertIsNone(listen_address(OllamaSettings(enabled=False, listen="127.0.0.1:11434")))
        address = listen_address(OllamaSettings(listen="127.0.0.1:11434"))
        self.assertEqual((address.address, address.loopback_only), (("127.0.0.1", 11434), True))

    def test_an_address_that_is_none_is_refused(self):
        for text in ("11434", "unix:/tmp/x", "host:99999", "systemd:domain=INET:index=1"):
            with self.assertRaisesRegex(ValueError, "ollama.listen"):
                listen_address(OllamaSettings(listen=text))


class ListenerTests(SynchronousTestCase):
    def setUp(self):
        self.reactor, self.refused = MemoryReactorClock(), []

    def opened(self, text, given=None):
        listener = OllamaListener(self.reactor, ListenAddress(text) if text else None, given)
        listener.open(Factory(), lambda address, error: self.refused.append((address, type(error))))
        return listener

    def test_without_an_address_nothing_listens(self):
        listener = self.opened("")
        self.assertEqual((self.reactor.tcpServers, listener.number, listener.handover()), ([], None, None))
        self.successResultOf(Deferred.fromCoroutine(listener.close()))

    def test_second_socket_listens_until_it_is_closed(self):
        listener = self.opened("127.0.0.1:11434")
        [(port, _, _, interface)] = self.reactor.tcpServers
        self.assertEqual((port, interface, listener.number), (11434, "127.0.0.1", 11434))
        self.successResultOf(Deferred.fromCoroutine(listener.close()))
        self.assertIsNone(listener.number)

    def test_a_port_that_is_taken_is_reported(self):
        def taken(port, *more, **options):
            raise CannotListenError("127.0.0.1", port, OSError(98, "Address already in use"))

        self.reactor.listenTCP = taken
        self.opened("127.0.0.1:11434")
        self.assertEqual(self.refused, [("127.0.0.1:11434", CannotListenError)])

    def test_an_inherited_socket_that_nothing_asks_for_is_closed(self):
        for text in ("", "127.0.0.1:11435"):
            descriptor = os.open("/dev/null", os.O_RDONLY)
            self.opened(text, (descriptor, "127.0.0.1:11434"))
            self.assertRaises(OSError, os.fstat, descriptor)
