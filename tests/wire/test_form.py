"""Forms name their model, and get another one in place."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.wire.form import MultipartScan, boundary, form_value, with_form_value, with_places


class FormTests(SynchronousTestCase):
    def test_fields_are_decoded(self):
        self.assertEqual(form_value(b"a=1&model=org%2Fa+b&model=c", "model"), "org/a b")
        self.assertEqual(form_value(b"", "model"), "")
        self.assertEqual(form_value(b"mod%65l=x", "model"), "x")

    def test_every_field_of_the_name_is_replaced_and_the_rest_keeps_its_bytes(self):
        self.assertEqual(
            with_form_value(b"b=%7e&model=x&a=+&model=", "model", "o/p q"), b"b=%7e&model=o%2Fp+q&a=+&model=o%2Fp+q"
        )
        self.assertEqual(with_form_value(b"model&a", "model", "x"), b"model=x&a")
        self.assertEqual(with_form_value(b"a=1", "model", "x"), b"a=1")
        self.assertEqual(with_form_value(b"m%6Fdel=1&models=2", "model", "7"), b"m%6Fdel=7&models=2")


MULTIPART = (
    b'--XX\r\nContent-Disposition: form-data; name="language"\r\n\r\nen\r\n'
    b'--XX\r\ncontent-disposition: form-data; name="model"\r\nX-Y: z\r\n\r\nwhisper\r\n'
    b'--XX\r\nContent-Disposition: form-data; name="file"; filename="model"\r\n'
    b"Content-Type: audio/wav\r\n\r\n\r\n--X\r\n--X-not\r\n\x00\xff\r\n"
    b"--XX\r\nContent-Disposition: form-data; name=model\r\n\r\n\r\n"
    b"--XX--\r\nepilogue"
)


class MultipartScanTests(SynchronousTestCase):
    def scanned(self, data: bytes, size: int = 0, kind: bytes = b"multipart/form-data; boundary=XX") -> MultipartScan:
        scan = MultipartScan.of(kind)
        for start in range(0, len(data), size or len(data) or 1):
            scan.feed(data[start : start + (size or len(data))])
        return scan

    def test_the_model_is_found_however_the_bytes_arrive(self):
        for size in (0, 1, 2, 3, 7, 64):
            scan = self.scanned(MULTIPART, size)
            self.assertEqual([place.value for place in scan.places], ["whisper", ""], size)
            self.assertTrue(scan.ended)
            for place in scan.places:
                self.assertEqual(MULTIPART[place.start : place.end].decode(), place.value)

    def test_the_model_is_known_before_the_file_arrives(self):
        scan = MultipartScan.of(b'multipart/form-data; charset=x; boundary="XX"')
        scan.feed(MULTIPART[: MULTIPART.index(b'name="file"')])
        self.assertEqual(scan.value("model"), "whisper")

    def test_a_files_bytes_are_not_kept(self):
        scan = self.scanned(MULTIPART[: MULTIPART.index(b"audio/wav") + 13])
        for _ in range(100):
            scan.feed(b"x" * 10_000)
        self.assertLess(len(scan.held), 200)

    def test_replacing_keeps_boundary_headers_and_files(self):
        scan = self.scanned(MULTIPART)
        changed = with_places(MULTIPART, scan.places, "model", "whisper-v3")
        self.assertEqual(
            changed,
            MULTIPART.replace(b"\r\n\r\nwhisper\r\n", b"\r\n\r\nwhisper-v3\r\n").replace(
                b"name=model\r\n\r\n\r\n", b"name=model\r\n\r\nwhisper-v3\r\n"
            ),
        )

    def test_no_boundary_and_no_multipart_are_broken(self):
        """http T051"""
        self.assertTrue(self.scanned(MULTIPART, kind=b"multipart/form-data").broken)
        self.assertTrue(self.scanned(b"--XXgarbage\r\n").broken)
        self.assertEqual(self.scanned(b"nothing of the kind").places, [])

    def test_a_parts_headers_have_a_bound(self):
        self.assertTrue(self.scanned(b"--XX\r\n" + b"a: b\r\n" * 10_000).broken)

    def test_a_value_beyond_the_bound_is_no_model(self):
        head = b'--XX\r\nContent-Disposition: form-data; name="model"\r\n\r\n'
        scan = self.scanned(head + b"m" * 300_000, 1000)
        self.assertLess(len(scan.held), 70_000)
        self.assertIsNone(scan.value("model"))

    def test_boundaries_are_read_from_the_content_type(self):
        self.assertEqual(boundary(b'multipart/form-data; BOUNDARY="a b\\"c"'), b'a b"c')
        self.assertIsNone(boundary(b"multipart/form-data; boundary=" + b"x" * 300))
