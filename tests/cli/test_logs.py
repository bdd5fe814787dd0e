"""`logs`: history and following."""

import json
import time
from datetime import datetime

from twisted.trial.unittest import SynchronousTestCase

from tests.cli.doubles import Server, invoke, news, sse


class LogsTests(SynchronousTestCase):
    def log(self, data, times=(), *more, name="owl"):
        first = news("logData", {"source": name, "data": data, "times": list(times)})
        later = [news("logData", {"source": name, "data": text}) for text in more]
        return Server().on(f"GET /api/events?topics=logs:{name}", sse(first, *later))

    def test_history_of_a_model_is_the_first_message_of_its_topic(self):
        server = self.log("one\ntwo\n")
        self.assertEqual(invoke(["logs", "owl", "--no-times"], server).stdout, "one\ntwo\n")
        self.assertEqual(invoke(["logs", "owl", "-n", "1", "--no-times"], server).stdout, "two\n")
        self.assertEqual(invoke(["logs", "owl", "-n", "0"], server).stdout, "")

    def test_each_line_has_the_time_at_which_it_was_written(self):
        at = 1_750_000_000.0
        server = self.log("old\none\ntwo\n2026-02-03T04:05:06Z own\nthree\n", [[1, at * 1000], [4, at * 1000 + 9000]])
        stamp = lambda when: datetime.fromtimestamp(when).strftime("%m-%d %H:%M:%S  ")
        lines = [
            " " * 16 + "old",
            f"{stamp(at)}one",
            f"{stamp(at)}two",
            "2026-02-03T04:05:06Z own",
            f"{stamp(at + 9)}three",
        ]
        self.assertEqual(invoke(["logs", "owl"], server).stdout.splitlines(), lines)
        self.assertEqual(invoke(["logs", "owl", "-n", "3"], server).stdout.splitlines(), lines[2:])
        found = [json.loads(line) for line in invoke(["logs", "owl", "--json"], server).stdout.splitlines()]
        self.assertEqual((found[0], found[1]["line"]), ({"line": "old", "time": None}, "one"))
        self.assertEqual(datetime.fromisoformat(found[1]["time"]).timestamp(), at)

    def test_unknown_log_exits_1(self):
        server = Server().on("GET /api/events?topics=logs:owl", sse(news("uiConfig", {})))
        done = invoke(["logs", "owl"], server)
        self.assertEqual(done.exit_code, 1)
        self.assertIn("owl", done.stderr)

    def test_mistyped_name_is_answered_with_the_right_one(self):
        server = Server().on("GET /v1/models", {"data": [{"id": "parrot"}]})
        server.on("GET /api/events?topics=logs:parot", sse(news("uiConfig", {})))
        for words in (["logs", "parot"], ["logs", "-f", "parot"]):
            self.assertEqual(invoke(words, server).stderr, "Error: no log is named parot (did you mean parrot?)\n")

    def test_logs_without_a_name_shows_the_combined_log(self):
        self.assertEqual(invoke(["logs", "--no-times"], self.log("a\nb\n", name="combined")).stdout, "a\nb\n")

    def test_followed_lines_are_printed_when_they_are_complete(self):
        self.patch(time, "time", lambda: 1_750_000_000.0)
        server = self.log("a\nb", [], "c\nd", "e\nf")
        done = invoke(["logs", "-f", "owl", "--json"], server)
        found = [json.loads(line) for line in done.stdout.splitlines()]
        self.assertEqual([row["line"] for row in found], ["a", "bc", "de"])
        self.assertEqual([bool(row["time"]) for row in found], [False, True, True])

    def test_following_with_a_line_count_shows_only_these_of_the_history(self):
        server = self.log("a\nb\n", [], "c\n")
        self.assertEqual(invoke(["logs", "-f", "owl", "-n", "1", "--no-times"], server).stdout, "b\nc\n")
