"""Servers that hang, and servers that only think."""

import os
import socket

from attrs import define, evolve, field
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config import Compat, Model
from llamaswap.config.schema import HangDetection
from llamaswap.liveness.sample import LivenessSample, look
from llamaswap.liveness.watchdog import LOOK, OpenStream, OutputCounter, Watchdog, alive, stall_of

DEAD = LivenessSample({1: (5.0, 10)}, said=100)  # looked at twice: nothing happened


@define(eq=False)
class Scene:
    """Streams a test writes, a server it shows, questions it answers."""

    clock: Clock = field(factory=Clock)
    streams: dict = field(factory=dict)
    stall: HangDetection | None = field(factory=lambda: HangDetection(after=60.0, times=10, canary=30.0))
    asked: list = field(factory=list)
    hung: list = field(factory=list)
    waits: bool = False
    signs: list = field(factory=lambda: [DEAD])
    looks: int = 0
    healthy: bool = False
    answer: Deferred | None = None
    watchdog: Watchdog = field(init=False)

    def __attrs_post_init__(self):
        self.watchdog = Watchdog(
            self.clock,
            lambda: list(self.streams.values()),
            lambda model: self.waits,
            lambda model: self.stall,
            self.see,
            self.health,
            self.canary,
            lambda model, why: self.hung.append((model, why)),
        )
        self.watchdog.start()

    def see(self, model):
        """The looks in their order; the last one repeats itself."""
        self.looks += 1
        return succeed(self.signs.pop(0) if len(self.signs) > 1 else self.signs[0])

    def health(self, model, limit):
        if self.healthy:
            return succeed(True)
        silent = Deferred()
        self.clock.callLater(limit, silent.callback, False)
        return silent

    def canary(self, model, limit):
        self.asked.append((model, limit))
        self.answer = Deferred()
        return self.answer

    def stream(self, request, sent=100, model="a", granted=True):
        self.streams[request] = OpenStream(request, model, sent, granted)

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

    def silent(self, seconds=400):
        """One stream that flows and then stands still."""
        self.stream("1")
        self.flow("1")
        self.wait(seconds)
        return self


class HangTests(SynchronousTestCase):
    def test_one_that_shows_no_sign_of_life_and_answers_nothing_is_hung(self):
        here = Scene().silent(56)
        self.assertEqual(here.looks, 0)
        here.wait(6)
        self.assertEqual((here.looks, here.asked), (1, []), "the question that may queue comes last")
        here.wait(30)
        self.assertEqual(here.asked, [("a", 30.0)])
        self.assertEqual(here.hung, [])
        here.answer.callback(False)
        [(model, why)] = here.hung
        self.assertEqual(model, "a")
        self.assertIn("no sign of life and no answer", why)
        self.assertEqual(here.watchdog.document("a")["ended"], 1)

    def test_one_whose_stream_goes_on_meanwhile_is_not(self):
        here = Scene().silent(94)
        here.flow("1", seconds=LOOK)
        here.answer.callback(False)
        self.assertEqual(here.hung, [])

    def test_one_that_begins_another_stream_meanwhile_is_not(self):
        here = Scene().silent(94)
        here.stream("2", sent=10)
        here.answer.callback(False)
        self.assertEqual(here.hung, [])

    def test_one_that_prints_its_last_words_while_the_question_is_out_is_not(self):
        here = Scene(signs=[DEAD, DEAD, evolve(DEAD, said=101)]).silent(94)
        here.answer.callback(False)
        self.assertEqual(here.hung, [])

    def test_it_is_judged_once_at_a_time_and_nothing_is_kept_of_ended_streams(self):
        here = Scene().silent(300)
        self.assertEqual(len(here.asked), 1)
        here.answer.callback(True)
        here.streams.clear()
        here.wait(LOOK)
        here.watchdog.retain([])
        books = here.watchdog
        self.assertEqual((books._seen, books._pauses, books._left, books._acquitted), ({}, {}, {}, {}))
        books.stop()
        self.assertEqual(here.clock.getDelayedCalls(), [])

    def test_clients_that_lose_patience_first_do_not_hide_it(self):
        """The next one waits for its first byte, which alone would prove nothing."""
        here = Scene(waits=True).silent(40)
        here.streams.clear()
        here.wait(60)
        here.answer.callback(False)
        self.assertEqual(len(here.hung), 1)

    def test_a_silence_that_ended_with_its_client_is_forgotten_when_something_moves(self):
        here = Scene(waits=True).silent(40)
        here.streams.clear()
        here.wait(10)
        here.stream("2")
        here.flow("2")
        here.streams.clear()
        here.wait(400)
        self.assertEqual((here.looks, here.hung), (0, []))

    def test_an_unused_model_is_not_looked_at_for_what_once_was(self):
        here = Scene(waits=False).silent(40)
        here.streams.clear()
        here.wait(400)
        self.assertEqual(here.looks, 0)


