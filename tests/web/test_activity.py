import csv
import io
import json
from base64 import b64encode

import zstandard
from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from llamaswap.observe.activity_row import ActivityRow
from llamaswap.observe.captures import Capture, pack
from llamaswap.wire.usage import NOTHING, Usage
from tests.web.doubles import World, envelope


def row(model="m1", status=200, **more):
    return ActivityRow(1700000000, model, "/v1/x", "application/json", status, Usage(3, 4), 12, **more)


def world_of(*models):
    world = World()
    world.store.insert([row(model) for model in models])
    return world


class PageTests(TestCase):
    def test_an_empty_table_is_an_empty_page(self):
        """http T139"""
        self.assertEqual(
            World().ask("/api/metrics/activity").body,
            b'{"data":[],"page":1,"limit":25,"total":0,"total_pages":0}\n',
        )

    def test_pages_are_cut_and_beyond_the_end_is_nothing(self):
        """http T140"""
        world = world_of(*["m"] * 27)
        page = world.ask("/api/metrics/activity?limit=10&page=3").json
        self.assertEqual((len(page["data"]), page["total_pages"]), (7, 3))
        page = world.ask("/api/metrics/activity?limit=10&page=4").json
        self.assertEqual((page["data"], page["total"]), ([], 27))

    def test_filters_hold_together(self):
        """http T141"""
        world = world_of("m1", "m2", "m1", "m3")

        def ids(query):
            return [found["id"] for found in world.ask(f"/api/metrics/activity?{query}").json["data"]]

        self.assertEqual(ids("model=m1&model=m3"), [4, 3, 1])
        self.assertEqual(ids("min_id=2&max_id=3"), [3, 2])
        self.assertEqual(ids("model=m1&min_id=2"), [3])
        self.assertEqual(ids("model=%20"), [4, 3, 2, 1])

    def test_invalid_query_is_refused_with_its_mistake(self):
        """http T143, http T144"""
        limit = "limit must be between 1 and 999"
        cases = {
            "limit=0": limit,
            "limit=1000": limit,
            "limit=x": "invalid limit",
            "page=0": "page must be >= 1",
            "max_id=0": "max_id must be >= 1",
            "min_id=9&max_id=2": "min_id must be <= max_id",
            "end=2026-01-01": "invalid 'end' timestamp, use RFC3339 format",
            "start=2026-01-02T00:00:00Z&end=2026-01-01T00:00:00Z": "start must be before end",
            "sort=x": "invalid sort column",
            "order=up": "order must be asc or desc",
        }
        for query, message in cases.items():
            answer = World().ask(f"/api/metrics/activity?{query}")
            self.assertEqual((answer.status, answer.json), (400, envelope(400, message)), query)

    def test_a_store_that_fails_is_a_500_and_a_log_line(self):
        world = World()
        world.store.page = None
        answer = world.ask("/api/metrics/activity")
        self.assertEqual((answer.status, answer.json), (500, envelope(500, "failed to get activity")))
        self.assertTrue(self.flushLoggedErrors())


class StatsTests(TestCase):
    def test_totals_follow_the_filter(self):
        """http T147"""
        world = World()
        world.store.insert(
            [
                row(),
                ActivityRow(1, "m2", "/", "", 200, Usage(1, 1, 2), 1),
                ActivityRow(1, "m2", "/", "", 500, NOTHING, 1),
            ]
        )
        stats = world.ask("/api/metrics/stats").json
        self.assertEqual((stats["total_requests"], stats["total_cache_tokens"]), (3, 2))
        self.assertEqual(world.ask("/api/metrics/stats?model=m2").json["total_requests"], 2)
        self.assertIn("series", world.ask("/api/metrics/stats?bucket=60").json)
        self.assertEqual(world.ask("/api/metrics/stats?bucket=x").status, 400)

    def test_dashboards_of_older_versions_get_a_flat_array(self):
        """http T152"""
        world = World()
        self.assertEqual(world.ask("/api/metrics").body, b"[]\n")
        world.store.insert([row(), row(status=500), row("m2")])
        flat = world.ask("/api/metrics").json
        self.assertEqual([one["model"] for one in flat], ["m1", "m2"])
        self.assertEqual(flat[0]["input_tokens"], 3)


