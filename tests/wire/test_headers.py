"""Headers cross the proxy by rule."""

from __future__ import annotations

from base64 import b64encode
from functools import partial

from twisted.internet.address import IPv6Address, UNIXAddress
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.wire import headers as header_rules

NOISY = [
    (b"Host", b"me:8080"),
    (b"connection", b"close, X-Secret"),
    (b"X-Secret", b"1"),
    (b"Keep-Alive", b"timeout=5"),
    (b"Te", b"gzip"),
    (b"Proxy-Authorization", b"x"),
    (b"Transfer-Encoding", b"chunked"),
    (b"X-Other", b"a"),
    (b"x-other", b"b"),
]


def values(headers, name: bytes) -> list[bytes]:
    return [value for key, value in headers if key.lower() == name]


def client(headers, peer):
    """The client's address according to these headers."""
    return header_rules.real_client_address(partial(header_rules.first, headers), peer)


class ToLocalServerTests(SynchronousTestCase):
    def test_hop_by_hop_headers_are_removed_and_the_rest_keeps_order_and_case(self):
        """http T092"""
        crossed = header_rules.to_local(NOISY, socket_address="")
        self.assertEqual(crossed, [(b"Host", b"me:8080"), (b"X-Other", b"a"), (b"x-other", b"b")])

    def test_connection_cannot_take_the_host_away(self):
        crossed = header_rules.to_local([(b"Host", b"h"), (b"Connection", b"host")], socket_address="")
        self.assertEqual(crossed, [(b"Host", b"h")])

    def test_the_clients_address_is_appended(self):
        """http T093"""
        crossed = header_rules.to_local([(b"X-Forwarded-For", b"9.9.9.9")], socket_address="1.2.3.4")
        self.assertEqual(values(crossed, b"x-forwarded-for"), [b"9.9.9.9, 1.2.3.4"])
        self.assertEqual(header_rules.to_local([], socket_address="::1"), [(b"X-Forwarded-For", b"::1")])

    def test_metered_requests_ask_for_codings_we_can_read(self):
        """http T095"""
        asked = [(b"Accept-Encoding", b"gzip;q=1.0, br, Deflate")]
        self.assertEqual(
            header_rules.to_local(asked, socket_address="", metered=True),
            [(b"Accept-Encoding", b"gzip;q=1.0, Deflate")],
        )
        self.assertEqual(header_rules.to_local(asked, socket_address=""), asked)
        self.assertEqual(
            header_rules.to_local([(b"Accept-Encoding", b"br, zstd")], socket_address="", metered=True), []
        )

    def test_the_header_with_our_key_stays_here_and_other_credentials_cross(self):
        both = [(b"Authorization", b"Bearer k-1"), (b"X-API-Key", b"theirs")]
        self.assertEqual(
            header_rules.to_local(both, socket_address="", key_headers=frozenset([b"authorization"])),
            [(b"X-API-Key", b"theirs")],
        )
        self.assertEqual(header_rules.to_local(both, socket_address=""), both)

    def test_our_key_passes_where_it_is_known(self):
        basic = b"Basic " + b64encode(b"any:k-1")
        names = frozenset([b"authorization", b"x-api-key"])
        for value in (b"k-1", b"Bearer k-1", basic):
            both = [(b"Authorization", value), (b"X-API-Key", b"k-2"), (b"Other", b"k-3")]
            for forward, known, kept in (
                ("auto", frozenset([b"k-1", b"serve"]), {b"x-api-key"}),
                ("auto", frozenset(), names),
                ("auto", None, set()),
                ("always", frozenset(), set()),
                ("never", frozenset([b"k-1", b"k-2"]), names),
                ("never", None, names),
            ):
                self.assertEqual(header_rules.withheld(both, names, forward, known), kept, (value, forward, known))
        self.assertEqual(header_rules.withheld([], frozenset(), "never", None), frozenset())

    def test_the_clients_framing_and_expect_stay_here(self):
        said = [(b"Content-Length", b"7"), (b"Transfer-Encoding", b"chunked"), (b"Expect", b"100-continue")]
        self.assertEqual(header_rules.to_local(said, socket_address=""), [])

    def test_requests_for_an_upgrade_and_for_trailers_are_made_again(self):
        asked = [(b"Connection", b"keep-alive, Upgrade"), (b"Upgrade", b"websocket"), (b"TE", b"trailers, gzip")]
        self.assertEqual(
            header_rules.to_local(asked, socket_address=""),
            [(b"Upgrade", b"websocket"), (b"Te", b"trailers"), (b"Connection", b"Upgrade")],
        )


