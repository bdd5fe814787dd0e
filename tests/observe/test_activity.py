"""From a finished request to a row, a page and a capture."""

import gzip
import json
import os
import zlib

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.errors import TooManyRequests
from llamaswap.events import EventBus, SwapBegan, SwapEnded
from llamaswap.observe import activity as module
from llamaswap.observe.activity import BATCH_DELAY, ActivityLog
from llamaswap.observe.capture_files import CaptureFiles
from llamaswap.observe.captures import Captures
from llamaswap.observe.query import ActivityFilter, ActivityQuery, parse_query
from llamaswap.observe.store import ActivityStore
from llamaswap.wire.headers import ResponseHeaders
from tests.observe.doubles import Later, at_once, request_info

JSON = [(b"Content-Type", b"application/json")]
SSE = [(b"Content-Type", b"text/event-stream")]


class Bench:
    """An activity with everything around it."""

    def __init__(self, keep=1000, buffer=5, run=at_once, sessions=("X-Session-ID",), store=None):
        self.clock = Clock()
        self.captures = Captures(buffer)
        self.rows = []
        self.activity = ActivityLog(
            store=store or ActivityStore(keep=keep),
            captures=self.captures,
            run=run,
            clock=self.clock,
            wall=lambda: 1_770_000_100.75,
            stored=self.rows.extend,
        )
        self.activity.retune(sessions)

    def serve(self, body=b"{}", status=200, headers=JSON, ending="complete", error=None, seconds=0.05, **known):
        request = request_info(**known)
        scope = self.activity.open(request)
        self.clock.advance(seconds)
        if status:
            scope.head(status, ResponseHeaders.of(headers))
        for start in range(0, len(body), 1000):
            scope.data(body[start : start + 1000])
        scope.ended(ending, error)
        return request

    def ask(self, body):
        """A request with this body, answered at once."""
        scope = self.activity.open(request_info(captured_body=body))
        scope.head(200, ResponseHeaders.of(JSON))
        scope.data(USAGE)
        scope.ended("complete", None)

    def row(self, *args, **known):
        self.serve(*args, **known)
        self.clock.advance(BATCH_DELAY)
        return self.rows[-1]


def result(deferred):
    out = []
    deferred.addCallback(out.append)
    return out[0]


def tokens(row):
    usage = row.usage
    return (usage.input_tokens, usage.output_tokens, usage.cache_tokens)


USAGE = json.dumps({"usage": {"prompt_tokens": 3, "completion_tokens": 4}}).encode()


