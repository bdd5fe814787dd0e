"""Websocket messages, in pieces and malformed."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.wire.websocket import (
    BINARY,
    CLOSE,
    PING,
    TEXT,
    BadFrame,
    MessageReader,
    accept_key,
    close_frame,
    frame,
    is_control,
)


def masked(opcode, payload, mask=b"\x01\x02\x03\x04", final=True):
    whole = bytearray(frame(opcode, payload, masked=True))
    start = len(whole) - len(payload)
    whole[start - 4 : start] = mask
    for place in range(len(payload)):
        whole[start + place] ^= mask[place % 4]
    if not final:
        whole[0] &= 0x7F
    return bytes(whole)


class ReaderTests(SynchronousTestCase):
    def setUp(self):
        self.reader = MessageReader(100_000)

    def test_messages_of_every_length_are_unmasked(self):
        for size in (0, 1, 3, 4, 125, 126, 65535, 65536, 99_999):
            payload = bytes(range(256)) * (size // 256 + 1)
            self.assertEqual(self.reader.feed(masked(TEXT, payload[:size])), [(TEXT, payload[:size])], size)

    def test_bytes_one_by_one_make_the_same_messages(self):
        sent = masked(TEXT, b"a", final=False) + masked(PING, b"p") + masked(0, b"b") + masked(BINARY, b"c" * 200)
        found = [message for place in range(len(sent)) for message in self.reader.feed(sent[place : place + 1])]
        self.assertEqual(found, [(PING, b"p"), (TEXT, b"ab"), (BINARY, b"c" * 200)])
        self.assertEqual(self.reader.unread, b"")

    def test_unread_pieces_can_be_passed_on(self):
        sent = masked(TEXT, b"one, ", final=False) + masked(0, b"two, ", final=False) + masked(0, b"three")
        cut = len(sent) - 3
        self.assertEqual(self.reader.feed(sent[:cut]), [])
        other = MessageReader(100)
        self.assertEqual(other.feed(self.reader.unread + sent[cut:]), [(TEXT, b"one, two, three")])

    def test_malformed_frames_are_refused(self):
        for data in (
            frame(TEXT, b"not masked"),
            b"\xc1\x80\0\0\0\0",  # compressed
            b"\x83\x80\0\0\0\0",  # of an unknown kind
            b"\x09\x80\0\0\0\0",  # a ping in pieces
            b"\x89\xfe\x00\x80",  # a long ping
            masked(0, b"of nothing"),
            masked(TEXT, b"a", final=False) + masked(TEXT, b"b"),
        ):
            with self.assertRaises(BadFrame) as raised:
                MessageReader(100_000).feed(data)
            self.assertEqual(raised.exception.code, 1002, data)

    def test_large_messages_are_refused_before_they_have_arrived(self):
        for data in (b"\x81\xff" + (1 << 40).to_bytes(8, "big"), masked(TEXT, b"x" * 60_000, final=False) * 1):
            reader = MessageReader(100_000)
            with self.assertRaises(BadFrame) as raised:
                reader.feed(data)
                reader.feed(masked(0, b"x" * 60_000))
            self.assertEqual(raised.exception.code, 1009)

    def test_endless_empty_pieces_are_refused(self):
        self.reader = MessageReader(100)
        self.reader.feed(masked(TEXT, b"", final=False))
        self.assertRaises(BadFrame, self.reader.feed, masked(0, b"", final=False) * 200)


class FrameTests(SynchronousTestCase):
    def test_the_handshake_of_the_rfc_is_answered(self):
        self.assertEqual(accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="), b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")

    def test_a_long_reason_is_cut_between_characters(self):
        whole = close_frame(1008, "ö" * 100)
        self.assertEqual((whole[0], whole[2:4]), (0x80 | CLOSE, (1008).to_bytes(2, "big")))
        self.assertEqual(whole[4:].decode(), "ö" * 61)

    def test_pings_are_told_from_messages(self):
        self.assertTrue(is_control(masked(PING, b"x" * 125)))
        self.assertTrue(is_control(frame(10, b"")))
        for data in (b"", masked(TEXT, b"hi"), masked(PING, b"x") + masked(TEXT, b"y" * 200)):
            self.assertFalse(is_control(data), data)
