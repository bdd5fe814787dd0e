"""`logs`: history and following."""

import json

from twisted.trial.unittest import SynchronousTestCase

from tests.cli.doubles import Server, invoke, news, sse


class LogsTests(SynchronousTestCase):
    def test_history_of_a_model_is_the_first_message_of_its_topic(self):
        stream = sse(news("logData", {"source": "owl", "data": "one\ntwo\n"}), news("uiConfig", {}))
        server = Server().on("GET /api/events?topics=logs:owl", stream)
        self.assertEqual(invoke(["logs", "owl"], server).stdout, "one\ntwo\n")
        self.assertEqual(invoke(["logs", "owl", "-n", "1"], server).stdout, "two\n")

    def test_unknown_log_exits_1(self):
        server = Server().on("GET /api/events?topics=logs:owl", sse(news("uiConfig", {})))
        done = invoke(["logs", "owl"], server)
        self.assertEqual(done.exit_code, 1)
        self.assertIn("owl", done.stderr)

    def test_mistyped_name_is_answered_with_the_right_one(self):
        server = Server().on("GET /v1/models", {"data": [{"id": "parrot"}]})
        server.on("GET /api/events?topics=logs:parot", sse(news("uiConfig", {})))
        server.on("GET /logs/stream/parot", (400, {"error": "invalid logger"}))
        told = invoke(["logs", "parot"], server).stderr
        self.assertEqual(told, "Error: no log is named parot (did you mean parrot?)\n")
        self.assertIn("invalid logger: parot (did you mean parrot?)", invoke(["logs", "-f", "parot"], server).stderr)

    def test_logs_without_a_name_shows_the_combined_log(self):
        self.assertEqual(invoke(["logs"], Server().on("GET /logs", b"a\nb\n")).stdout, "a\nb\n")

    def test_following_prints_lines_until_the_stream_ends(self):
        server = Server().on("GET /logs/stream/owl", b"a\nb\n")
        done = invoke(["logs", "-f", "owl", "--json"], server)
        self.assertEqual([json.loads(line)["line"] for line in done.stdout.splitlines()], ["a", "b"])

    def test_following_with_a_line_count_shows_only_these_of_the_history(self):
        server = Server().on("GET /logs", b"a\nb\n").on("GET /logs/stream?no-history", b"c\n")
        self.assertEqual(invoke(["logs", "-f", "-n", "1"], server).stdout, "b\nc\n")