class RecordingTests(SynchronousTestCase):
    def test_tokens_of_a_document_are_stored_with_the_request(self):
        row = Bench().row(USAGE, metadata={"selector": "pick"}, stored_path="/chat/completions")
        self.assertEqual(tokens(row), (3, 4, -1))
        self.assertEqual((row.id, row.model, row.req_path, row.resp_status_code), (1, "owl", "/chat/completions", 200))
        self.assertEqual((row.created, row.duration_ms), (1_770_000_100, 50))
        self.assertEqual((row.metadata, row.client, row.error_msg), ({"selector": "pick"}, "10.0.0.1", ""))

    def test_longer_time_of_the_server_is_the_duration(self):
        """http T123"""
        timings = {"prompt_n": 31, "predicted_n": 64, "prompt_ms": 99.9, "predicted_ms": 1515.2}
        self.assertEqual(Bench().row(json.dumps({"timings": timings}).encode()).duration_ms, 1615)

    def test_stream_is_scanned_while_it_passes(self):
        stream = b'data: {"x":1}\n\n' * 300 + b'data: {"usage":{"prompt_tokens":5}}\n\ndata: [DONE]\n\n'
        for buffer in (0, 5):
            self.assertEqual(tokens(Bench(buffer=buffer).row(stream, headers=SSE)), (5, 0, -1))

    def test_response_without_usage_is_a_row_of_zeros(self):
        """http T132"""
        for body in (b'{"ok":true}', b"text", b""):
            self.assertEqual(tokens(Bench().row(body)), (0, 0, 0))

    def test_half_a_surrogate_pair_in_an_error_loses_no_row(self):
        """A JSON text may name one half of a pair; a table takes none."""
        for store in (ActivityStore(), ActivityStore(self.mktemp())):
            bench = Bench(store=store)
            bench.row(USAGE)
            row = bench.row(b'{"error": {"message": "broken \\ud83d emoji"}}', status=500)
            self.assertEqual(row.error_msg, "broken ? emoji")
            self.assertEqual(
                [kept.id for kept in result(bench.activity.ask(lambda table: table.page(parse_query({})))).rows], [2, 1]
            )

    def test_encoded_response_is_decoded(self):
        """http T133"""
        raw = zlib.compressobj(wbits=-15)
        for encoding, body in (
            (b"gzip", gzip.compress(USAGE)),
            (b"deflate", raw.compress(USAGE) + raw.flush()),
            (b"deflate", zlib.compress(USAGE)),
        ):
            bench = Bench()
            self.assertEqual(tokens(bench.row(body, headers=[*JSON, (b"content-encoding", encoding)])), (3, 4, -1))
            self.assertEqual(bench.captures.get(1).resp_body, USAGE)

    def test_encoded_stream_is_decoded(self):
        body = gzip.compress(b'data: {"usage":{"prompt_tokens":5}}\n\n')
        for buffer in (0, 5):
            row = Bench(buffer=buffer).row(body, headers=[*SSE, (b"content-encoding", b"gzip")])
            self.assertEqual(tokens(row), (5, 0, -1))

    def test_broken_encoding_is_the_error_of_the_row_and_not_captured(self):
        bench = Bench()
        row = bench.row(b"not gzip", headers=[*JSON, (b"content-encoding", b"gzip")])
        self.assertTrue(row.error_msg.startswith("response decompression failed: "), row.error_msg)
        self.assertFalse(bench.captures.has(1))

    def test_error_messages_come_from_the_body(self):
        """http T135"""
        cases = {
            '{"error":{"message":" boom "}}': "boom",
            '{"error":"bad"}': "bad",
            '{"message":"m"}': "m",
            '{"detail":"d"}': "d",
            '{"error":{"code":1}}': "500 Internal Server Error",
            "[]": "500 Internal Server Error",
            "": "500 Internal Server Error",
            json.dumps({"error": "x" * 600}): "x" * 500 + "...",
        }
        self.assertEqual({body: Bench().row(body.encode(), 500).error_msg for body in cases}, cases)

    def test_error_without_a_message_is_described_by_its_status(self):
        self.assertEqual(Bench().row(b"", 599).error_msg, "HTTP 599")
        row = Bench().row(b"zz", 500, [(b"content-encoding", b"gzip")])
        self.assertTrue(row.error_msg.startswith("response decode failed: "), row.error_msg)

    def test_only_status_200_is_a_success(self):
        """http T136"""
        row = Bench().row(USAGE, 201)
        self.assertEqual((tokens(row), row.error_msg), ((0, 0, 0), "201 Created"))

    def test_unmetered_requests_leave_no_row(self):
        """http T137"""
        self.assertIsNone(Bench().activity.open(request_info(metered=False)))

    def test_first_head_decides_the_status(self):
        bench = Bench()
        scope = bench.activity.open(request_info())
        scope.head(200, ResponseHeaders.of(SSE))
        scope.head(500, ResponseHeaders.of(JSON))
        scope.data(b"data: x\n\n")
        scope.ended("refused", None)
        bench.clock.advance(BATCH_DELAY)
        self.assertEqual(bench.rows[0].resp_status_code, 200)

    def test_request_that_ended_before_a_head_has_a_status(self):
        bench = Bench()
        gone = bench.row(b"", status=0, ending="gone")
        self.assertEqual((gone.resp_status_code, gone.error_msg), (499, "client disconnected"))
        cancelled = bench.row(b"", status=0, ending="cancelled")
        self.assertEqual((cancelled.resp_status_code, cancelled.error_msg), (200, "request cancelled"))
        refused = bench.row(b"", status=0, ending="refused", error=TooManyRequests("owl", 1))
        self.assertEqual((refused.resp_status_code, refused.error_msg), (500, "Too many requests"))
        self.assertFalse(bench.captures.has(1))

    def test_truncated_stream_keeps_its_usage_and_capture(self):
        stream = b'data: {"message":{"usage":{"input_tokens":40}}}\n\n'
        bench = Bench()
        row = bench.row(stream, headers=SSE, ending="gone")
        self.assertEqual((tokens(row), row.error_msg), ((40, 0, -1), "client disconnected"))
        self.assertEqual(bench.captures.get(1).resp_body, stream)

    def test_usage_of_a_huge_document_is_read_from_its_ends(self):
        body = b'{"object":"list","usage":{"prompt_tokens":9},"data":[' + b"0.5," * 400_000 + b"0]}"
        self.assertEqual(tokens(Bench(buffer=0).row(body)), (9, 0, -1))

    def test_the_session_is_the_first_configured_header_with_a_value(self):
        headers = [(b"x-session-id", b" "), (b"X-Litellm-Session-Id", b"s-7")]
        bench = Bench(sessions=("X-Session-ID", "X-Litellm-Session-Id"))
        scope = bench.activity.open(request_info(headers=headers))
        scope.ended("complete", None)
        bench.clock.advance(BATCH_DELAY)
        self.assertEqual(bench.rows[0].session, "s-7")

    def test_rows_that_end_together_are_one_batch(self):
        run = Later()
        bench = Bench(run=run, store=ActivityStore(self.mktemp()))
        for _ in range(5):
            bench.serve(seconds=0)
        self.assertEqual(run.waiting, [])
        bench.clock.advance(BATCH_DELAY)
        self.assertEqual(len(run.waiting), 1)
        bench.serve(seconds=0)
        bench.clock.advance(1)
        self.assertEqual(len(run.waiting), 1)
        run.step()
        run.step()
        self.assertEqual([row.id for row in bench.rows], [1, 2, 3, 4, 5, 6])
        self.assertEqual((bench.clock.getDelayedCalls(), bench.activity.uncompressed.used), ([], 0))

    def test_full_batch_is_written_without_delay(self):
        bench = Bench()
        for _ in range(module.BATCH_ROWS):
            bench.serve(USAGE, seconds=0)
        self.assertEqual([row.id for row in bench.rows], list(range(1, module.BATCH_ROWS + 1)))
        self.assertEqual(bench.clock.getDelayedCalls(), [])
        self.assertEqual(bench.captures.get(module.BATCH_ROWS).resp_body, USAGE)

    def test_only_large_responses_and_files_use_the_thread(self):
        run = Later()
        bench = Bench(run=run)
        bench.row(USAGE)
        self.assertEqual((run.waiting, tokens(bench.rows[0])), ([], (3, 4, -1)))
        bench.serve(b" " * (module.SMALL_BODY + 1) + USAGE)
        bench.serve(USAGE)
        bench.clock.advance(BATCH_DELAY)
        self.assertEqual(len(bench.rows), 1)
        run.step()
        self.assertEqual([(row.id, tokens(row)) for row in bench.rows], [(n, (3, 4, -1)) for n in (1, 2, 3)])

    def test_large_bodies_are_written_without_delay_and_compressed_on_the_thread(self):
        run = Later()
        bench = Bench(run=run)
        bench.ask(bytes(module.LARGE_BATCH + 1))
        bench.clock.advance(BATCH_DELAY)
        self.assertEqual((bench.rows, len(run.waiting)), ([], 1))
        run.step()
        bench.ask(bytes(module.BATCH_BYTES))
        self.assertEqual(len(run.waiting), 1)
        run.step()
        self.assertEqual([row.id for row in bench.rows], [1, 2])
        self.assertEqual(len(bench.captures.get(2).req_body), module.BATCH_BYTES)

    def test_full_backlog_gives_up_captures_before_tokens(self):
        self.patch(module, "BACKLOG_CAPTURES", 1000)
        bench = Bench()
        for _ in range(3):
            bench.ask(bytes(600))
        bench.clock.advance(BATCH_DELAY)
        self.assertEqual([tokens(row) for row in bench.rows], [(3, 4, -1)] * 3)
        self.assertEqual([bench.captures.has(row.id) for row in bench.rows], [True, False, False])
        self.assertEqual(bench.activity.uncompressed.used, 0)

    def test_slow_store_drops_rows_beyond_the_backlog(self):
        self.patch(module, "BACKLOG_ROWS", 3)
        bench = Bench(run=Later(), store=ActivityStore(self.mktemp()))
        for _ in range(5):
            bench.serve(seconds=0)
        self.assertEqual(bench.activity.dropped, 2)

    def test_failing_store_loses_its_rows_only(self):
        class Broken(ActivityStore):
            def insert(self, rows):
                raise OSError("disk full")

        bench = Bench(store=Broken())
        bench.serve()
        bench.clock.advance(BATCH_DELAY)
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)
        self.assertEqual((bench.rows, bench.activity.uncompressed.used), ([], 0))
        bench.serve()
        bench.clock.advance(BATCH_DELAY)
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)

    def test_close_stores_the_backlog(self):
        bench = Bench()
        bench.serve()
        self.successResultOf(Deferred.fromCoroutine(bench.activity.close()))
        self.assertEqual((len(bench.rows), bench.clock.getDelayedCalls()), (1, []))
        bench.serve()
        self.assertEqual(bench.clock.getDelayedCalls(), [])


