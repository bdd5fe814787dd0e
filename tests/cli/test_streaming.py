"""Streamed chat responses, and the commands that read them: `run` and `bench`."""

import json

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.cli.bench import summary
from llamaswap.cli.chat import Conversation, message
from llamaswap.cli.client import ApiClient, ClientError
from llamaswap.cli.streaming import CHAT, collect
from llamaswap.proxy.loading import reasoning
from tests.cli.doubles import Server, chat, invoke, sse


class CollectTests(SynchronousTestCase):
    def collect(self, body):
        ticks = iter(range(100))
        server = Server().on(f"POST {CHAT}", body)
        return collect(ApiClient("x", server.send), {"model": "owl"}, now=lambda: float(next(ticks)))

    def test_pieces_are_joined_and_timed(self):
        stats = self.collect(chat("a", "b", "c", usage={"completion_tokens": 30}))
        self.assertEqual((stats.text, stats.first, stats.tokens), ("abc", 1.0, 30))
        self.assertAlmostEqual(stats.rate, 29 / (stats.total - 1))

    def test_pieces_are_counted_without_a_token_count(self):
        self.assertEqual(self.collect(chat("a", "b")).tokens, 2)

    def test_reasoning_is_separate_from_the_text(self):
        stats = self.collect(sse({"id": "x", "choices": [{"delta": {"reasoning_content": "hm"}}]}, "[DONE]"))
        self.assertEqual((stats.text, stats.reasoning, stats.first), ("", "hm", 1.0))

    def test_loading_messages_are_not_part_of_the_response(self):
        words = [json.loads(reasoning(text).partition(b":")[2]) for text in ("llama-swap", " loading")]
        said = {"id": "x", "choices": [{"index": 0, "delta": {"content": "hello"}}]}
        shown = []
        ticks = iter(range(100))
        server = Server().on(f"POST {CHAT}", sse(*words, said, "[DONE]"))
        stats = collect(ApiClient("x", server.send), {}, shown.append, now=lambda: float(next(ticks)))
        self.assertEqual((stats.text, stats.reasoning, stats.pieces, stats.first), ("hello", "", 1, 3.0))
        self.assertEqual([piece.reasoning for piece in shown if piece.loading], ["llama-swap", " loading"])

    def test_error_event_is_raised(self):
        body = sse({"choices": [{"delta": {"content": "a"}}]}, {"error": {"message": "broken off"}})
        self.assertEqual(str(self.assertRaises(ClientError, self.collect, body)), "broken off")

    def test_one_token_has_no_rate(self):
        self.assertIsNone(self.collect(chat("a")).rate)


class RunTests(SynchronousTestCase):
    def test_prompt_gets_one_response(self):
        server = Server().on(f"POST {CHAT}", chat("Hello", "!"))
        done = invoke(["run", "owl", "say", "hello", "--system", "be kind", "--temperature", "0"], server)
        self.assertEqual(done.stdout, "Hello!\n")
        body = server.bodies[0]
        self.assertEqual([message["content"] for message in body["messages"]], ["be kind", "say hello"])
        self.assertEqual((body["temperature"], body["stream"]), (0.0, True))

    def test_piped_text_follows_the_prompt(self):
        server = Server().on(f"POST {CHAT}", chat("x"))
        invoke(["run", "owl", "sum up:"], server, stdin="a text\n")
        self.assertEqual(server.bodies[0]["messages"][-1]["content"], "sum up:\n\na text")

    def test_run_json_has_the_text_and_the_measurements(self):
        server = Server().on(f"POST {CHAT}", chat("a", "b", usage={"completion_tokens": 2}))
        found = json.loads(invoke(["run", "owl", "hi", "--json"], server).stdout)
        self.assertEqual((found["content"], found["usage"]), ("ab", {"completion_tokens": 2}))

    def test_missing_prompt_is_a_usage_error(self):
        self.assertEqual(invoke(["run", "owl"]).exit_code, 2)

    def test_conversation_is_sent_without_the_reasoning(self):
        talk = Conversation("owl", "kind")
        talk.add(message("q1"), "a1")
        roles = [(sent["role"], sent["content"]) for sent in talk.request(message("q2"))["messages"]]
        self.assertEqual(roles, [("system", "kind"), ("user", "q1"), ("assistant", "a1"), ("user", "q2")])


class BenchTests(SynchronousTestCase):
    def test_percentiles_are_computed_as_by_the_server(self):
        found = summary([float(number) for number in range(1, 102)])
        self.assertEqual([found[name] for name in ("min", "p50", "p90", "p99", "max")], [1, 51, 91, 100, 101])
        self.assertEqual(summary([3.0])["p50"], 3.0)

    def test_summary_of_no_values_is_empty(self):
        self.assertEqual(set(summary([]).values()), {None})

    def test_bench_makes_and_counts_every_request(self):
        server = Server().on(f"POST {CHAT}", lambda _: chat("a", "b", usage={"completion_tokens": 2}))
        done = invoke(["bench", "owl", "-n", "3", "-c", "2", "--json"], server)
        found = json.loads(done.stdout)
        self.assertEqual((found["requests"], found["failed"], found["tokens"]), (3, 0, 6))
        self.assertEqual(len(server.asked), 4)  # one to warm up

    def test_bench_exits_1_if_every_request_fails(self):
        server = Server().on(f"POST {CHAT}", (500, {"error": {"message": "no memory"}}))
        done = invoke(["bench", "owl", "-n", "2", "--cold"], server)
        self.assertEqual(done.exit_code, 1)
        self.assertIn("no memory", done.stderr)
