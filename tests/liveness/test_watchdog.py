"""Hung servers, and slow ones that must not be taken for them."""

import os
import socket

from attrs import define, evolve, field
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config.schema.model import HangDetection
from llamaswap.liveness.sample import LivenessSample, take_sample
from llamaswap.liveness.watchdog import (
    CHECK_INTERVAL,
    Watchdog,
    sign_of_life,
)
from llamaswap.observe.inflight import OpenStream

DEAD = LivenessSample({1: (5.0, 10)}, printed=100)  # two such samples: nothing happened


@define(eq=False)
class FakeModels:
    """Streams that a test writes, samples of a server that it shows, and requests that it answers."""

    clock: Clock
    open_streams: dict = field(factory=dict)
    stall: HangDetection | None = field(factory=lambda: HangDetection(after=60.0, times=10, canary=30.0))
    asked: list = field(factory=list)
    hung: list = field(factory=list)
    waits: bool = False
    samples: list = field(factory=lambda: [DEAD])
    looks: int = 0
    healthy: bool = False
    answer: Deferred | None = None

    def streams(self):
        return list(self.open_streams.values())

    def has_requests(self, model):
        return self.waits

    def settings(self, model):
        return self.stall

    def sample(self, model):
        """The samples in their order; the last one repeats."""
        self.looks += 1
        return succeed(self.samples.pop(0) if len(self.samples) > 1 else self.samples[0])

    def answers_health_check(self, model, limit):
        if self.healthy:
            return succeed(True)
        silent = Deferred()
        self.clock.callLater(limit, silent.callback, False)
        return silent

    def answers_request(self, model, limit):
        self.asked.append((model, limit))
        self.answer = Deferred()
        return self.answer

    def mark_hung(self, model, why):
        self.hung.append((model, why))


class Scene:
    """A watchdog over models that a test plays."""

    def __init__(self, **models):
        self.clock = Clock()
        self.models = FakeModels(self.clock, **models)
        self.watchdog = Watchdog(self.clock, self.models)
        self.watchdog.start()

    def stream(self, request, sent=100, model="a", granted=True):
        self.models.open_streams[request] = OpenStream(request, model, sent, granted)

    def flow(self, *requests, seconds=4 * CHECK_INTERVAL, every=CHECK_INTERVAL):
        """These streams go on for a while."""
        for _ in range(round(seconds / every)):
            for request in requests:
                stream = self.models.open_streams[request]
                self.models.open_streams[request] = evolve(stream, sent=stream.sent + 50)
            self.wait(every)

    def wait(self, seconds):
        for _ in range(round(seconds / CHECK_INTERVAL)):
            self.clock.advance(CHECK_INTERVAL)

    def silent(self, seconds=400):
        """One stream that flows and then stands still."""
        self.stream("1")
        self.flow("1")
        self.wait(seconds)
        return self