class CapturingTests(SynchronousTestCase):
    def test_chat_is_captured_without_its_secrets(self):
        """http T148"""
        bench = Bench()
        headers = [(b"authorization", b"Bearer k-1"), (b"X-API-Key", b"k-1"), (b"a", b"1"), (b"A", b"2")]
        answer = [*JSON, (b"Content-Encoding", b"gzip"), (b"Set-Cookie", b"c")]
        request = request_info(headers=headers, captured_body=b'{"model":"owl"}')
        scope = bench.activity.open(request)
        scope.head(200, ResponseHeaders.of(answer))
        scope.data(gzip.compress(USAGE))
        scope.ended("complete", None)
        bench.clock.advance(BATCH_DELAY)
        capture = bench.captures.get(1)
        self.assertEqual((capture.req_body, capture.resp_body), (b'{"model":"owl"}', USAGE))
        self.assertEqual(capture.req_headers, {"Authorization": "[REDACTED]", "X-Api-Key": "[REDACTED]", "A": "1"})
        self.assertEqual(capture.resp_headers, {"Content-Type": "application/json", "Set-Cookie": "[REDACTED]"})

    def test_capture_of_speech_lacks_the_audio_and_that_of_a_failure_the_response(self):
        """http T149"""
        bench = Bench()
        bench.row(b"RIFF", headers=[(b"content-type", b"audio/wav")], path="/v1/audio/speech")
        speech = bench.captures.get(1)
        self.assertEqual((speech.resp_body, speech.resp_headers), (None, {"Content-Type": "audio/wav"}))
        bench.row(b'{"error":"x"}', 500)
        failed = bench.captures.get(2)
        self.assertEqual(failed.resp_body, None)
        self.assertIsNotNone(failed.req_headers)

    def test_empty_success_is_not_captured(self):
        bench = Bench()
        bench.row(b"")
        self.assertFalse(bench.captures.has(1))

    def test_oldest_capture_is_dropped_and_its_row_shows_that(self):
        """http T151"""
        bench = Bench(buffer=1)
        for _ in range(3):
            bench.row(os.urandom(400 * 1024), headers=[(b"content-type", b"text/plain")])
        page = bench.activity.page_document(result(bench.activity.ask(lambda table: table.page(parse_query({})))))
        self.assertEqual([(row["id"], row["has_capture"]) for row in page["data"]], [(3, True), (2, True), (1, False)])

    def test_change_of_store_gives_no_row_the_capture_of_another(self):
        """Ids start from 1 there, while one batch is still on its way to the old store."""
        run = Later()
        bench = Bench(run=run, store=ActivityStore(self.mktemp()))
        for _ in range(2):
            bench.ask(b"old")
            bench.clock.advance(BATCH_DELAY)
            run.step()
        bench.ask(b"old")
        bench.clock.advance(BATCH_DELAY)
        bench.activity.use(ActivityStore())
        run.step()
        self.assertEqual(len(bench.rows), 3)
        bench.serve(b"")
        bench.clock.advance(BATCH_DELAY)
        self.assertEqual(bench.rows[-1].id, 1)
        self.assertEqual([bench.captures.has(number) for number in (1, 2, 3)], [False] * 3)

    def test_uncompressed_captures_share_a_budget(self):
        bench = Bench(buffer=1)
        scopes = [bench.activity.open(request_info(number)) for number in range(5)]
        for scope in scopes:
            scope.head(200, ResponseHeaders.of(JSON))
            scope.data(b"x" * (1024 * 1024))
        self.assertEqual(bench.activity.uncompressed.used, 4 * 1024 * 1024)
        for scope in scopes:
            scope.ended("complete", None)
        bench.clock.advance(BATCH_DELAY)
        self.assertEqual(bench.activity.uncompressed.used, 0)
        self.assertEqual([bench.captures.has(number) for number in (1, 2, 3, 4, 5)], [True] * 4 + [False])

    def test_no_body_is_kept_without_captures(self):
        bench = Bench(buffer=0)
        scope = bench.activity.open(request_info())
        scope.head(200, ResponseHeaders.of(SSE))
        scope.data(b"data: x\n\n" * 100_000)
        self.assertEqual(bench.activity.uncompressed.used, 0)
        scope.ended("complete", None)
        bench.clock.advance(BATCH_DELAY)
        self.assertFalse(bench.captures.has(1))


