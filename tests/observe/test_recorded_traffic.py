"""Recorded requests from an activity store and from text files."""

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.observe.activity_row import ActivityRow
from llamaswap.observe.recorded_traffic import UnusableTraffic, read_traffic
from llamaswap.observe.store import ActivityStore
from llamaswap.scheduling.simulation import RecordedRequest
from llamaswap.wire.usage import Usage

EVER = float("inf")
CSV = b"time,model,duration\n"


def row(ended, model, milliseconds, status=200, metadata=None, **usage):
    return ActivityRow(ended, model, "/v1/x", "", status, Usage(**usage), milliseconds, metadata=metadata or {})


class StoreTests(SynchronousTestCase):
    def stored(self, *rows, last=EVER):
        path = self.mktemp()
        store = ActivityStore(path)
        store.insert(rows)
        found = list(read_traffic(Path(path), last))
        store.close()
        return found

    def test_requests_are_in_the_order_of_their_arrival(self):
        found = self.stored(row(100, "short", 1000), row(101, "long", 50_000))
        self.assertEqual(found, [RecordedRequest(51.0, "long", 50.0), RecordedRequest(99.0, "short", 1.0)])

    def test_time_that_a_request_waited_for_its_model_is_not_counted(self):
        [found] = self.stored(row(100, "a", 30_000, metadata={"waited_ms": "20000"}))
        self.assertEqual(found, RecordedRequest(70.0, "a", 10.0))

    def test_duration_of_an_older_row_follows_from_its_tokens_and_speeds(self):
        usage = {"input_tokens": 1100, "cache_tokens": 100, "output_tokens": 200}
        [found] = self.stored(row(100, "a", 60_000, prompt_per_second=500.0, tokens_per_second=50.0, **usage))
        self.assertEqual(found, RecordedRequest(40.0, "a", 6.0))

    def test_failed_requests_are_left_out(self):
        self.assertEqual(self.stored(row(100, "a", 10, 503), row(101, "a", 10, 0)), [])

    def test_only_the_last_part_of_the_record_is_read(self):
        found = self.stored(row(1000, "old", 0), row(5000, "a", 0), row(5100, "a", 0), last=600.0)
        self.assertEqual([request.model for request in found], ["a", "a"])

    def test_file_of_another_program_is_refused(self):
        path = Path(self.mktemp())
        path.write_bytes(b"SQLite format 3\0" + bytes(4096))
        with self.assertRaises(UnusableTraffic):
            list(read_traffic(path, EVER))


class TextTests(SynchronousTestCase):
    def read(self, text, last=EVER):
        path = Path(self.mktemp())
        path.write_bytes(text)
        return list(read_traffic(path, last))

    def test_json_lines_are_sorted_by_time(self):
        found = self.read(
            b'{"time": 20, "model": "b", "duration": 2}\n\n'
            b'{"time": "1970-01-01T00:00:10Z", "model": "a", "duration": 1.5, "more": 1}\n'
        )
        self.assertEqual(found, [RecordedRequest(10.0, "a", 1.5), RecordedRequest(20.0, "b", 2.0)])

    def test_csv_has_a_line_of_names(self):
        self.assertEqual(self.read(b"model,time,duration\r\na,5,1\r\n"), [RecordedRequest(5.0, "a", 1.0)])

    def test_only_the_last_part_of_the_record_is_read(self):
        self.assertEqual(len(self.read(b"time,model,duration\n0,a,1\n90,a,1\n100,a,1\n", last=20.0)), 2)

    def test_unusable_request_is_named_by_its_number(self):
        for text in (
            b"time,model\n1,a\n",
            b"time,model,duration\nsoon,a,1\n",
            b'{"time": 1}\n',
            b"{nonsense\n",
            CSV + b"0,a,nan\n",
        ):
            with self.assertRaisesRegex(UnusableTraffic, "request 1 needs time"):
                self.read(text)

    def test_other_bytes_are_refused(self):
        with self.assertRaisesRegex(UnusableTraffic, "neither an activity store nor text"):
            self.read(b"\xff\xfe\x00\x01")

    def test_empty_file_has_no_requests(self):
        self.assertEqual(self.read(b""), [])
