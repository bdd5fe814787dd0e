"""What a reload changes, and which ports stay."""

from llamaswap.config import diff
from llamaswap.config.diff import ConfigDiff
from llamaswap.config.ports import keep
from tests.config.loading import ABC, LoadCase

TWO = 'models: {ant: {cmd: "a ${PORT}"}, bee: {cmd: "b ${PORT}"}}\n'


class Changes(LoadCase):
    def test_equal_configurations_have_no_differences(self):
        self.assertEqual(diff(self.ok(ABC), self.ok(ABC)), ConfigDiff())

    def test_changed_models_are_restarted_or_retuned(self):
        new = (
            ABC.replace("cmd: a,", "cmd: '# why\n\n  a', ttl: 5,").replace("cmd: b", "cmd: bb").replace("cat:", "dog:")
        )
        plan = diff(self.ok(ABC), self.ok(new + "globalTTL: 1"))
        self.assertEqual((plan.added, plan.removed), (("dog",), ("cat",)))
        self.assertEqual((plan.restarted, plan.retuned), (("bee",), ("ant",)))
        self.assertIn("global_ttl", plan.settings)

    def test_model_keeps_its_port_when_others_are_added_before_it(self):
        old = self.ok(TWO)
        new = keep(old, self.ok(TWO.replace("{ant", '{aaa: {cmd: "x ${PORT}"}, ant', 1)))
        self.assertEqual(
            {name: model.port for name, model in new.models.items()}, {"aaa": 5802, "ant": 5800, "bee": 5801}
        )
        self.assertEqual(diff(old, new).added, ("aaa",))
        self.assertEqual((diff(old, new).restarted, diff(old, new).retuned), ((), ()))
        self.assertEqual(new.models["aaa"].cmd, "x 5802")

    def test_other_start_port_changes_every_port(self):
        new = keep(self.ok(TWO), self.ok("startPort: 7000\n" + TWO))
        self.assertEqual(new.models["ant"].port, 7000)