class AskingTests(SynchronousTestCase):
    def test_document_of_a_row_has_the_columns(self):
        bench = Bench()
        bench.row(USAGE, remote_ip="")
        document = bench.activity.document(bench.rows[0])
        self.assertEqual(document["timestamp"], "2026-02-02T02:41:40Z")
        self.assertEqual(
            sorted(document),
            sorted(
                [
                    "id",
                    "timestamp",
                    "model",
                    "req_path",
                    "resp_content_type",
                    "resp_status_code",
                    "tokens",
                    "duration_ms",
                    "has_capture",
                ]
            ),
        )

    def test_legacy_list_has_flat_objects_of_successful_requests(self):
        """http T152"""
        bench = Bench()
        for status in (200, 500, 200):
            bench.row(USAGE, status)
        flat = result(bench.activity.legacy())
        self.assertEqual([item["id"] for item in flat], [1, 3])
        self.assertEqual(
            flat[0],
            {
                "id": 1,
                "timestamp": "2026-02-02T02:41:40Z",
                "model": "owl",
                "cache_tokens": -1,
                "input_tokens": 3,
                "output_tokens": 4,
                "prompt_per_second": -1,
                "tokens_per_second": -1,
                "duration_ms": 50,
            },
        )

    def test_question_finds_the_request_that_just_ended(self):
        bench = Bench()
        bench.serve(USAGE, 404)
        bench.serve(USAGE)
        self.assertEqual(
            [row.id for row in result(bench.activity.ask(lambda table: table.page(ActivityQuery()))).rows], [2, 1]
        )
        bench.serve(USAGE)
        self.assertEqual(result(bench.activity.ask(lambda table: table.stats(ActivityFilter())))["total_requests"], 3)
        bench.serve(USAGE)
        self.assertEqual([item["id"] for item in result(bench.activity.legacy())], [2, 3, 4])
        self.assertTrue(bench.activity.document(bench.rows[-1])["has_capture"])
        self.assertEqual(bench.clock.getDelayedCalls(), [])

    def test_question_finds_the_request_that_just_ended_in_a_file(self):
        run = Later()
        bench = Bench(run=run, store=ActivityStore(self.mktemp()))
        bench.serve(USAGE)
        asked = bench.activity.ask(lambda table: table.page(ActivityQuery()))
        run.step()
        run.step()
        shown = bench.activity.page_document(result(asked))["data"]
        self.assertEqual([(row["id"], row["has_capture"]) for row in shown], [(1, True)])

    def test_stats_and_export_walk_the_same_table(self):
        bench = Bench()
        for _ in range(3):
            bench.row(USAGE)
        self.assertEqual(
            result(bench.activity.ask(lambda table: table.stats(ActivityFilter())))["total_input_tokens"], 9
        )
        self.assertEqual(
            [row.id for row in result(bench.activity.ask(lambda table: table.after(ActivityFilter(), 1, 10)))], [2, 3]
        )


