"""The list of requests in flight."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    rule,
    run_state_machine_as_test,
)
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.observe.inflight import BURST, UPDATE_DELAY, InflightRequests, OpenStream
from llamaswap.scheduling.state import WaitReason
from llamaswap.wire.headers import ResponseHeaders
from tests.observe.doubles import request_info

SSE = [(b"content-type", b"text/event-stream"), (b"set-cookie", b"secret")]


class InflightTests(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.finished = []
        self.inflight = InflightRequests(self.clock, self.finished.append)
        self.inflight.retune(["X-Session-ID"])
        self.heard = []

    def listen(self):
        return self.inflight.subscribe(self.heard.append)

    def test_listener_gets_the_events_of_a_request_in_order(self):
        """http T155"""
        self.listen()
        scope = self.inflight.open(request_info(7))
        scope.head(200, ResponseHeaders.of(SSE))
        scope.data(b"data: x\n\n")
        self.clock.advance(UPDATE_DELAY)
        scope.ended("complete", None)
        told = [(event["operation"], event.get("id")) for event in self.heard]
        self.assertEqual(told, [("upsert", None)] * 3 + [("remove", "7")])
        first, headed, counted = (event["request"] for event in self.heard[:3])
        self.assertEqual(first["resp_headers"], {})
        self.assertEqual(headed["resp_headers"], {"Content-Type": "text/event-stream", "Set-Cookie": "[REDACTED]"})
        self.assertEqual(counted["resp_bytes"], 9)

    def test_of_many_requests_in_a_moment_only_those_that_stay_are_shown(self):
        """An open page made each request of 1 KB cost 75 % more processor time."""
        self.listen()
        for number in range(10 * BURST):
            scope = self.inflight.open(request_info(number))
            scope.granted()
            scope.ended("complete", None)
        staying = self.inflight.open(request_info(1000))
        self.assertLessEqual(len(self.heard), 2 * BURST)
        self.assertGreater(len(self.heard), BURST)
        upserts = {event["request"]["id"] for event in self.heard if event["operation"] == "upsert"}
        self.assertEqual({event["id"] for event in self.heard if event["operation"] == "remove"}, upserts)
        self.heard.clear()
        self.clock.advance(UPDATE_DELAY)
        self.assertEqual([event["request"]["id"] for event in self.heard], ["1000"])
        staying.ended("complete", None)
        self.assertEqual(self.heard[-1], {"operation": "remove", "id": "1000"})

    def test_a_request_of_the_snapshot_is_removed_even_in_a_burst(self):
        for _ in range(2):
            self.listen()
        scopes = [self.inflight.open(request_info(number)) for number in range(3 * BURST)]
        self.assertEqual(len(self.inflight.snapshot()["requests"]), 3 * BURST)
        self.heard.clear()
        for scope in scopes:
            scope.ended("complete", None)
        self.assertEqual(len(self.heard), 2 * 3 * BURST)

    def test_waiting_request_is_shown_with_the_reason_until_it_is_served(self):
        asked = []
        held = [WaitReason("waiting for owl to finish", ("owl",))]
        self.inflight = InflightRequests(clock=self.clock, why=lambda model: asked.append(model) or held[0])
        self.listen()
        scope = self.inflight.open(request_info(7))
        self.inflight.phase("7", "queued", 2)
        told = self.heard[-1]["request"]
        told = [told[key] for key in ("phase", "reason", "waits_for", "queue_pos")]
        self.assertEqual(told, ["queued", held[0].reason, ["owl"], 2])
        held[0] = WaitReason("the model is being loaded", loading=True)
        self.inflight.wait_reasons_changed()
        self.clock.advance(UPDATE_DELAY)
        told = self.heard[-1]["request"]
        self.assertEqual((told["phase"], told["reason"]), ("loading", "the model is being loaded"))
        self.assertNotIn("queue_pos", told)
        self.assertEqual(self.inflight.busy(), {})
        self.inflight.phase("7", "prefill")
        self.assertNotIn("reason", self.heard[-1]["request"])
        self.assertEqual(self.inflight.busy(), {"owl": 1})
        count = len(self.heard)
        self.inflight.wait_reasons_changed()
        self.clock.advance(UPDATE_DELAY)
        self.assertEqual(len(self.heard), count)
        scope.ended("complete", None)

    def test_wait_reason_is_asked_once_per_model(self):
        asked = []
        self.inflight = InflightRequests(clock=self.clock, why=asked.append)
        for number in range(9):
            self.inflight.open(request_info(number))
        self.inflight.snapshot()
        self.assertEqual(len(asked), 1)

    def test_event_streams_are_listed_with_their_progress(self):
        stream, plain = self.inflight.open(request_info(1)), self.inflight.open(request_info(2))
        plain.head(200, ResponseHeaders.of([(b"content-type", b"application/json")]))
        stream.head(200, ResponseHeaders.of(SSE))
        stream.data(b"data: x\n\n")
        self.assertEqual(list(self.inflight.streams()), [OpenStream("1", "owl", 9, False)])
        stream.granted()
        self.assertEqual(list(self.inflight.streams()), [OpenStream("1", "owl", 9, True)])

    def test_request_of_a_replica_counts_for_its_model_and_for_its_server(self):
        reasons = {"owl.r2": WaitReason("loading", loading=True)}
        self.inflight.why = reasons.get
        request = request_info(1)
        scope = self.inflight.open(request)
        self.assertNotIn("server", self.inflight.snapshot()["requests"][0])
        request.server = "owl.r2"
        [shown] = self.inflight.snapshot()["requests"]
        self.assertEqual((shown["model"], shown["server"], shown["reason"]), ("owl", "owl.r2", "loading"))
        scope.granted()
        scope.head(200, ResponseHeaders.of(SSE))
        self.assertEqual((self.inflight.by_model(), self.inflight.by_server()), ({"owl": 1}, {"owl.r2": 1}))
        self.assertEqual(self.inflight.busy(), {"owl.r2": 1})
        self.assertEqual([stream.model for stream in self.inflight.streams()], ["owl.r2"])

    def test_bytes_held_back_are_counted_before_an_entry_is_shown(self):
        request = request_info(1)
        scope = self.inflight.open(request)
        scope.head(200, ResponseHeaders.of(SSE))
        request.flush = lambda: scope.data(b"held")
        self.assertEqual(self.inflight.snapshot()["requests"][0]["resp_bytes"], 4)
        self.assertEqual([stream.sent for stream in self.inflight.streams()], [8])

    def test_request_is_followed_while_there_are_listeners(self):
        early, fetched = request_info(1), []
        early.flush = lambda: fetched.append(early.followed)
        self.inflight.open(early)
        leave = self.listen()
        late = request_info(2)
        self.inflight.open(late)
        self.assertEqual((early.followed, late.followed), (True, True))
        self.assertIn(True, fetched)
        leave()
        self.assertEqual((early.followed, late.followed), (False, False))

    def test_entry_shows_the_request_without_its_secrets(self):
        self.clock.advance(2)
        headers = [(b"HOST", b"h"), (b"authorization", b"Bearer k"), (b"x-session-id", b"s-1")]
        request = request_info(1, headers=headers, started=0.5, metadata={"selector": "pick"})
        self.inflight.open(request)
        self.assertEqual(
            self.inflight.snapshot(),
            {
                "operation": "snapshot",
                "requests": [
                    {
                        "id": "1",
                        "timestamp": "2026-02-02T02:40:00.25Z",
                        "model": "owl",
                        "req_path": "/v1/chat/completions",
                        "method": "POST",
                        "req_headers": {"Authorization": "[REDACTED]", "X-Session-Id": "s-1"},
                        "remote_ip": "10.0.0.1",
                        "resp_headers": {},
                        "resp_bytes": 0,
                        "elapsed_ms": 1500,
                        "phase": "queued",
                        "metadata": {"selector": "pick"},
                        "session": "s-1",
                    }
                ],
            },
        )

    def test_snapshot_without_requests_has_no_requests_key(self):
        self.assertEqual(self.inflight.snapshot(), {"operation": "snapshot"})

    def test_snapshot_is_sorted_by_arrival_then_id(self):
        for number, timestamp in ((10, 5.0), (9, 5.0), (11, 1.0)):
            self.inflight.open(request_info(number, timestamp=timestamp))
        self.assertEqual([entry["id"] for entry in self.inflight.snapshot()["requests"]], ["11", "9", "10"])

    def test_untracked_requests_are_not_listed(self):
        self.assertIsNone(self.inflight.open(request_info(tracked=False)))
        self.assertEqual(self.inflight.by_model(), {})

    def test_byte_counts_are_coalesced_with_a_trailing_update(self):
        self.listen()
        scope = self.inflight.open(request_info())
        for _ in range(100):
            scope.data(b"x")
            self.clock.advance(0.01)
        scope.data(b"last")
        self.clock.advance(1)
        counts = [event["request"]["resp_bytes"] for event in self.heard]
        self.assertLessEqual(len(counts), 6)
        self.assertEqual(counts[-1], 104)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_without_listeners_there_is_no_timer(self):
        scope = self.inflight.open(request_info())
        scope.data(b"x")
        self.assertEqual(self.clock.getDelayedCalls(), [])
        leave = self.listen()
        scope.data(b"x")
        leave()
        leave()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_progress_shows_phase_position_first_byte_and_speed(self):
        self.listen()
        scope = self.inflight.open(request_info())
        self.inflight.phase("1", "queued", 3)
        self.inflight.phase("1", "queued", 3)
        self.inflight.phase("1", "loading")
        self.inflight.phase("unknown", "loading")
        self.clock.advance(0.5)
        self.inflight.phase("1", "prefill")
        scope.head(200, ResponseHeaders.of(SSE))
        scope.data(b"data: a\n\ndata: b\n\n")
        self.clock.advance(2)
        entry = self.inflight.snapshot()["requests"][0]
        self.assertEqual([entry[key] for key in ("phase", "ttft_ms", "tokens_out", "tps")], ["streaming", 500, 2, 1.0])
        self.assertEqual([event["request"].get("queue_pos") for event in self.heard[:3]], [None, 3, None])

    def test_text_about_the_load_does_not_count_as_the_first_token(self):
        told = request_info(loading=True)
        scope = self.inflight.open(told)
        scope.head(200, ResponseHeaders.of(SSE))
        scope.data(b"data: loading\n\n")
        self.clock.advance(3.0)
        entry = self.inflight.snapshot()["requests"][0]
        self.assertEqual((entry["phase"], entry["resp_bytes"], entry.get("ttft_ms")), ("queued", 15, None))
        told.loading = False
        scope.data(b"data: a\n\n")
        entry = self.inflight.snapshot()["requests"][0]
        self.assertEqual((entry["phase"], entry["ttft_ms"], entry["tokens_out"]), ("streaming", 3000, 1))

    def test_a_grant_ends_the_wait(self):
        scope = self.inflight.open(request_info(metadata={"selector": "pick"}))
        self.assertEqual(self.inflight.snapshot()["requests"][0]["phase"], "queued")
        self.clock.advance(3)
        scope.granted()
        self.assertEqual(self.inflight.snapshot()["requests"][0]["phase"], "prefill")
        self.clock.advance(1)
        scope.ended("complete", None)
        scope.granted()
        self.assertEqual((self.finished[0].granted_at, self.inflight.by_model()), (3.0, {}))

    def test_a_request_that_goes_on_to_another_model_waits_again(self):
        request = request_info()
        scope = self.inflight.open(request)
        scope.granted()
        request.model = "finch"
        scope.retargeted()
        entry = self.inflight.snapshot()["requests"][0]
        self.assertEqual((entry["model"], entry["phase"]), ("finch", "queued"))

    def test_cancel_asks_the_request_and_may_be_repeated(self):
        """http T156"""
        asked = []
        scope = self.inflight.open(request_info(5, cancel=lambda: asked.append(5)))
        self.assertEqual([self.inflight.cancel("5"), self.inflight.cancel("5")], [True, True])
        scope.ended("cancelled", None)
        self.assertEqual((asked, self.inflight.cancel("5"), self.inflight.cancel("6")), ([5, 5], False, False))

    def test_cancel_may_end_the_request_before_it_returns(self):
        scopes = []
        scopes.append(self.inflight.open(request_info(5, cancel=lambda: scopes[0].ended("cancelled", None))))
        self.assertTrue(self.inflight.cancel("5"))
        self.assertEqual(self.inflight.by_model(), {})

    def test_metrics_count_the_end_once(self):
        scope = self.inflight.open(request_info())
        self.clock.advance(1)
        scope.head(200, ResponseHeaders.of(SSE))
        scope.data(b"abc")
        self.clock.advance(1)
        scope.ended("complete", None)
        scope.ended("gone", None)
        scope.data(b"late")
        (finished,) = self.finished
        self.assertEqual((finished.status, finished.sent, finished.duration, finished.first_byte), (200, 3, 2.0, 1.0))

    def test_failing_listeners_and_metrics_do_not_disturb_others(self):
        def bad(_):
            raise RuntimeError("listener broke")

        self.inflight = InflightRequests(clock=self.clock, finished=bad)
        self.inflight.subscribe(bad)
        self.listen()
        self.inflight.open(request_info()).ended("complete", None)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 3)
        self.assertEqual((len(self.heard), self.inflight.by_model()), (2, {}))


class Balance(RuleBasedStateMachine):
    """The list always equals the test's own, however requests come, go, repeat and are watched."""

    scopes = Bundle("scopes")

    def __init__(self):
        super().__init__()
        self.clock = Clock()
        self.finished = []
        self.inflight = InflightRequests(clock=self.clock, finished=self.finished.append)
        self.open = {}
        self.made = 0
        self.seen = None
        self.leave = None

    @rule(target=scopes, model=st.sampled_from(["a", "b"]))
    def arrives(self, model):
        self.made += 1
        number = self.made
        scope = self.inflight.open(request_info(number, model=model, started=self.clock.seconds()))
        self.open[str(number)] = model
        return str(number), scope

    @rule(pair=scopes, status=st.sampled_from([200, 500]))
    def answers(self, pair, status):
        pair[1].head(status, ResponseHeaders.of(SSE))

    @rule(pair=scopes, data=st.binary(min_size=1, max_size=9))
    def streams(self, pair, data):
        pair[1].data(data)

    @rule(pair=scopes, phase=st.sampled_from(["queued", "loading", "prefill"]), place=st.integers(0, 3))
    def moves(self, pair, phase, place):
        self.inflight.phase(pair[0], phase, place)

    @rule(pair=scopes, ending=st.sampled_from(["complete", "refused", "truncated", "gone", "cancelled"]))
    def ends(self, pair, ending):
        pair[1].ended(ending, None)
        self.open.pop(pair[0], None)

    @rule(pair=consumes(scopes))
    def ends_for_good(self, pair):
        self.ends(pair, "complete")

    @rule(seconds=st.floats(0, 1))
    def time_passes(self, seconds):
        self.clock.advance(seconds)

    @rule()
    def a_watcher_comes_or_goes(self):
        if self.leave:
            self.leave()
            self.leave = self.seen = None
            return
        self.seen = {entry["id"] for entry in self.inflight.snapshot().get("requests", [])}

        def hear(event):
            if event["operation"] == "remove":
                self.seen.remove(event["id"])
            else:
                self.seen.add(event["request"]["id"])

        self.leave = self.inflight.subscribe(hear)

    @invariant()
    def counts_balance(self):
        assert sum(self.inflight.by_model().values()) == len(self.open)
        assert len(self.finished) == self.made - len(self.open)
        if self.seen is not None:
            assert self.seen == set(self.open)


class BalanceTests(SynchronousTestCase):
    def test_counts_balance_after_every_step(self):
        run_state_machine_as_test(
            Balance, settings=settings(max_examples=60, stateful_step_count=40, deadline=None, database=None)
        )
