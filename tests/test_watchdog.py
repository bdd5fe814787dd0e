"""Servers that hang, and servers that only think."""

from attrs import define, evolve, field
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config import Compat, Model
from llamaswap.config.schema import Stall
from llamaswap.watchdog import LOOK, Stream, Watchdog, stall_of


@define(eq=False)
class Scene:
    """Streams a test writes, a canary it answers."""

    clock: Clock = field(factory=Clock)
    streams: dict = field(factory=dict)
    stall: Stall | None = field(factory=lambda: Stall(after=60.0, times=10, canary=30.0))
    asked: list = field(factory=list)
    hung: list = field(factory=list)
    answer: Deferred | None = None
    watchdog: Watchdog = field(init=False)

    def __attrs_post_init__(self):
        self.watchdog = Watchdog(
            self.clock,
            lambda: list(self.streams.values()),
            lambda model: self.stall,
            self.canary,
            lambda model, why: self.hung.append((model, why)),
        )
        self.watchdog.start()

    def canary(self, model, limit):
        self.asked.append((model, limit))
        self.answer = Deferred()
        return self.answer

    def stream(self, request, sent=100, model="a", granted=True):
        self.streams[request] = Stream(request, model, sent, granted)

    def flow(self, *requests, seconds=4 * LOOK, every=LOOK):
        """These streams go on for a while."""
        for _ in range(round(seconds / every)):
            for request in requests:
                stream = self.streams[request]
                self.streams[request] = evolve(stream, sent=stream.sent + 50)
            self.wait(every)

    def wait(self, seconds):
        for _ in range(round(seconds / LOOK)):
            self.clock.advance(LOOK)


class WatchdogTests(SynchronousTestCase):
    def test_a_stream_that_stands_still_and_a_silent_canary_are_a_hung_server(self):
        here = Scene()
        here.stream("1")
        here.flow("1")
        here.wait(56)
        self.assertEqual(here.asked, [])
        here.wait(6)
        self.assertEqual(here.asked, [("a", 30.0)])
        here.answer.callback(False)
        [(model, why)] = here.hung
        self.assertEqual(model, "a")
        self.assertIn("no answer in 30s", why)

    def test_a_server_that_answers_the_canary_only_thinks(self):
        here = Scene()
        here.stream("1")
        here.flow("1")
        here.wait(64)
        here.answer.callback(True)
        self.assertEqual(here.hung, [])
        here.wait(400)
        self.assertEqual(len(here.asked), 1, "asked again much later only")

    def test_a_stream_that_goes_on_while_the_canary_is_out_is_not_hung(self):
        here = Scene()
        here.stream("1")
        here.flow("1")
        here.wait(64)
        here.flow("1", seconds=LOOK)
        here.answer.callback(False)
        self.assertEqual(here.hung, [])

    def test_a_long_prompt_before_the_first_byte_is_no_stall(self):
        here = Scene()
        here.stream("1", sent=0)
        here.wait(3600)
        self.assertEqual(here.asked, [])

    def test_the_loading_text_does_not_count_as_the_servers_own_words(self):
        here = Scene()
        here.stream("1", granted=False)
        here.flow("1")
        here.streams["1"] = evolve(here.streams["1"], granted=True, sent=900)
        here.wait(3600)
        self.assertEqual(here.asked, [])

    def test_a_server_whose_other_streams_flow_is_alive(self):
        here = Scene()
        here.stream("1")
        here.stream("2")
        here.flow("1", "2")
        here.flow("2", seconds=300)
        self.assertEqual(here.asked, [])

    def test_silence_is_measured_against_the_pauses_the_model_came_back_from(self):
        here = Scene()
        here.stream("1")
        here.flow("1")
        here.flow("1", seconds=40, every=20)
        here.wait(180)
        self.assertEqual(here.asked, [], "ten times twenty seconds")
        here.wait(40)
        self.assertEqual(len(here.asked), 1)

    def test_a_hung_server_is_asked_once_at_a_time_and_nothing_is_kept_of_ended_streams(self):
        here = Scene()
        here.stream("1")
        here.flow("1")
        here.wait(300)
        self.assertEqual(len(here.asked), 1)
        here.streams.clear()
        here.answer.callback(False)
        self.assertEqual(here.hung, [], "whoever waited has left")
        here.wait(LOOK)
        here.watchdog.retain([])
        self.assertEqual((here.watchdog._seen, here.watchdog._pauses), ({}, {}))
        here.watchdog.stop()
        self.assertEqual(here.clock.getDelayedCalls(), [])

    def test_models_may_be_left_alone(self):
        here = Scene(stall=None)
        here.stream("1")
        here.flow("1")
        here.wait(3600)
        self.assertEqual(here.asked, [])

    def test_websocket_servers_are_watched_only_if_told(self):
        sockets = Compat(ignore_websockets=True)
        self.assertEqual(stall_of(Model("a")), Stall())
        self.assertIsNone(stall_of(Model("a", compat=sockets)))
        self.assertEqual(stall_of(Model("a", compat=sockets, stall=Stall(after=60.0))), Stall(after=60.0))
        self.assertIsNone(stall_of(Model("a", stall=Stall(after=0.0))))