class EstimatedSpeedTests(SynchronousTestCase):
    def stream(self, usage=None, timings=None, loading=False, granted=True, bench=None):
        """A row: 1 s in the queue, 2 s until the first token, then 4 s of tokens."""
        bench = bench or Bench()
        scope = bench.activity.open(request_info(started=bench.clock.seconds(), metadata={"fifo_priority": "0"}))
        bench.clock.advance(1)
        if granted:
            scope.granted()
        scope.head(200, ResponseHeaders.of(SSE))
        if loading:
            scope.request.loading = True
            scope.data(b"data: {}\n\n")
            scope.request.loading = False
        bench.clock.advance(2)
        scope.data(b"data: {}\n\n")
        bench.clock.advance(4)
        scope.data(b"data: " + json.dumps({"usage": usage, "timings": timings}).encode() + b"\n\n")
        scope.ended("complete", None)
        bench.clock.advance(BATCH_DELAY)
        return bench.rows[-1]

    def speeds(self, row):
        return row.usage.prompt_per_second, row.usage.tokens_per_second, row.metadata.get("speed")

    COUNTS = {"prompt_tokens": 500, "completion_tokens": 200, "prompt_tokens_details": {"cached_tokens": 100}}

    def test_speeds_of_a_stream_that_reports_usage_only_are_estimated_and_marked(self):
        row = self.stream(self.COUNTS)
        self.assertEqual(self.speeds(row), (200.0, 50.0, "estimated"))
        self.assertEqual(row.metadata["fifo_priority"], "0")

    def test_row_says_how_long_its_request_waited_for_the_model(self):
        self.assertEqual(self.stream(self.COUNTS).metadata["waited_ms"], "1000")
        self.assertNotIn("waited_ms", self.stream(self.COUNTS, granted=False).metadata)

    def test_row_says_how_much_of_the_wait_was_the_queue_and_how_much_the_load(self):
        """A request at 0 is granted at 1, and its first data comes at 3."""
        bench, bus = Bench(), EventBus(self.fail)
        bench.activity.listen(bus)
        bus.publish(SwapBegan(1, "owl", (), "", 0.4))
        bus.publish(SwapEnded(1, "owl", None, 0.9))
        row = self.stream(self.COUNTS, bench=bench)
        document = bench.activity.document(row)
        self.assertEqual((document["queued_ms"], document["loaded_ms"], document["ttft_ms"]), (500, 500, 3000))
        waited = self.stream(self.COUNTS, bench=bench)  # its model was loaded before it came
        self.assertEqual((waited.queued_ms, waited.loaded_ms), (1000, 0))

    def test_response_that_is_not_a_stream_has_no_first_token(self):
        bench = Bench()
        row = bench.row(b"{}")
        self.assertEqual((row.first_token_ms, row.loaded_ms), (-1, 0))
        self.assertNotIn("ttft_ms", bench.activity.document(row))

    def test_text_about_a_load_is_not_the_first_token(self):
        self.assertEqual(self.speeds(self.stream(self.COUNTS, loading=True)), (200.0, 50.0, "estimated"))

    def test_request_to_a_peer_is_measured_from_its_arrival(self):
        self.assertEqual(self.speeds(self.stream(self.COUNTS, granted=False)), (133.33, 50.0, "estimated"))

    def test_speeds_of_the_server_are_kept(self):
        timings = {"prompt_n": 500, "predicted_n": 200, "prompt_per_second": 7.5, "predicted_per_second": 8.5}
        self.assertEqual(self.speeds(self.stream(self.COUNTS, timings)), (7.5, 8.5, None))

    def test_speed_is_not_estimated_from_few_tokens_or_short_times(self):
        few = {"prompt_tokens": 15, "completion_tokens": 15}
        self.assertEqual(self.speeds(self.stream(few)), (-1.0, -1.0, None))
        quick = Bench().row(json.dumps({"usage": {"completion_tokens": 100}}).encode(), seconds=0.01)
        self.assertEqual(self.speeds(quick), (-1.0, -1.0, None))

    def test_speed_of_a_document_includes_its_prompt(self):
        body = json.dumps({"usage": self.COUNTS}).encode()
        self.assertEqual(self.speeds(Bench().row(body, seconds=4)), (-1.0, 50.0, "estimated"))

    def test_request_without_usage_has_no_speed(self):
        self.assertEqual(self.speeds(Bench().row(b"{}", seconds=4)), (0.0, 0.0, None))