class HangTests(SynchronousTestCase):
    def test_server_without_sign_of_life_or_answer_is_hung(self):
        here = Scene().silent(56)
        self.assertEqual(here.models.looks, 0)
        here.wait(6)
        self.assertEqual((here.models.looks, here.models.asked), (1, []), "the request that may queue comes last")
        here.wait(30)
        self.assertEqual(here.models.asked, [("a", 30.0)])
        self.assertEqual(here.models.hung, [])
        here.models.answer.callback(False)
        [(model, why)] = here.models.hung
        self.assertEqual(model, "a")
        self.assertIn("no sign of life and no answer", why)
        self.assertEqual(here.watchdog.document("a")["ended"], 1)

    def test_server_whose_stream_continues_during_the_check_is_not_hung(self):
        here = Scene().silent(94)
        here.flow("1", seconds=CHECK_INTERVAL)
        here.models.answer.callback(False)
        self.assertEqual(here.models.hung, [])

    def test_server_that_begins_another_stream_during_the_check_is_not_hung(self):
        here = Scene().silent(94)
        here.stream("2", sent=10)
        here.models.answer.callback(False)
        self.assertEqual(here.models.hung, [])

    def test_server_that_prints_during_the_last_request_is_not_hung(self):
        here = Scene(samples=[DEAD, DEAD, evolve(DEAD, printed=101)]).silent(94)
        here.models.answer.callback(False)
        self.assertEqual(here.models.hung, [])

    def test_silent_server_is_judged_once_at_a_time(self):
        here = Scene().silent(300)
        self.assertEqual(len(here.models.asked), 1)

    def test_removed_model_is_forgotten(self):
        here = Scene().silent(94)
        here.models.answer.callback(False)
        self.assertEqual(here.watchdog.document("a")["ended"], 1)
        here.flow("1", seconds=20, every=20)
        self.assertGreater(here.watchdog.document("a")["longest_pause_s"], 90)
        here.watchdog.retain([])
        document = here.watchdog.document("a")
        self.assertEqual((document["ended"], document["longest_pause_s"], document["last_sign"]), (0, 0.0, None))

    def test_stopped_watchdog_leaves_no_timer(self):
        here = Scene().silent(50)
        here.watchdog.stop()
        self.assertEqual(here.clock.getDelayedCalls(), [])

    def test_clients_that_give_up_early_do_not_hide_a_hung_server(self):
        """The next client waits for its first byte, which alone would prove nothing."""
        here = Scene(waits=True).silent(40)
        here.models.open_streams.clear()
        here.wait(60)
        here.models.answer.callback(False)
        self.assertEqual(len(here.models.hung), 1)

    def test_abandoned_silence_is_forgotten_when_another_stream_moves(self):
        here = Scene(waits=True).silent(40)
        here.models.open_streams.clear()
        here.wait(10)
        here.stream("2")
        here.flow("2")
        here.models.open_streams.clear()
        here.wait(400)
        self.assertEqual((here.models.looks, here.models.hung), (0, []))

    def test_model_without_requests_is_not_sampled(self):
        here = Scene(waits=False).silent(40)
        here.models.open_streams.clear()
        here.wait(400)
        self.assertEqual(here.models.looks, 0)


class SlowTests(SynchronousTestCase):
    """A working request must never be ended: any sign of life clears the server."""

    def kept(self, **scene):
        here = Scene(**scene).silent(900)
        self.assertEqual((here.models.asked, here.models.hung), ([], []), "it is not even asked for a token")
        self.assertGreater(here.models.looks, 2, "but looked at again")
        return here

    def test_server_that_works_for_minutes_without_output_is_never_hung(self):
        working = [LivenessSample({1: (float(second), 10)}, printed=100) for second in range(100)]
        here = self.kept(samples=working)
        self.assertIn("CPU time", here.watchdog.document("a")["last_sign"])

    def test_server_that_answers_its_health_check_is_never_hung(self):
        here = Scene(healthy=True).silent(900)
        self.assertEqual((here.models.asked, here.models.hung), ([], []))
        self.assertEqual(here.watchdog.document("a")["last_sign"], "it answers the health check")

    def test_server_on_a_busy_gpu_is_never_hung(self):
        self.kept(samples=[evolve(DEAD, gpu=97.0)])

    def test_server_that_writes_to_its_log_is_never_hung(self):
        self.kept(samples=[evolve(DEAD, printed=count) for count in range(100)])

    def test_server_that_reads_from_disk_is_never_hung(self):
        self.kept(samples=[LivenessSample({1: (5.0, pages)}) for pages in range(100)])

    def test_server_that_waits_for_a_processor_is_never_hung(self):
        self.kept(samples=[evolve(DEAD, runnable=True)])

    def test_server_with_a_slow_reader_is_never_hung(self):
        """Its answer waits in a socket; a server with one thread then does nothing else."""
        self.kept(samples=[evolve(DEAD, unread=True)], stall=HangDetection(after=60.0, signs=()))

    def test_server_in_a_container_is_never_hung_by_default(self):
        self.kept(samples=[LivenessSample(None)])
        self.kept(samples=[None])

    def test_server_that_answers_a_request_is_alive(self):
        here = Scene().silent(94)
        here.models.answer.callback(True)
        self.assertEqual(here.models.hung, [])
        here.wait(50)
        self.assertEqual(here.models.looks, 2, "it is left alone for as long as the first silence lasted")

    def test_configured_signs_narrow_what_counts_as_life(self):
        here = Scene(
            healthy=True, samples=[LivenessSample(None)], stall=HangDetection(after=60.0, signs=("log",))
        ).silent(94)
        here.models.answer.callback(False)
        self.assertEqual(len(here.models.hung), 1)

    def test_server_restarted_during_the_check_is_not_hung(self):
        for successor in (evolve(DEAD, leader=2), LivenessSample(None, leader=2)):
            looks = [evolve(DEAD, leader=1), evolve(DEAD, leader=1), successor]
            here = Scene(samples=looks, stall=HangDetection(after=60.0, canary=30.0, signs=("gpu",))).silent(94)
            here.models.answer.callback(False)
            self.assertEqual(here.models.hung, [])

    def test_cpu_time_of_idle_threads_is_not_a_sign_of_life(self):
        busy = lambda cpu: evolve(DEAD, processes={1: (cpu, 10)})
        self.assertEqual(sign_of_life(busy(5.0), busy(5.2), 30.0, HangDetection()), "")
        self.assertNotEqual(sign_of_life(busy(5.0), busy(5.4), 30.0, HangDetection()), "")
        self.assertNotEqual(sign_of_life(busy(5.0), busy(5.01), 30.0, HangDetection(cpu=0)), "")
        self.assertIn(
            "come and go",
            sign_of_life(DEAD, LivenessSample({1: (5.0, 10), 2: (0.0, 0)}, printed=100), 30.0, HangDetection()),
        )


