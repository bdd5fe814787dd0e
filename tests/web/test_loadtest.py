import json

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionLost
from twisted.trial.unittest import TestCase

from tests.web.doubles import World, envelope


class FakeGenerator:
    """Requests that the test answers."""

    def __init__(self):
        self.sent = []

    def __call__(self, path, body, chunk):
        done = Deferred()
        self.sent.append((path, json.loads(body), chunk, done))
        return done


class LoadTestTests(TestCase):
    def setUp(self):
        self.generator = FakeGenerator()
        self.world = World(generator=self.generator)

    def order(self, **order):
        """Begin a run that loads its model."""
        return self.world.ask("/api/loadtest", "POST", body=json.dumps({"model": "alpha", **order}).encode())

    def begin(self, **order):
        """The same, and the model is loaded at once: what is sent afterwards counts."""
        answer = self.order(**order)
        if answer.status == 202 and self.generator.sent:
            self.generator.sent.pop()[3].callback(200)
        return answer

    def numbers(self):
        return self.world.ask("/api/loadtest/1").json

    def test_a_run_that_ended_keeps_nothing_of_its_prompt(self):
        """Twenty load tests with prompts of 15 MB kept 290 MB for good."""
        for cancelled in (False, True):
            self.begin(concurrency=1, requests=1, prompt="p" * 1000)
            number = self.world.ask("/api/loadtest").json["runs"][0]["id"]
            run = self.world.loadtests.runs[number]
            self.assertIn(b"ppp", run.body)
            if cancelled:
                self.world.ask(f"/api/loadtest/{number}", "DELETE")
            else:
                self.generator.sent[-1][3].callback(200)
            self.assertEqual((run.state, run.body), ("cancelled" if cancelled else "done", b""))

    def test_a_prompt_beyond_the_limit_is_refused_with_the_limit(self):
        answer = self.begin(prompt="p" * (1 << 20))
        self.assertEqual(answer.status, 413)
        self.assertIn(str(1 << 20), answer.text)
        self.assertEqual(self.generator.sent, [])

    def test_run_keeps_its_concurrency_until_its_last_request(self):
        answer = self.begin(concurrency=2, requests=3, max_tokens=9, prompt="p")
        self.assertEqual((answer.status, answer.json["id"]), (202, "1"))
        self.assertEqual(len(self.generator.sent), 2)
        path, body, chunk, done = self.generator.sent[0]
        self.assertEqual(
            (path, body["model"], body["stream"], body["max_tokens"]), ("/v1/chat/completions", "alpha", True, 9)
        )
        self.world.clock.advance(1)
        chunk(b"data: {}\n\n")
        self.world.clock.advance(1)
        chunk(b"data: {}\n\ndata: [DONE]\n\n")
        done.callback(200)
        self.assertEqual(len(self.generator.sent), 3)
        self.generator.sent[1][3].callback(429)
        self.generator.sent[2][3].errback(ConnectionLost())
        numbers = self.numbers()
        self.assertEqual((numbers["state"], numbers["done"]), ("done", 3))
        results = numbers["results"]
        self.assertEqual((results["errors"], results["statuses"]), (2, {"0": 1, "200": 1, "429": 1}))
        self.assertEqual((results["ttft_ms"]["p50"], results["itl_ms"]["p50"]), (1000.0, 1000.0))
        shots = [(shot["lane"], shot["began_ms"], shot["ttft_ms"], shot["status"]) for shot in numbers["shots"]]
        self.assertEqual(len(shots), 3)
        self.assertEqual({lane for lane, *_ in shots}, {0, 1})
        self.assertIn((0, 0, 1000, 200), shots)
        self.assertNotIn("shots", self.world.ask("/api/loadtest").json["runs"][0])
        self.assertEqual(results["tokens_per_second"], 1.0)

    def test_load_of_a_cold_model_is_not_counted(self):
        self.order(concurrency=2, requests=2, prompt="p")
        self.world.clock.advance(30)
        numbers = self.numbers()
        self.assertEqual((numbers["state"], numbers["done"], len(self.generator.sent)), ("loading", 0, 1))
        _, body, chunk, done = self.generator.sent[0]
        self.assertEqual((body["max_tokens"], body["messages"][0]["content"]), (1, "Hello"))
        chunk(b"data: {}\n\n")
        done.callback(200)
        self.world.clock.advance(2)
        for _, _, _, done in self.generator.sent[1:]:
            done.callback(200)
        numbers = self.numbers()
        self.assertEqual((numbers["state"], numbers["done"], numbers["load_ms"]), ("done", 2, 30_000))
        self.assertEqual((numbers["elapsed_ms"], numbers["results"]["duration_ms"]["p99"]), (2000, 2000.0))

    def test_run_whose_model_cannot_be_loaded_has_failed(self):
        self.order(requests=5)
        self.generator.sent[0][3].callback(502)
        numbers = self.numbers()
        self.assertEqual((numbers["state"], numbers["results"]["statuses"]), ("failed", {"502": 1}))
        self.assertEqual((len(self.generator.sent), self.order().status), (1, 202))
        self.world.loadtests.close()

    def test_run_that_is_cancelled_while_its_model_loads_sends_nothing(self):
        self.order(requests=5)
        self.assertEqual(self.world.ask("/api/loadtest/1", "DELETE").json["state"], "cancelled")
        self.assertEqual((len(self.generator.sent), self.generator.sent[0][3].called), (1, True))

    def test_a_cancelled_run_cuts_its_requests(self):
        self.begin(concurrency=2, requests=100)
        self.assertEqual(self.world.ask("/api/loadtest/1", "DELETE").json["state"], "cancelled")
        self.assertEqual((len(self.generator.sent), self.numbers()["done"]), (2, 0))
        self.assertTrue(all(done.called for _, _, _, done in self.generator.sent))

    def test_second_run_at_a_time_is_refused(self):
        self.begin(requests=1)
        self.assertEqual(self.begin(requests=1).status, 409)
        self.generator.sent[0][3].callback(200)
        self.assertEqual(self.begin(requests=1).status, 202)
        self.assertEqual([run["id"] for run in self.world.ask("/api/loadtest").json["runs"]], ["2", "1"])
        self.world.loadtests.close()

    def test_numbers_and_model_of_a_run_are_checked(self):
        self.assertEqual(self.begin(concurrency=257).json, envelope(400, "concurrency must be between 1 and 256"))
        self.assertEqual(self.begin(requests=True).status, 400)
        self.assertEqual(self.begin(model="ghost").status, 404)
        self.assertEqual(self.begin(prompt=1).status, 400)
        self.assertEqual(self.world.ask("/api/loadtest", "POST", body=b"[]").status, 400)
        self.assertEqual(self.world.ask("/api/loadtest/9").status, 404)
        self.assertEqual(self.generator.sent, [])

    def test_old_runs_are_forgotten(self):
        self.world.loadtests.send = lambda path, body, chunk: succeed(200)
        for _ in range(20):
            self.begin(requests=1)
        self.assertEqual(len(self.world.ask("/api/loadtest").json["runs"]), 16)

    def test_a_server_without_a_generator_offers_none(self):
        self.world.loadtests.send = None
        self.assertEqual(self.begin().status, 404)
