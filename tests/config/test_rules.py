"""`renameParams`, `clampParams`, `maxTokens`, `maxDuration` and `restoreDefault`: what they may say."""

from llamaswap.config.schema.filters import Bounds
from tests.config.loading import ABC, LoadCase, owl


class RuleTests(LoadCase):
    def test_rules_are_read_without_the_model(self):
        model = self.ok(
            owl(
                "px, cmd: x, maxTokens: 500, maxDuration: 1m, filters: {renameParams: {a: b, c: model, model: d},"
                " clampParams: {t: {min: 0, max: 1.5}, model: {max: 1}}}"
            )
        ).models["owl"]
        self.assertEqual((model.max_tokens, model.max_duration), (500, 60.0))
        self.assertEqual(model.filters.rename_params, {"a": "b"})
        self.assertEqual(model.filters.clamp_params, {"t": Bounds(0, 1.5)})

    def test_bounds_that_mean_nothing_are_errors(self):
        for written in ("{}", "{low: 1}", "{min: x}", "{min: 2, max: 1}", "[1, 2]", "{max: .inf}", "{max: true}"):
            self.err(owl(f"px, cmd: x, filters: {{clampParams: {{t: {written}}}}}"), "clampParams.t")

    def test_a_default_that_is_no_local_model_cannot_return(self):
        self.ok(ABC + "routing: {defaultModel: bee, restoreDefault: true}")
        self.assertEqual(self.loaded.warnings, ())
        self.ok(ABC + "routing: {restoreDefault: true}")
        self.assertIn("restoreDefault", str(self.loaded.warnings[0]))
