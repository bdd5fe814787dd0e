from twisted.trial.unittest import SynchronousTestCase

from llamaswap.scheduling import memory_advice
from llamaswap.scheduling.memory import Device, GpuShare, Ledger, MemoryNeed, place
from llamaswap.scheduling.memory_advice import advice, fitting_together

DEVICES = {"ram": Device(1000), "gpu0": Device(100, reserve=10), "gpu1": Device(100, foreign=60)}


def on_gpu(size):
    return MemoryNeed(5, ((GpuShare(size),),))


class AdviceTests(SynchronousTestCase):
    def swap_all(self, target, running):
        return list(running)

    def test_models_that_fit_beside_each_other_are_named(self):
        ledger = Ledger(DEVICES, {"a": on_gpu(60), "b": on_gpu(30), "c": on_gpu(40), "d": on_gpu(20)})
        self.assertEqual(fitting_together(ledger), ("a", "b", "c"))
        [sentence] = advice(ledger, self.swap_all)
        self.assertIn("a, b, c.", sentence)
        self.assertIn("llamaswap memory enable", sentence)

    def test_models_that_take_longest_to_load_are_tried_first(self):
        ledger = Ledger(DEVICES, {"a": on_gpu(60), "b": on_gpu(90)}, load_seconds={"b": 60.0, "a": 1.0})
        self.assertEqual(fitting_together(ledger), ("b",))

    def test_each_model_is_compared_with_all_that_fit_before_it_at_once(self):
        compared = []

        def counted(ledger, model, occupants):
            compared.append(len(occupants))
            return place(ledger, model, occupants)

        self.patch(memory_advice, "place", counted)
        needs = {f"m{number:02}": MemoryNeed(20) for number in range(60)}
        self.assertEqual(fitting_together(Ledger(DEVICES, needs)), tuple(sorted(needs))[:50])
        self.assertEqual(compared, [1] * 60)

    def test_models_that_may_stay_already_need_no_advice(self):
        ledger = Ledger(DEVICES, {"a": on_gpu(30), "b": on_gpu(30)})
        self.assertEqual(advice(ledger, lambda target, running: []), [])

    def test_single_or_unknown_models_need_no_advice(self):
        self.assertEqual(advice(Ledger(DEVICES, {"a": on_gpu(30)}), self.swap_all), [])
        self.assertEqual(advice(Ledger({}, {"a": on_gpu(30), "b": on_gpu(30)}), self.swap_all), [])
        self.assertEqual(advice(Ledger(DEVICES), self.swap_all), [])

    def test_sentence_names_six_models_at_most(self):
        ledger = Ledger(DEVICES, {f"m{number}": on_gpu(5) for number in range(9)})
        self.assertIn("m4, m5 and more.", advice(ledger, self.swap_all)[0])
