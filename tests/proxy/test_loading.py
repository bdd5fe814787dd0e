"""A client reads what it waits for; the wait is not a moment longer."""

from __future__ import annotations

import json

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.proxy.loading import REMARKS, LoadingStream, reasoning

RULE = "━━━━━"


class Reader:
    """Collects the events of a loading stream."""

    def __init__(self, model: str = "alpha", remarks=("Remark.",)) -> None:
        self.clock = Clock()
        self.writes: list[bytes] = []
        self.loading = LoadingStream(self.clock, model, self.writes.append, lambda low, high: low, remarks)

    @property
    def texts(self) -> list[str]:
        found = []
        for event in b"".join(self.writes).split(b"\n\n")[:-1]:
            assert event.startswith(b"data: ")
            document = json.loads(event[6:])
            assert list(document) == ["choices"]
            ((choice,),) = (document["choices"],)
            assert list(choice) == ["delta"] and list(choice["delta"]) == ["reasoning_content"]
            found.append(choice["delta"]["reasoning_content"])
        return found

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def advance(self, seconds: float) -> None:
        self.clock.pump([0.01] * round(seconds / 0.01))


class LoadingStreamTests(SynchronousTestCase):
    def test_an_event_has_exactly_the_form_that_clients_parse(self):
        self.assertEqual(reasoning("a\n"), b'data: {"choices":[{"delta":{"reasoning_content":"a\\n"}}]}\n\n')

    def test_the_first_event_is_written_before_any_time_passes(self):
        """core V95"""
        reader = Reader()
        reader.loading.start()
        self.assertEqual(reader.texts[:3], [RULE, "\n", "llama"])
        reader.loading.stop()

    def test_the_banner_is_typed_in_pieces_of_five(self):
        """http T107"""
        reader = Reader()
        reader.loading.start()
        reader.advance(0.5)
        self.assertEqual(reader.texts, [RULE, "\n", "llama", "-swap", " load", "ing m", "odel:", " alph", "a", "\n"])
        reader.loading.stop()

    def test_the_grant_waits_for_no_typing(self):
        """core V96"""
        reader = Reader("m" * 60)
        reader.loading.start()
        reader.clock.advance(0.1)
        reader.loading.finish()
        self.assertTrue(
            reader.text.startswith(f"{RULE}\nllama-swap loading model: {'m' * 60}\n\nDone! (0.10s)\n{RULE}\n \n")
        )
        self.assertTrue(reader.text.endswith(f"Done! (0.10s)\n{RULE}\n \n"))
        self.assertEqual(reader.clock.getDelayedCalls(), [])

    def test_signs_of_life_follow_every_tick(self):
        reader = Reader()
        reader.loading.start()
        reader.advance(0.45 + 0.76)
        self.assertTrue(reader.text.endswith("model: alpha\n\nRemar"), reader.text)
        reader.advance(0.1 + 0.76 * 2)
        self.assertTrue(reader.text.endswith("\nRemark. .."), reader.text)
        reader.advance(4)
        self.assertIn("Remark. " + "." * 6 + "\nRemar", reader.text)
        reader.loading.stop()

    def test_newest_queue_position_is_shown_at_the_next_tick(self):
        """core V97, http T111"""
        reader = Reader()
        reader.loading.start()
        reader.loading.show_position(3)
        reader.loading.show_position(2)
        reader.advance(0.45 + 0.76 + 0.5)
        self.assertTrue(reader.text.endswith("\nQueue position: #2 "), reader.text)
        self.assertNotIn("#3", reader.text)
        reader.loading.show_position(1)
        reader.advance(0.76 + 0.5)
        self.assertIn("Queue position: #1 ", reader.text)
        reader.loading.stop()

    def test_nothing_is_said_after_the_end(self):
        reader = Reader()
        reader.loading.start()
        reader.loading.finish()
        count = len(reader.writes)
        reader.loading.finish()
        reader.advance(3)
        self.assertEqual(len(reader.writes), count)

    def test_a_client_that_left_gets_no_outro(self):
        reader = Reader()
        reader.loading.start()
        reader.loading.stopProducing()
        reader.loading.finish()
        self.assertNotIn("Done!", reader.text)
        self.assertEqual(reader.clock.getDelayedCalls(), [])

    def test_a_client_that_does_not_read_is_not_written_to(self):
        reader = Reader()
        reader.loading.start()
        reader.advance(2)
        reader.loading.pauseProducing()
        count = len(reader.writes)
        reader.advance(60)
        self.assertEqual(len(reader.writes), count)
        reader.loading.resumeProducing()
        reader.advance(1)
        self.assertGreater(len(reader.writes), count)
        reader.loading.stop()

    def test_the_remarks_are_many_and_go_round(self):
        self.assertEqual(len(set(REMARKS)), len(REMARKS))
        self.assertGreaterEqual(len(REMARKS), 20)