class SlowTests(SynchronousTestCase):
    """A working request must never be ended: whatever shows life acquits."""

    def kept(self, **scene):
        here = Scene(**scene).silent(900)
        self.assertEqual((here.asked, here.hung), ([], []), "it is not even asked for a token")
        self.assertGreater(here.looks, 2, "but looked at again")
        return here

    def test_one_slot_that_works_for_many_minutes_without_a_byte_is_never_ended(self):
        working = [LivenessSample({1: (float(second), 10)}, said=100) for second in range(100)]
        here = self.kept(signs=working)
        self.assertIn("CPU time", here.watchdog.document("a")["last_sign"])

    def test_one_slot_that_is_blocked_but_answers_its_health_check_is_never_ended(self):
        here = Scene(healthy=True).silent(900)
        self.assertEqual((here.asked, here.hung), ([], []))
        self.assertEqual(here.watchdog.document("a")["last_sign"], "it answers the health check")

    def test_one_that_waits_for_a_busy_gpu_is_never_ended(self):
        self.kept(signs=[evolve(DEAD, gpu=97.0)])

    def test_one_that_writes_to_its_log_is_never_ended(self):
        self.kept(signs=[evolve(DEAD, said=count) for count in range(100)])

    def test_one_that_reads_its_weights_from_a_slow_disk_is_never_ended(self):
        self.kept(signs=[LivenessSample({1: (5.0, pages)}) for pages in range(100)])

    def test_one_that_gets_no_processor_on_a_busy_machine_is_never_ended(self):
        self.kept(signs=[evolve(DEAD, wants=True)])

    def test_one_whose_client_reads_slowly_is_never_ended(self):
        """Its answer waits in a socket; a server with one thread then does nothing and answers nobody."""
        self.kept(signs=[evolve(DEAD, unread=True)], stall=HangDetection(after=60.0, signs=()))

    def test_one_in_a_container_is_never_ended_by_default(self):
        self.kept(signs=[LivenessSample(None)])
        self.kept(signs=[None])

    def test_one_that_answers_a_request_is_alive(self):
        here = Scene().silent(94)
        here.answer.callback(True)
        self.assertEqual(here.hung, [])
        here.wait(50)
        self.assertEqual(here.looks, 2, "it has peace for as long as the first silence had")

    def test_what_counts_as_life_can_be_narrowed(self):
        here = Scene(
            healthy=True, signs=[LivenessSample(None)], stall=HangDetection(after=60.0, signs=("log",))
        ).silent(94)
        here.answer.callback(False)
        self.assertEqual(len(here.hung), 1)

    def test_one_that_was_started_anew_meanwhile_is_not_ended_for_its_predecessor(self):
        for successor in (evolve(DEAD, leader=2), LivenessSample(None, leader=2)):
            looks = [evolve(DEAD, leader=1), evolve(DEAD, leader=1), successor]
            here = Scene(signs=looks, stall=HangDetection(after=60.0, canary=30.0, signs=("gpu",))).silent(94)
            here.answer.callback(False)
            self.assertEqual(here.hung, [])

    def test_a_little_cpu_time_is_what_idle_threads_use(self):
        busy = lambda cpu: evolve(DEAD, processes={1: (cpu, 10)})
        self.assertEqual(alive(busy(5.0), busy(5.2), 30.0, HangDetection()), "")
        self.assertNotEqual(alive(busy(5.0), busy(5.4), 30.0, HangDetection()), "")
        self.assertNotEqual(alive(busy(5.0), busy(5.01), 30.0, HangDetection(cpu=0)), "")
        self.assertIn(
            "come and go", alive(DEAD, LivenessSample({1: (5.0, 10), 2: (0.0, 0)}, said=100), 30.0, HangDetection())
        )


