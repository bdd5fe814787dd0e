"""The activity table and the questions it answers."""

import os
import sqlite3
from contextlib import closing

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.observe.activity_row import ActivityRow
from llamaswap.observe.query import ActivityFilter, ActivityQuery, BadQuery, parse_filter, parse_query, timestamp
from llamaswap.observe.stats import histogram
from llamaswap.observe.store import ActivityStore
from llamaswap.wire.usage import Usage


def row(model="m", **changes):
    values = {
        "created": 1000,
        "model": model,
        "req_path": "/v1/chat/completions",
        "resp_content_type": "application/json",
        "resp_status_code": 200,
        "usage": Usage(1, 2, 3, -1, -1, 10.0, 5.0),
        "duration_ms": 7,
    }
    return ActivityRow(**{**values, **changes})


def filled(*rows, **options):
    store = ActivityStore(**options)
    store.insert(rows)
    return store


def in_file(path, statement):
    """What another program gets from the file."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        return other.execute(statement).fetchall()


def ids(store, **args):
    return [found.id for found in store.page(parse_query(args)).rows]


class PageTests(SynchronousTestCase):
    def test_empty_store_has_an_empty_page(self):
        """http T139"""
        page = ActivityStore().page(ActivityQuery())
        self.assertEqual((page.rows, page.page, page.limit, page.total, page.total_pages), ((), 1, 25, 0, 0))

    def test_page_behind_the_last_is_empty(self):
        """http T140"""
        store = filled(*[row() for _ in range(27)])
        page = store.page(parse_query({"limit": ["10"], "page": ["3"]}))
        self.assertEqual((len(page.rows), page.total_pages), (7, 3))
        page = store.page(parse_query({"limit": ["10"], "page": ["4"]}))
        self.assertEqual((page.rows, page.total), ((), 27))
        self.assertEqual(store.page(parse_query({"page": [str(2**63 - 1)]})).rows, ())

    def test_filters_of_models_and_ids(self):
        """http T141"""
        store = filled(row("m1"), row("m2"), row("m1"), row("m3"))
        self.assertEqual(ids(store, model=["m1", "m3"]), [4, 3, 1])
        self.assertEqual(ids(store, min_id=["2"], max_id=["3"]), [3, 2])
        self.assertEqual(ids(store, model=["m1"], min_id=["2"]), [3])
        self.assertEqual(ids(store, model=[" "]), [4, 3, 2, 1])

    def test_filter_by_time_is_inclusive(self):
        store = filled(row(created=100), row(created=200), row(created=300))
        args = {"start": ["1970-01-01T00:01:40Z"], "end": ["1970-01-01T01:03:20+01:00"]}
        self.assertEqual(ids(store, **args), [2, 1])

    def test_filters_of_status_path_session_client_error_and_text(self):
        store = filled(
            row(resp_status_code=404, error_msg="100% lost", session="s", client="10.0.0.1"),
            row(resp_status_code=502, error_msg="x", duration_ms=900),
            row(req_path="/v1/embeddings", metadata={"selector": "pick_me"}),
        )
        for args, expected in (
            ({"status": ["4xx,502"]}, [2, 1]),
            ({"status": ["404"]}, [1]),
            ({"path": ["embed"]}, [3]),
            ({"session": ["s"]}, [1]),
            ({"client": ["10.0.0.1"]}, [1]),
            ({"has_error": ["true"]}, [2, 1]),
            ({"has_error": ["0"]}, [3]),
            ({"min_ms": ["900"]}, [2]),
            ({"after_id": ["2"]}, [3]),
            ({"q": ["0% l"]}, [1]),
            ({"q": ["pick_me"]}, [3]),
            ({"q": ["pickXme"]}, []),
        ):
            self.assertEqual(ids(store, **args), expected, args)

    def test_equal_rows_are_sorted_by_id_in_the_same_direction(self):
        store = filled(row(duration_ms=5), row(duration_ms=1), row(duration_ms=5))
        self.assertEqual(ids(store, sort=["duration"]), [3, 1, 2])
        self.assertEqual(ids(store, sort=["duration"], order=["ASC"]), [2, 1, 3])

    def test_stored_row_is_read_back_unchanged(self):
        given = row(metadata={"a": "é"}, error_msg="e", session="s", client="c")
        store = filled(given)
        (found,) = store.page(ActivityQuery()).rows
        self.assertEqual(
            (found.metadata, found.usage, found.session, found.client), ({"a": "é"}, given.usage, "s", "c")
        )


class QueryTests(SynchronousTestCase):
    def refusal(self, **args):
        return str(self.assertRaises(BadQuery, parse_query, args))

    def test_filter_with_two_thousand_values_is_refused(self):
        """They were a 500: the database refuses so many conditions."""
        for name in ("path", "model", "status"):
            values = ["404" if name == "status" else f"v{number}" for number in range(2000)]
            self.assertEqual(self.refusal(**{name: values}), f"{name} may have at most 100 values")
        self.assertEqual(self.refusal(status=[",".join(["404"] * 2000)]), "status may have at most 100 values")

    def test_unusable_parameter_is_named_in_the_message(self):
        """http T143"""
        self.assertEqual(self.refusal(limit=["0"]), "limit must be between 1 and 999")
        self.assertEqual(self.refusal(limit=["1000"]), "limit must be between 1 and 999")
        self.assertEqual(self.refusal(limit=["x"]), "invalid limit")
        self.assertEqual(self.refusal(page=["0"]), "page must be >= 1")
        self.assertEqual(self.refusal(page=["x"]), "page must be >= 1")
        self.assertEqual(self.refusal(max_id=["0"]), "max_id must be >= 1")
        self.assertEqual(self.refusal(min_id=["x"]), "min_id must be >= 1")
        self.assertEqual(self.refusal(min_id=["9"], max_id=["2"]), "min_id must be <= max_id")
        self.assertEqual(self.refusal(sort=["ids"]), "invalid sort column")
        self.assertEqual(self.refusal(order=["up"]), "order must be asc or desc")
        self.assertEqual(self.refusal(status=["ok"]), "status must be a code or a class like 5xx")
        self.assertEqual(self.refusal(has_error=["maybe"]), "has_error must be true or false")

    def test_times_must_be_rfc3339_and_in_order(self):
        """http T144"""
        self.assertEqual(self.refusal(end=["2026-01-01"]), "invalid 'end' timestamp, use RFC3339 format")
        self.assertEqual(self.refusal(start=["2026-13-01T00:00:00Z"]), "invalid 'start' timestamp, use RFC3339 format")
        later, earlier = "2026-01-02T00:00:00Z", "2026-01-01T00:00:00Z"
        self.assertEqual(self.refusal(start=[later], end=[earlier]), "start must be before end")
        self.assertEqual(parse_filter({"start": [later], "end": [later]}).where()[1], [int(timestamp(later))] * 2)

    def test_first_error_in_the_order_of_the_parameters_is_reported(self):
        self.assertEqual(self.refusal(order=["up"], limit=["x"], page=["0"], sort=["z"]), "invalid limit")

    def test_blank_parameter_counts_as_absent(self):
        self.assertEqual(parse_query({"limit": [""], "page": [" "], "sort": [""], "start": [""]}), ActivityQuery())

    def test_timestamp_may_have_fractions_of_a_second(self):
        self.assertEqual(timestamp("1970-01-01T00:00:01.123456789Z"), 1.123456789)


class KeepingTests(SynchronousTestCase):
    def test_table_in_memory_keeps_the_newest_rows(self):
        """http T145"""
        store = ActivityStore(keep=3)
        for _ in range(5):
            store.insert([row(client="c")])
        self.assertEqual(ids(store), [5, 4, 3])
        self.assertEqual(ids(store, client=["c"]), [5, 4, 3])

    def test_limit_below_one_means_the_default(self):
        self.assertEqual((ActivityStore(keep=0).keep, ActivityStore(keep=-1).keep), (1000, 1000))

    def test_file_keeps_all_rows_and_is_read_again(self):
        """http T145"""
        path = self.mktemp()
        store = ActivityStore(path, keep=3)
        store.insert([row()] * 5)
        store.close()
        store.close()
        again = ActivityStore(path)
        again.insert([row()])
        self.assertEqual(ids(again), [6, 5, 4, 3, 2, 1])
        again.close()
        self.assertEqual(in_file(path, "PRAGMA journal_mode"), [("wal",)])
        versions = in_file(path, "SELECT version_id, is_applied FROM goose_db_version ORDER BY id")
        self.assertEqual(versions, [(0, 1), (1, 1)])

    def test_file_of_another_program_is_used_unchanged(self):
        path = self.mktemp()
        other = sqlite3.connect(path)
        other.executescript(
            "CREATE TABLE goose_db_version (id INTEGER PRIMARY KEY AUTOINCREMENT, version_id INTEGER NOT NULL, "
            "is_applied INTEGER NOT NULL, tstamp TIMESTAMP DEFAULT (datetime('now')));"
            "INSERT INTO goose_db_version (version_id, is_applied) VALUES (0, 1), (1, 1);"
            "CREATE TABLE activity (id INTEGER PRIMARY KEY AUTOINCREMENT, ts_created INTEGER NOT NULL, "
            "model_id TEXT NOT NULL, req_path TEXT NOT NULL, resp_content_type TEXT NOT NULL, "
            "resp_status_code INTEGER NOT NULL DEFAULT 0, cache_tokens INTEGER NOT NULL DEFAULT 0, "
            "draft_tokens INTEGER NOT NULL DEFAULT 0, draft_acc_tokens INTEGER NOT NULL DEFAULT 0, "
            "input_tokens INTEGER NOT NULL DEFAULT 0, output_tokens INTEGER NOT NULL DEFAULT 0, "
            "prompt_per_second REAL NOT NULL DEFAULT 0, tokens_per_second REAL NOT NULL DEFAULT 0, "
            "duration_ms INTEGER NOT NULL DEFAULT 0, error_msg TEXT NOT NULL, metadata_json TEXT NOT NULL);"
            "INSERT INTO activity (ts_created, model_id, req_path, resp_content_type, error_msg, metadata_json) "
            "VALUES (5, 'theirs', '/', '', '', 'not json');"
        )
        other.commit()
        other.close()
        store = ActivityStore(path)
        store.insert([row("ours")])
        self.assertEqual(
            [(found.id, found.model) for found in store.page(ActivityQuery()).rows], [(2, "ours"), (1, "theirs")]
        )
        store.close()
        self.assertEqual(in_file(path, "SELECT COUNT(*) FROM goose_db_version"), [(2,)])

    def test_unusable_file_fails_each_time(self):
        store = ActivityStore(self.mktemp() + "/missing/db")
        for _ in range(2):
            self.assertRaises(sqlite3.OperationalError, store.insert, [row()])

    def test_other_users_cannot_read_a_new_database(self):
        previous = os.umask(0o022)
        self.addCleanup(os.umask, previous)
        path = self.mktemp()
        store = filled(row(), path=path)
        self.addCleanup(store.close)
        for suffix in ("", "-wal", "-shm"):
            self.assertEqual(os.stat(path + suffix).st_mode & 0o777, 0o600)

    def test_failed_batch_stores_none_of_its_rows(self):
        store = filled(row(), path=self.mktemp())
        self.assertRaises(sqlite3.Error, store.insert, [row(), row(model=None)])
        self.assertEqual(ids(store), [1])

    def test_ids_of_deleted_rows_are_not_used_again(self):
        path = self.mktemp()
        store = filled(row(), row(), path=path)
        self.addCleanup(store.close)
        in_file(path, "DELETE FROM activity")
        self.assertEqual(store.insert([row()])[0].id, 3)


class StatsTests(SynchronousTestCase):
    def test_unknown_cache_counts_add_nothing_to_the_totals(self):
        """http T147"""
        store = filled(row(usage=Usage(5, 6, 2)), row(usage=Usage(1, 1, -1)))
        stats = store.stats(ActivityFilter())
        self.assertEqual((stats["total_cache_tokens"], stats["total_requests"]), (2, 2))
        self.assertEqual((stats["total_input_tokens"], stats["total_output_tokens"]), (6, 7))
        self.assertEqual((stats["prompt_histogram"], stats["gen_histogram"]), (None, None))
        self.assertNotIn("series", stats)

    def test_stats_of_one_model_and_of_nothing(self):
        store = filled(row("a"), row("b"))
        self.assertEqual(store.stats(parse_filter({"model": ["a"]}))["total_requests"], 1)
        self.assertEqual(store.stats(parse_filter({"model": ["c"]}))["total_input_tokens"], 0)

    def test_series_has_the_sums_of_each_bucket(self):
        store = filled(row(created=59), row(created=60, error_msg="x"), row(created=119))
        series = store.stats(ActivityFilter(), bucket=60)["series"]
        self.assertEqual(
            [(part["start"], part["requests"], part["errors"]) for part in series], [(0, 1, 0), (60, 2, 1)]
        )

    def test_series_has_failures_and_the_first_tokens_of_each_bucket(self):
        store = filled(
            row(created=60, error_msg="client disconnected", first_token_ms=100),
            row(created=61, error_msg="boom", first_token_ms=300),
            row(created=62),
            row(created=120),
        )
        stats = store.stats(ActivityFilter(), bucket=60)
        parts = [(part["errors"], part["failed"], part["first_token_p95_ms"]) for part in stats["series"]]
        self.assertEqual(parts, [(2, 1, 290.0), (0, 0, None)])
        self.assertEqual(stats["first_token_p95_ms"], 290.0)

    def test_speeds_of_each_model_have_deciles_in_each_bucket(self):
        speeds = [row("a", created=60, usage=Usage(tokens_per_second=float(n))) for n in range(10, 21)]
        other = row("b", created=130, usage=Usage(tokens_per_second=5.0))
        found = filled(*speeds, other, row("c", created=60, usage=Usage())).stats(ActivityFilter(), bucket=60)["speeds"]
        self.assertEqual(
            found,
            [
                {"model": "a", "start": 60, "requests": 11, "p10": 11.0, "p50": 15.0, "p90": 19.0},
                {"model": "b", "start": 120, "requests": 1, "p10": 5.0, "p50": 5.0, "p90": 5.0},
            ],
        )

    def test_times_of_a_request_are_read_again_and_sorted_by(self):
        store = filled(row(first_token_ms=7, loaded_ms=900), row(), row(first_token_ms=3))
        page = store.page(parse_query({"sort": ["first_token"]}))
        self.assertEqual([(one.first_token_ms, one.loaded_ms) for one in page.rows], [(7, 900), (3, 0), (-1, 0)])

    def test_histogram_of_equal_speeds_has_one_bin(self):
        self.assertEqual(
            histogram([4.0, 4.0, -1, 0]),
            {"bins": [2], "min": 4.0, "max": 4.0, "binSize": 0.0, "p50": 4.0, "p95": 4.0, "p99": 4.0},
        )

    def test_histogram_bins_have_equal_width_and_the_last_is_closed(self):
        shape = histogram([float(n) for n in range(1, 101)])
        self.assertEqual((len(shape["bins"]), sum(shape["bins"]), shape["min"], shape["max"]), (8, 100, 1.0, 100.0))
        self.assertAlmostEqual(shape["p50"], 50.5)
        self.assertAlmostEqual(shape["p95"], 95.05)
        self.assertEqual(len(histogram([1.0, 2.0])["bins"]), 5)
        self.assertEqual(len(histogram([float(n) for n in range(1, 2**20)][: 2**17])["bins"]), 18)


class KeyTests(SynchronousTestCase):
    def test_tokens_and_requests_of_each_key_are_summed_in_spans(self):
        store = ActivityStore()
        self.addCleanup(store.close)
        usage = Usage(input_tokens=3, output_tokens=-1)
        rows = [(1000, "a"), (1009, "a"), (1011, "a"), (1011, ""), (500, "a")]
        store.insert([ActivityRow(at, "m", "/x", "", 200, usage, 1, key=key) for at, key in rows])
        store.insert([ActivityRow(1000, "m", "/x", "", 429, Usage(), 1, key="a")])
        found = sorted(store.use_by_key(900.0, 10.0))
        self.assertEqual(found, [("", 1020.0, 3, 1), ("a", 1010.0, 6, 2), ("a", 1020.0, 3, 1)])

    def test_file_of_an_older_version_gets_the_names_of_keys(self):
        path = self.mktemp()
        with closing(ActivityStore(path)) as old:
            old.insert([ActivityRow(1000, "m", "/x", "", 200, Usage(), 1)])
        with closing(sqlite3.connect(path)) as file:
            file.execute("DROP TABLE request_key")
        with closing(ActivityStore(path)) as new:
            new.insert([ActivityRow(1001, "m", "/x", "", 200, Usage(), 1, key="child")])
            self.assertEqual([row.key for row in new.after(ActivityFilter(), 0, 9)], ["", "child"])