class ToPeerTests(SynchronousTestCase):
    def test_a_peer_gets_its_own_host_and_key_and_nothing_of_the_way_to_us(self):
        """http T061, T093"""
        sent = [
            (b"Host", b"me"),
            (b"X-Forwarded-For", b"9.9.9.9"),
            (b"Forwarded", b"for=x"),
            (b"X-Forwarded-Proto", b"https"),
            (b"authorization", b"Bearer mine"),
            (b"X", b"1"),
        ]
        self.assertEqual(
            header_rules.to_peer(sent, authority=b"10.0.0.5:7000", api_key=b"pk"),
            [
                (b"Host", b"10.0.0.5:7000"),
                (b"X", b"1"),
                (b"Authorization", b"Bearer pk"),
                (b"x-api-key", b"pk"),
                (b"X-Llamaswap-Hops", b"1"),
            ],
        )

    def test_the_hops_between_peers_are_counted_and_a_server_does_not_see_them(self):
        for sent, hops, next_hop in ((b"1", 1, b"2"), (b"x", 2, b"3"), (b"-1", 2, b"3"), (b"9" * 5000, 2, b"3")):
            headers = [(b"x-llamaswap-hops", sent)]
            self.assertEqual(header_rules.hops(headers), hops)
            passed = header_rules.to_peer(headers, authority=b"p")
            self.assertEqual(passed, [(b"Host", b"p"), (b"X-Llamaswap-Hops", next_hop)])
            self.assertEqual(header_rules.to_local(headers, socket_address=""), [])

    def test_without_a_key_of_its_own_the_clients_credentials_reach_it(self):
        """http T063"""
        sent = [(b"Authorization", b"Bearer mine")]
        self.assertEqual(header_rules.to_peer(sent, authority=b"p")[:-1], [(b"Host", b"p"), *sent])


class ToClientTests(SynchronousTestCase):
    def test_an_answers_headers_cross_but_for_the_hops_own(self):
        """http T097"""
        answer = [
            (b"Connection", b"x-a"),
            (b"X-A", b"1"),
            (b"Set-Cookie", b"a"),
            (b"Set-Cookie", b"b"),
            (b"X-Req", b"7"),
        ]
        self.assertEqual(
            header_rules.to_client(answer).items, [(b"Set-Cookie", b"a"), (b"Set-Cookie", b"b"), (b"X-Req", b"7")]
        )

    def test_an_event_stream_is_not_to_be_buffered(self):
        """http T096"""
        answer = [(b"Content-Type", b"Text/Event-Stream; charset=utf-8"), (b"x-accel-buffering", b"yes")]
        self.assertEqual(header_rules.to_client(answer).items, [answer[0], (b"X-Accel-Buffering", b"no")])


class ReadingTests(SynchronousTestCase):
    def test_an_ipv4_client_of_a_socket_for_both_families_keeps_its_name(self):
        for host, expected in (
            ("::ffff:10.1.2.3", "10.1.2.3"),
            ("10.1.2.3", "10.1.2.3"),
            ("::1", "::1"),
            ("::ffff:a01:203", "::ffff:a01:203"),
        ):
            self.assertEqual(header_rules.address_host(IPv6Address("TCP", host, 1)), expected)
        self.assertEqual(header_rules.address_host(UNIXAddress(None)), "")

    def test_websocket_is_recognised_by_both_headers(self):
        """http T105"""
        self.assertTrue(
            header_rules.is_websocket([(b"Connection", b"keep-alive, UpGrAdE"), (b"Upgrade", b"WebSocket")])
        )
        self.assertTrue(
            header_rules.is_websocket(
                [(b"connection", b"x"), (b"connection", b"upgrade"), (b"upgrade", b"h2c"), (b"upgrade", b"websocket")]
            )
        )
        self.assertFalse(header_rules.is_websocket([(b"Connection", b"upgrade-insecure"), (b"Upgrade", b"websocket")]))
        self.assertFalse(header_rules.is_websocket([(b"Connection", b"upgrade"), (b"Upgrade", b"h2c")]))
        self.assertFalse(header_rules.is_websocket([(b"Upgrade", b"websocket")]))

    def test_the_client_is_named_by_the_first_forwarded_address(self):
        self.assertEqual(client([(b"X-Forwarded-For", b" 9.9.9.9 , 8.8.8.8")], "1.1.1.1"), "9.9.9.9")
        self.assertEqual(client([(b"X-Real-IP", b" 7.7.7.7 ")], "1.1.1.1"), "7.7.7.7")
        both = [(b"X-Real-IP", b"7.7.7.7"), (b"X-Forwarded-For", b"9.9.9.9")]
        self.assertEqual(client(both, "1.1.1.1"), "9.9.9.9")
        self.assertEqual(client([(b"X-Forwarded-For", b""), both[0]], "1.1.1.1"), "7.7.7.7")
        self.assertEqual(client([], "1.1.1.1"), "1.1.1.1")