class SilenceTests(SynchronousTestCase):
    def test_a_long_prompt_before_the_first_byte_is_no_stall(self):
        here = Scene()
        here.stream("1", sent=0)
        here.wait(3600)
        self.assertEqual(here.looks, 0)

    def test_the_loading_text_does_not_count_as_the_servers_own_words(self):
        here = Scene()
        here.stream("1", granted=False)
        here.flow("1")
        here.streams["1"] = evolve(here.streams["1"], granted=True, sent=900)
        here.wait(3600)
        self.assertEqual(here.looks, 0)

    def test_a_server_whose_other_streams_flow_is_alive(self):
        here = Scene()
        here.stream("1")
        here.stream("2")
        here.flow("1", "2")
        here.flow("2", seconds=300)
        self.assertEqual(here.looks, 0)

    def test_silence_is_measured_against_the_pauses_the_model_came_back_from(self):
        here = Scene()
        here.stream("1")
        here.flow("1")
        here.flow("1", seconds=40, every=20)
        here.wait(180)
        self.assertEqual(here.looks, 0, "ten times twenty seconds")
        here.wait(40)
        self.assertGreater(here.looks, 0)

    def test_models_may_be_left_alone(self):
        here = Scene(stall=None)
        here.stream("1")
        here.flow("1")
        here.wait(3600)
        self.assertEqual(here.looks, 0)

    def test_websocket_servers_are_watched_only_if_told(self):
        sockets = Compat(ignore_websockets=True)
        self.assertEqual(stall_of(Model("a")), HangDetection())
        self.assertIsNone(stall_of(Model("a", compat=sockets)))
        self.assertEqual(
            stall_of(Model("a", compat=sockets, stall=HangDetection(after=60.0))), HangDetection(after=60.0)
        )
        self.assertIsNone(stall_of(Model("a", stall=HangDetection(after=0.0))))


class DocumentTests(SynchronousTestCase):
    def test_every_threshold_and_the_present_silence_can_be_seen(self):
        here = Scene().silent(50)
        told = here.watchdog.document("a")
        wanted = {"watched": True, "after_s": 60.0, "times": 10, "canary_s": 30.0, "cpu_pct": 1, "gpu_pct": 5}
        self.assertEqual({name: told[name] for name in wanted}, wanted)
        self.assertEqual(told["signs"], ["cpu", "gpu", "log", "health"])
        self.assertEqual((told["judged_at_s"], told["asking"], told["ended"]), (60.0, False, 0))
        self.assertEqual(told["silent_s"], 50.0)
        here.stall = None
        self.assertEqual(here.watchdog.document("a"), {"watched": False})


class SignsTests(SynchronousTestCase):
    def setUp(self):
        if not os.path.exists("/proc/self/stat"):
            self.skipTest("needs /proc")
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(self.listener.close)
        self.port = self.listener.getsockname()[1]

    def test_a_listener_of_the_process_is_known_with_what_it_spent(self):
        seen = look(os.getpid(), self.port)
        self.assertGreater(seen.processes[os.getpid()][0], 0.0)
        self.assertTrue(seen.wants, "it runs this very moment")
        self.assertFalse(seen.unread)

    def test_a_port_that_somebody_else_holds_says_nothing(self):
        self.assertIsNone(look(os.getpid(), 1).processes)
        self.assertIsNone(look(2**22 + 1, self.port).processes)

    def test_bytes_nobody_reads_are_seen(self):
        client = socket.create_connection(("127.0.0.1", self.port))
        self.addCleanup(client.close)
        server, _ = self.listener.accept()
        self.addCleanup(server.close)
        client.sendall(b"a question")
        self.assertFalse(look(os.getpid(), self.port).unread, "the server has not read it: that is its own affair")
        server.sendall(b"an answer")
        self.assertTrue(look(os.getpid(), self.port).unread)

    def test_what_servers_print_is_counted_and_passed_on(self):
        passed, heard = [], OutputCounter()
        write = heard.writer("a", passed.append)
        write(b"12")
        write(b"345")
        self.assertEqual((passed, heard.counts), ([b"12", b"345"], {"a": 5}))
