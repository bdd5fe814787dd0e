"""Content codings of requests and responses."""

import gzip
import os
import zlib

import zstandard
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.wire.content_coding import MEMBERS, PART, Decoding, Undecodable, decode

LIMIT = 1 << 20


class DecodeTests(SynchronousTestCase):
    def test_body_is_decoded_by_its_coding(self):
        raw = zlib.compressobj(wbits=-15)
        deflated = raw.compress(b"text") + raw.flush()
        frame = zstandard.ZstdCompressor().compress
        for coding, body, text in (
            ("gzip", gzip.compress(b"a") + gzip.compress(b"b"), b"ab"),
            ("x-gzip", gzip.compress(b"a"), b"a"),
            ("deflate", deflated, b"text"),
            (" Deflate ", zlib.compress(b"text"), b"text"),
            ("zstd", frame(b"text" * 999), b"text" * 999),
            ("zstd", frame(b"a") + frame(b"b"), b"ab"),
            ("br", b"as is", b"as is"),
            ("gzip", b"", b""),
        ):
            self.assertEqual(decode(body, coding, LIMIT), text, coding)

    def test_broken_incomplete_and_exploding_bodies_are_refused(self):
        bomb = bytes(LIMIT + 1)
        for coding, body in (
            ("gzip", b"junk"),
            ("gzip", gzip.compress(b"a" * 100)[:-9]),
            ("gzip", gzip.compress(bomb, 1)),
            ("deflate", b"\xff\xff"),
            ("zstd", b"junk"),
            ("zstd", zstandard.ZstdCompressor().compress(b"a" * 100)[:-2]),
            ("zstd", zstandard.ZstdCompressor().compress(bomb)),
        ):
            self.assertRaises(Undecodable, decode, body, coding, LIMIT)

    def test_a_body_of_countless_empty_members_is_refused(self):
        for coding, member in (("gzip", gzip.compress(b"")), ("zstd", zstandard.ZstdCompressor().compress(b""))):
            self.assertEqual(decode(member * MEMBERS, coding, LIMIT), b"")
            self.assertRaises(Undecodable, decode, member * (MEMBERS + 1), coding, LIMIT)

    def test_a_large_body_is_decoded_in_parts(self):
        text = os.urandom(2 * PART)
        for coding, body in (("gzip", gzip.compress(text, 1)), ("zstd", zstandard.ZstdCompressor().compress(text))):
            decoding, sizes = Decoding(body, coding, len(text)), []
            while not decoding.done:
                decoding.advance()
                sizes.append(decoding.size)
            self.assertGreater(len(sizes), 1, coding)
            self.assertEqual(decoding.result, text)