class CaptureFileTests(SynchronousTestCase):
    def bench(self, path="", run=at_once):
        bench = Bench(run=run, store=ActivityStore(path or None))
        bench.activity.keep_files(CaptureFiles(self.folder, 1 << 20, path, bench.rows.append, bench.clock.seconds))
        return bench

    def setUp(self):
        self.folder = self.mktemp()

    def test_captures_are_read_from_files_after_a_restart_and_rows_are_numbered_behind_them(self):
        first = self.bench()
        first.row(USAGE, headers=JSON)
        again = self.bench()
        self.assertEqual(result(again.activity.capture(1)).resp_body, USAGE)
        self.assertEqual(again.row(USAGE).id, 2)
        self.assertEqual([again.activity.files.has(number) for number in (1, 2, 3)], [True, True, False])
        self.assertIsNone(result(again.activity.capture(3)))

    def test_captures_that_memory_dropped_are_still_shown_with_their_rows(self):
        bench = self.bench()
        row = bench.row(USAGE)
        bench.captures.clear()
        self.assertTrue(bench.activity.document(row)["has_capture"])
        self.assertEqual(result(bench.activity.capture(row.id)).resp_body, USAGE)

    def test_secrets_are_replaced_in_files_too(self):
        bench = self.bench()
        bench.row(USAGE)
        bench.captures.clear()
        headers = result(bench.activity.capture(1)).req_headers
        self.assertEqual(headers["Authorization"], "[REDACTED]")

    def test_files_are_written_by_the_worker(self):
        later = Later()
        bench = self.bench(run=later)
        bench.serve(USAGE)
        bench.clock.advance(BATCH_DELAY)
        self.assertEqual((bench.rows, os.path.exists(self.folder)), ([], False))
        later.step()
        later.step()
        self.assertEqual((len(bench.rows), len(os.listdir(self.folder))), (1, 1))

    def test_rows_of_a_file_are_numbered_behind_the_captures_of_a_lost_file(self):
        path = self.mktemp()
        first = self.bench(path)
        first.row(USAGE)
        first.activity.store.close()
        for name in (path, f"{path}-wal", f"{path}-shm"):
            if os.path.exists(name):
                os.unlink(name)
        again = self.bench(path)
        self.assertEqual(again.row(USAGE).id, 2)
        again.activity.store.close()

    def test_captures_of_rows_that_may_be_renumbered_are_not_written(self):
        store = ActivityStore()
        store.problem = "the file is locked"
        bench = self.bench()
        bench.activity.store = store
        bench.row(USAGE)
        self.assertEqual(os.listdir(self.folder), [])
