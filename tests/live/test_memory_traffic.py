"""Memory decides over real llama.cpp models under a budget of RAM, beside the default group, with the same requests."""

from importlib.util import find_spec

from twisted.trial.unittest import SynchronousTestCase

MISSING = [name for name in ("xllamacpp", "gguf", "numpy") if find_spec(name) is None]


class MemoryTrafficTests(SynchronousTestCase):
    if MISSING:
        skip = f"not installed: {', '.join(MISSING)} (extra: live)"

    timeout = 240

    def test_models_that_fit_stay_loaded_and_every_eviction_is_explained(self):
        from benchmarks.memory import compare

        group, memory = compare(20.0, (30, 40, 50, 60, 70, 90), budget=350)
        self.assertEqual(group.failures + memory.failures, [])
        self.assertEqual(memory.unexplained, [])
        self.assertLess(len(memory.swaps), len(group.swaps))
        self.assertGreater(len(memory.measured), 1, "models run together")
        self.assertEqual(len(memory.learned), 6)
        for model, size in memory.measured.items():
            self.assertLess(abs(memory.learned[model] / size - 1), 0.05, model)
