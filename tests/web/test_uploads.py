"""Uploads are read only as far as they must be."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.errors import NoRoom
from tests.web.pipeline import JSON, ArrivingBody, Stage

MULTIPART = (b"Content-Type", b"multipart/form-data; boundary=XX")


def upload(model: str = "alpha", last: bool = False) -> bytes:
    named = b'--XX\r\nContent-Disposition: form-data; name="model"\r\n\r\n' + model.encode() + b"\r\n"
    file = b'--XX\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + b"\x00\xff" * 50 + b"\r\n"
    return (file + named if last else named + file) + b"--XX--\r\n"


def message(sink) -> str:
    return sink.json["error"]["message"]


class UploadTests(SynchronousTestCase):
    TRANSCRIBE = b"/v1/audio/transcriptions"

    def setUp(self):
        self.stage = Stage()

    def test_an_upload_is_forwarded_byte_for_byte(self):
        """http T049"""
        self.stage.ask(b"POST", self.TRANSCRIBE, upload(), MULTIPART)
        self.assertEqual(self.stage.forwarding.sent, upload())
        self.assertIsNone(self.stage.witness.facts.captured_body)

    def test_the_model_is_asked_for_before_the_upload_is_complete(self):
        body = ArrivingBody()
        self.stage.ask(b"POST", self.TRANSCRIBE, body, MULTIPART)
        self.assertEqual(self.stage.router.asked, [])
        body.feed(upload()[:100])
        self.assertEqual(len(self.stage.router.asked), 1)
        self.assertIs(self.stage.forwarding.body, body)
        self.assertEqual(body.stops, 1)

    def test_an_upload_for_which_there_is_no_room_is_refused_in_words(self):
        for path, kind in ((self.TRANSCRIBE, None), (b"/v1/messages", "error")):
            stage = Stage()
            body = ArrivingBody()
            asked = stage.ask(b"POST", path, body, MULTIPART)
            body.consumer.body_failed(NoRoom("disk"))
            self.assertEqual((asked.sink.status, asked.sink.json.get("type")), (507, kind))
            self.assertIn("share of the disk", message(asked.sink))

    def test_a_model_behind_the_file_is_found(self):
        body = ArrivingBody()
        self.stage.ask(b"POST", self.TRANSCRIBE, body, MULTIPART)
        body.feed(upload(last=True))
        self.assertEqual(len(self.stage.router.asked), 1)

    def test_an_upload_without_a_model_or_boundary_is_refused(self):
        """http T051"""
        for kind, text in (
            (MULTIPART, upload().replace(b"model", b"other")),
            ((JSON[0], b"multipart/form-data"), upload()),
        ):
            stage = Stage()
            asked = stage.ask(b"POST", self.TRANSCRIBE, text, kind)
            self.assertEqual((asked.sink.status, message(asked.sink)), (404, "no model id could be identified"))

    def test_a_configured_model_name_is_put_into_the_form_in_place(self):
        for last in (False, True):
            stage = Stage()
            body = ArrivingBody()
            stage.ask(b"POST", self.TRANSCRIBE, body, MULTIPART)
            text = upload("whisper", last)
            for start in range(0, len(text), 7):
                body.feed(text[start : start + 7])
            body.length = len(text)
            body.end()
            self.assertEqual(stage.forwarding.sent, upload("whisper-v3", last))
            self.assertEqual(stage.forwarding.body.length, len(text) + 3)
            self.assertEqual(stage.witness.facts.model, "whisper")
            self.assertEqual(self.streamed(stage.forwarding.body), upload("whisper-v3", last))

    def streamed(self, body) -> bytes:
        class Taker:
            taken = b""
            ended = 0

            def body_data(self, data):
                assert data
                self.taken += data

            def body_ended(self):
                self.ended += 1

        taker = Taker()
        source, body.source = body.source, ArrivingBody()
        body.start(taker)
        for byte in source.arrived:
            body.source.feed(bytes([byte]))
        body.source.end()
        self.assertEqual(taker.ended, 1)
        return taker.taken

    def test_the_querys_model_wins_and_the_body_is_not_read(self):
        body = ArrivingBody()
        self.stage.ask(b"POST", self.TRANSCRIBE + b"?model=alpha", body, MULTIPART)
        self.assertIs(self.stage.forwarding.body, body)
        self.assertIsNone(body.consumer)