class ExportTests(TestCase):
    def test_csv_leaves_unknown_numbers_blank_and_defuses_formulas(self):
        world = World()
        world.store.insert([evolve(row("=cmd()", session="s"), usage=Usage(3, 4, -1))])
        answer = world.ask("/api/metrics/export?format=csv")
        self.assertEqual(answer.headers["content-type"], "text/csv; charset=utf-8")
        head, cells = csv.reader(io.StringIO(answer.text))
        found = dict(zip(head, cells, strict=True))
        self.assertEqual((found["model"], found["cache_tokens"], found["input_tokens"]), ("'=cmd()", "", "3"))

    def test_export_writes_each_row_as_a_line_of_json_or_of_a_table(self):
        world = world_of("a", "b|c")
        lines = world.ask("/api/metrics/export?format=jsonl").text.splitlines()
        self.assertEqual([json.loads(line)["model"] for line in lines], ["a", "b|c"])
        table = world.ask("/api/metrics/export?format=md&model=b%7Cc").text
        self.assertEqual(len(table.splitlines()), 3)
        self.assertIn("b\\|c", table)
        self.assertEqual(world.ask("/api/metrics/export?format=xls").status, 400)

    def test_a_long_export_waits_for_its_reader(self):
        world = world_of(*["m"] * 1000)
        client = world.open("/api/metrics/export?format=jsonl")
        whole = client.answer()
        self.assertTrue(whole.ended)
        self.assertEqual(whole.text.count("\n"), 1000)

    def test_export_reads_no_further_while_its_client_does_not_read(self):
        world = world_of(*["m"] * 250)
        table = world.activity = SlowTable(world.activity)
        client = world.open("/api/metrics/export?format=jsonl")
        client.transport.producer.pauseProducing()
        table.answer()
        self.assertEqual(table.asked, 1)
        self.assertEqual(client.answer().text.count("\n"), 100)
        client.transport.producer.resumeProducing()
        self.assertEqual(table.asked, 2)
        client.transport.producer.pauseProducing()
        table.answer()
        client.leave()
        self.assertEqual(table.asked, 2)

    def test_export_that_cannot_read_the_table_ends_and_is_logged(self):
        world = world_of("m")
        table = world.activity = SlowTable(world.activity)
        client = world.open("/api/metrics/export?format=jsonl")
        table.waiting.pop()[0].errback(OSError("disk"))
        self.assertTrue(client.answer().ended)
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)


class SlowTable:
    """An activity table whose reads end when the test says so."""

    def __init__(self, table):
        self.table = table
        self.asked = 0
        self.waiting = []

    def __getattr__(self, name):
        return getattr(self.table, name)

    def ask(self, question):
        self.asked += 1
        self.waiting.append((Deferred(), lambda: self.table.ask(question)))
        return self.waiting[-1][0]

    def answer(self):
        answered, read = self.waiting.pop()
        read().chainDeferred(answered)


class CaptureTests(TestCase):
    def test_capture_contains_its_bodies_in_base64(self):
        """http T148"""
        world = World()
        capture = Capture("/v1/x", {"A": "b"}, b"ask", {"C": "d"}, None)
        world.captures.put(pack([(4, capture)], zstandard.ZstdCompressor()))
        answer = world.ask("/api/captures/4")
        self.assertEqual(answer.json["req_body"], b64encode(b"ask").decode())
        self.assertIsNone(answer.json["resp_body"])
        self.assertFalse(answer.body.endswith(b"\n"))

    def test_unknown_or_invalid_capture_number_is_refused(self):
        for name, status in (("x", 400), ("", 400), ("1_0", 400), ("9", 404), ("-1", 404)):
            self.assertEqual(World().ask(f"/api/captures/{name}").status, status, name)


class CancelTests(TestCase):
    def test_running_request_is_cancelled_by_its_id(self):
        """http T156"""
        world = World()
        self.assertEqual(world.ask("/api/inflight/7/cancel", "POST").body, b'{"msg":"ok"}\n')
        answer = world.ask("/api/inflight/8/cancel", "POST")
        self.assertEqual((answer.status, answer.json), (404, envelope(404, "inflight request not found")))
        self.assertEqual(world.inflight.cancelled, ["7", "8"])
