"""Words of the command line to places to listen."""

import errno
import socket

from twisted.internet.endpoints import TCP4ServerEndpoint, TCP6ServerEndpoint, UNIXServerEndpoint
from twisted.internet.error import CannotListenError
from twisted.internet.testing import MemoryReactor
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.proxy.listen import ListenAddress, refusal, resolved


class ListenTests(SynchronousTestCase):
    def test_host_and_port_in_each_spelling(self):
        for text, address in (
            ("127.0.0.1:8080", ("127.0.0.1", 8080)),
            (":9", ("", 9)),
            ("[::1]:80", ("::1", 80)),
            ("localhost:1", ("localhost", 1)),
            ("unix:/tmp/x", None),
            ("tcp:80:interface=127.0.0.1", None),
        ):
            self.assertEqual(ListenAddress(text).address, address)

    def test_endpoints_of_each_kind(self):
        for text, kind in (
            ("127.0.0.1:80", TCP4ServerEndpoint),
            ("[::1]:80", TCP6ServerEndpoint),
            ("unix:/run/x.sock", UNIXServerEndpoint),
            ("tcp:80", TCP4ServerEndpoint),
        ):
            self.assertIsInstance(ListenAddress(text).endpoint(MemoryReactor()), kind)

    def test_nonsense_is_said_in_words(self):
        for text in ("8080", "host", "127.0.0.1:99999", "nonsense:1:2"):
            error = self.assertRaises(ValueError, ListenAddress(text).endpoint, MemoryReactor())
            self.assertIn(text, str(error))

    def test_error_of_a_bare_port_shows_its_spelling(self):
        error = self.assertRaises(ValueError, ListenAddress("8080").endpoint, MemoryReactor())
        self.assertEqual(str(error), "--listen 8080: a port alone is written :8080")

    def test_a_host_without_an_address_is_named(self):
        def unknown(*words, **more):
            raise socket.gaierror(-2, "Name or service not known")

        self.patch(socket, "getaddrinfo", unknown)
        error = self.assertRaises(ValueError, ListenAddress("nosuch.invalid:80").endpoint, MemoryReactor())
        self.assertEqual(str(error), "--listen nosuch.invalid:80: Name or service not known")

    def test_a_port_that_is_taken_is_said_once_and_with_the_way_out(self):
        taken = CannotListenError("127.0.0.1", 8080, OSError(errno.EADDRINUSE, "Address already in use"))
        told = "cannot listen on :8080: Address already in use; is it running already? -listen HOST:PORT takes another"
        self.assertEqual(refusal(":8080", taken), told)
        foreign = CannotListenError("192.0.2.1", 1, OSError(errno.EADDRNOTAVAIL, "Cannot assign address"))
        self.assertEqual(refusal("192.0.2.1:1", foreign), "cannot listen on 192.0.2.1:1: Cannot assign address")
        self.assertEqual(refusal("x", ValueError("odd")), "cannot listen on x: odd")

    def test_only_an_address_of_this_machine_counts_as_loopback(self):
        for text, expected in (
            ("127.0.0.1:80", True),
            ("127.9.9.9:80", True),
            ("[::1]:80", True),
            ("localhost:80", True),
            ("unix:/run/x", True),
            ("tcp:80:interface=127.0.0.1", True),
            (":80", False),
            ("0.0.0.0:80", False),
            ("[::]:80", False),
            ("tcp:80", False),
            ("no such host:80", False),
        ):
            self.assertEqual(ListenAddress(text).loopback_only, expected, text)

    def test_localhost_is_bound_on_ipv4(self):
        self.assertEqual(resolved("localhost"), "127.0.0.1")

    def test_a_missing_certificate_is_named(self):
        path = self.mktemp()
        with open(path, "w", encoding="utf-8") as file:
            file.write("no certificate")
        error = self.assertRaises(ValueError, ListenAddress(":1", path, path).endpoint, MemoryReactor())
        self.assertIn(path, str(error))