class SilenceTests(SynchronousTestCase):
    def test_long_prompt_before_the_first_byte_is_not_silence(self):
        here = Scene()
        here.stream("1", sent=0)
        here.wait(3600)
        self.assertEqual(here.models.looks, 0)

    def test_loading_messages_do_not_count_as_server_output(self):
        here = Scene()
        here.stream("1", granted=False)
        here.flow("1")
        here.models.open_streams["1"] = evolve(here.models.open_streams["1"], granted=True, sent=900)
        here.wait(3600)
        self.assertEqual(here.models.looks, 0)

    def test_server_with_another_moving_stream_is_alive(self):
        here = Scene()
        here.stream("1")
        here.stream("2")
        here.flow("1", "2")
        here.flow("2", seconds=300)
        self.assertEqual(here.models.looks, 0)

    def test_silence_is_compared_with_the_longest_pause_of_the_model(self):
        here = Scene()
        here.stream("1")
        here.flow("1")
        here.flow("1", seconds=40, every=20)
        here.wait(180)
        self.assertEqual(here.models.looks, 0, "ten times twenty seconds")
        here.wait(40)
        self.assertGreater(here.models.looks, 0)

    def test_unwatched_model_is_not_sampled(self):
        here = Scene(stall=None)
        here.stream("1")
        here.flow("1")
        here.wait(3600)
        self.assertEqual(here.models.looks, 0)


class DocumentTests(SynchronousTestCase):
    def test_document_shows_thresholds_and_silence(self):
        here = Scene().silent(50)
        told = here.watchdog.document("a")
        wanted = {"watched": True, "after_s": 60.0, "times": 10, "canary_s": 30.0, "cpu_pct": 1, "gpu_pct": 5}
        self.assertEqual({name: told[name] for name in wanted}, wanted)
        self.assertEqual(told["signs"], ["cpu", "gpu", "log", "health"])
        self.assertEqual((told["judged_at_s"], told["asking"], told["ended"]), (60.0, False, 0))
        self.assertEqual(told["silent_s"], 50.0)
        here.models.stall = None
        self.assertEqual(here.watchdog.document("a"), {"watched": False})


class SignsTests(SynchronousTestCase):
    def setUp(self):
        if not os.path.exists("/proc/self/stat"):
            self.skipTest("needs /proc")
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(self.listener.close)
        self.port = self.listener.getsockname()[1]

    def test_listening_process_is_sampled_with_its_cpu_time(self):
        seen = take_sample(os.getpid(), self.port)
        self.assertGreater(seen.processes[os.getpid()][0], 0.0)
        self.assertTrue(seen.runnable, "it runs at this moment")
        self.assertFalse(seen.unread)

    def test_port_of_another_process_gives_no_sample(self):
        self.assertIsNone(take_sample(os.getpid(), 1).processes)
        self.assertIsNone(take_sample(2**22 + 1, self.port).processes)

    def test_unread_output_is_sampled(self):
        client = socket.create_connection(("127.0.0.1", self.port))
        self.addCleanup(client.close)
        server, _ = self.listener.accept()
        self.addCleanup(server.close)
        client.sendall(b"a question")
        self.assertFalse(take_sample(os.getpid(), self.port).unread, "the server has not read its request")
        server.sendall(b"an answer")
        self.assertTrue(take_sample(os.getpid(), self.port).unread)
