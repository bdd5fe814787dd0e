"""Which measurements are learned."""

from twisted.internet.defer import maybeDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.memory.footprints import FootprintStore
from llamaswap.memory.learner import GpuRoom, Learner, asked_layers, says_squeezed
from llamaswap.memory.measure import ModelUse
from llamaswap.scheduling.memory import GpuShare, MemoryNeed

OFFLOADED = b"load_tensors: offloaded %d/%d layers to GPU\n"


class LearnerFixture(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.output = b""
        self.chosen = set()
        self.keys = {"owl": "k1", "crow": "c1"}
        self.changes = []
        self.store = FootprintStore(None, self.fail, self.clock.seconds, self.clock.seconds)
        self.learner = self.make()

    def make(self):
        return Learner(
            run=lambda work: maybeDeferred(work),
            seconds=self.clock.seconds,
            store=self.store,
            key_of=lambda model: lambda: self.keys[model],
            chosen=lambda model: model in self.chosen,
            output=lambda model: self.output,
            changed=lambda: self.changes.append(1),
        )

    def load(self, *sizes, model="owl", argv=(), expected=None, room=None, **devices):
        """A process of the model that is measured with these MiB of RAM."""
        self.learner.started(model, argv, expected)
        self.learner.ready(model, 2.5, has_gpus=bool(devices))
        for size in sizes:
            self.learner.measured(model, ModelUse({"ram": size, **devices}), room)
        return self.learner.footprints.get(model)


class LearnerTests(LearnerFixture):
    def test_measurements_are_due_at_readiness_and_a_moment_later(self):
        self.assertFalse(self.learner.due("owl"))
        self.learner.started("owl", (), None)
        self.assertFalse(self.learner.due("owl"))
        self.learner.ready("owl", 1.0, has_gpus=False)
        due = []
        for _ in range(5):
            due.append(self.learner.due("owl"))
            if due[-1]:
                self.learner.measured("owl", ModelUse({"ram": 1}), None)
            self.clock.advance(1)
        self.assertEqual(due, [True, False, False, True, False])

    def test_measurements_after_requests_are_due_every_five_seconds(self):
        self.load(1, 1)
        self.clock.advance(10)
        self.assertFalse(self.learner.due("owl"))
        due = 0
        for _ in range(20):
            self.learner.request_ended("owl")
            if self.learner.due("owl"):
                due += 1
                self.learner.measured("owl", ModelUse({"ram": 1}), None)
            self.clock.advance(1)
        self.assertEqual(due, 4)

    def test_load_and_sizes_are_learned(self):
        found = self.load(100, 150)
        self.assertEqual((found.sizes, found.n, found.load_seconds, found.key), ({"ram": 153}, 2, 2.5, "k1"))
        self.assertTrue(self.changes)

    def test_process_that_never_became_ready_is_not_learned(self):
        self.learner.started("owl", (), None)
        self.learner.measured("owl", ModelUse({"ram": 1}), None, final=True)
        self.learner.ended("owl")
        self.learner.ready("owl", 1.0, has_gpus=False)
        self.learner.measured("owl", ModelUse({"ram": 1}), None)
        self.assertEqual(self.learner.footprints, {})

    def test_last_measurement_raises_the_peak_only(self):
        self.load(100)
        self.learner.measured("owl", ModelUse({"ram": 20}), None, final=True)
        self.assertEqual(self.learner.footprints["owl"].sizes, {"ram": 102})

    def test_changed_command_is_carried_and_then_learned(self):
        self.load(100)
        self.keys["owl"] = "k2"
        self.learner.started("owl", (), None)
        self.assertTrue(self.learner.footprints["owl"].carried)
        self.assertEqual(self.load(50).sizes, {"ram": 51})

    def test_known_models_are_looked_up(self):
        self.load(100)
        later = self.make()
        self.learner = later
        later.look_up(["crow", "owl"])
        self.assertEqual({model: found.sizes for model, found in later.footprints.items()}, {"owl": {"ram": 102}})
        later.look_up(["crow"])
        self.assertEqual(later.footprints, {})

    def test_key_that_cannot_be_made_is_logged_and_nothing_learned(self):
        del self.keys["owl"]
        self.assertIsNone(self.load(100))
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)

    def test_chosen_gpus_are_learned_without_their_numbers(self):
        self.chosen.add("owl")
        self.assertEqual(self.load(10, gpu3=100, gpu1=500).sizes, {"ram": 10, "any0": 510, "any1": 102})


class SqueezedTests(LearnerFixture):
    def test_engine_that_says_it_adapted_itself_is_squeezed(self):
        self.assertFalse(says_squeezed(b"", ()))
        self.assertFalse(says_squeezed(OFFLOADED % (33, 33), ()))
        self.assertTrue(says_squeezed(OFFLOADED % (20, 33), ()))
        self.assertTrue(says_squeezed(b"W cannot meet free memory target\n" + OFFLOADED % (33, 33), ()))
        self.assertFalse(says_squeezed(OFFLOADED % (20, 33) + OFFLOADED % (33, 33), ()))

    def test_layers_that_the_command_leaves_on_the_cpu_are_not_missing(self):
        self.assertFalse(says_squeezed(OFFLOADED % (10, 33), ("llama-server", "-ngl", "10")))
        self.assertTrue(says_squeezed(OFFLOADED % (9, 33), ("llama-server", "--n-gpu-layers=10")))
        self.assertTrue(says_squeezed(OFFLOADED % (32, 33), ("-ngl", "99")))
        self.assertEqual([asked_layers(words) for words in ((), ("-ngl",), ("-ngl", "all"))], [None] * 3)

    def test_squeezed_load_is_shown_and_not_learned(self):
        self.load(10, gpu0=500)
        self.output = OFFLOADED % (20, 33)
        found = self.load(10, 10, gpu0=300)
        self.assertEqual((found.squeezed, found.n, found.sizes["gpu0"]), (True, 1, 510))

    def test_output_does_not_count_without_a_gpu(self):
        self.output = OFFLOADED % (0, 33)
        self.assertFalse(self.load(10).squeezed)

    def test_server_that_others_left_too_little_for_is_squeezed(self):
        need = MemoryNeed(0, ((GpuShare(1000, "gpu0"),),))
        self.assertTrue(self.load(10, gpu0=800, expected=need, room=GpuRoom(900, 2000)).squeezed)
        self.assertFalse(self.load(10, gpu0=900, expected=need, room=GpuRoom(900, 2000)).squeezed)
        self.assertFalse(self.load(10, gpu0=500, expected=need, room=GpuRoom(1500, 2000)).squeezed)

    def test_expectation_larger_than_the_machine_was_wrong(self):
        need = MemoryNeed(0, ((GpuShare(5000, "gpu0"),),), "gguf", firm=False)
        found = self.load(10, gpu0=800, expected=need, room=GpuRoom(2000, 2000))
        self.assertEqual((found.squeezed, found.sizes["gpu0"]), (False, 816))
