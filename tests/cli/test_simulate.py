"""`simulate`: recorded requests under each policy."""

import json
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.memory.footprints import STORE_NAME, FootprintStore, Measurement
from tests.cli.doubles import invoke

CONFIG = """
    models:
      a: {cmd: "engine-a --port ${PORT}", aliases: [first]}
      b: {cmd: "engine-b --port ${PORT}"}
      c: {cmd: "engine-c --port ${PORT}", memory: 30GiB}
"""
TURNS = [(100 * turn, ("first", "b")[turn % 2], 5) for turn in range(10)]
SIZES = ("--memory", "a=10GiB", "--memory", "b=9GiB", "--budget", "ram=64GiB,gpu0=24GiB", "--load-seconds", "20")


class SimulateTests(SynchronousTestCase):
    def setUp(self):
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        self.log = self.folder / "traffic.csv"
        self.record(TURNS)

    def record(self, requests):
        rows = "".join(f"{time},{model},{duration}\n" for time, model, duration in requests)
        self.log.write_text("time,model,duration\n" + rows)

    def simulate(self, *words, config=CONFIG):
        path = self.folder / "config.yaml"
        path.write_text(config)
        boards = self.folder / "none"
        boards.mkdir(exist_ok=True)
        env = {"LLAMASWAP_FAKE_BOARDS": str(boards)}
        return invoke(["simulate", "--log", str(self.log), "--config", str(path), *words], env=env)

    def document(self, *words, **options):
        done = self.simulate(*words, "--json", **options)
        self.assertEqual(done.exit_code, 0, done.output)
        return json.loads(done.stdout)

    def test_policies_are_compared(self):
        done = self.simulate(*SIZES)
        self.assertEqual(done.exit_code, 0, done.output)
        self.assertRegex(done.stdout, r"one at a time +10 +200 ")
        self.assertRegex(done.stdout, r"groups +10 +200 ")
        self.assertRegex(done.stdout, r"memory +2 +40 ")
        self.assertIn("routing.memory: on takes 80 % fewer load seconds than groups without it", done.stdout)

    def test_json_has_each_policy(self):
        found = self.document(*SIZES)
        self.assertEqual(list(found["policies"]), ["one at a time", "groups", "memory"])
        memory = found["policies"]["memory"]
        self.assertEqual((memory["requests"], memory["loads"], memory["load_seconds"]), (10, 2, 40.0))
        self.assertEqual((memory["loads_by_model"], memory["wait_p50_s"]), ({"a": 1, "b": 1}, 0.0))
        self.assertEqual(found["notes"], [])

    def test_matrix_of_the_configuration_is_what_is_compared(self):
        matrix = CONFIG + "    matrix: {sets: {both: a & b}}\n"
        policies = self.document(*SIZES, config=matrix)["policies"]
        self.assertEqual((policies["matrix"]["loads"], policies["one at a time"]["loads"]), (2, 10))

    def test_hosts_of_the_configuration_are_not_played(self):
        elsewhere = "    hosts: {}\n" + CONFIG.replace("aliases: [first]", "aliases: [first], place: nas")
        memory = self.document(*SIZES, config=elsewhere)["policies"]["memory"]
        self.assertEqual((memory["loads"], memory["refused"]), (2, {}))

    def test_declared_memory_larger_than_the_budget_is_refused(self):
        self.record([(0, "c", 1)])
        self.assertEqual(self.document(*SIZES)["policies"]["memory"]["refused"], {"DoesNotFit": 1})
        self.assertRegex(self.simulate(*SIZES).stdout, r"memory .* 1 DoesNotFit")

    def test_policy_that_refuses_requests_is_not_said_to_load_less(self):
        self.record([*TURNS, (2000, "c", 1)])
        done = self.simulate(*SIZES)
        self.assertNotIn("fewer load seconds", done.stdout)
        self.assertIn(
            "routing.memory: on refuses 1 request, so its load seconds do not compare with groups", done.stdout
        )
        found = self.document(*SIZES)
        self.assertEqual(
            found["notes"][0],
            "too large for this memory: c, which needs 30.0 GiB of gpu0 (declared), where gpu0 has 24.0 GiB; RAM has "
            "64.0 GiB",
        )

    def test_unknown_memory_and_load_times_are_mentioned(self):
        found = self.document("--budget", "ram=64GiB,gpu0=24GiB")
        self.assertEqual(found["policies"]["memory"]["loads"], 10)
        self.assertIn("loaded alone, because its memory is unknown (--memory MODEL=SIZE says it): a, b", found["notes"])
        self.assertIn("a load is taken to last 10 s (--load-seconds MODEL=SECONDS says it): a, b", found["notes"])

    def test_footprints_beside_the_record_are_used(self):
        store = FootprintStore(str(self.folder / STORE_NAME), self.fail, lambda: 0.0)
        for model in ("a", "b"):
            store.add(model, f"key of {model}", Measurement({"gpu0": 9000}, "process", first=True, load_seconds=7.0))
        store.close()
        found = self.document("--budget", "gpu0=24GiB")
        self.assertEqual((found["policies"]["memory"]["load_seconds"], found["notes"]), (14.0, []))

    def test_footprint_of_a_replica_counts_for_all_of_them(self):
        store = FootprintStore(str(self.folder / STORE_NAME), self.fail, lambda: 0.0)
        store.add("a.r2", "key", Measurement({"any0": 9000}, "process", first=True, load_seconds=7.0))
        store.close()
        replicas = "models: {a: {cmd: 'engine --port ${PORT}', replicas: 2, gpus: 1}}"
        self.record([(0, "a", 50), (0, "a", 50)])
        found = self.document("--budget", "gpu0=24GiB", config=replicas)
        memory = found["policies"]["memory"]
        self.assertEqual((memory["loads_by_model"], memory["load_seconds"]), ({"a": 1, "a.r2": 1}, 14.0))
        self.assertEqual(found["notes"], [])

    def test_requests_for_other_models_are_left_out(self):
        self.record([*TURNS, (2000, "gone", 1)])
        found = self.document(*SIZES)
        self.assertEqual(found["notes"], ["left out: 1 request for gone, not in the configuration"])

    def test_only_the_last_part_is_played(self):
        self.assertEqual(self.document(*SIZES, "--last", "150s")["policies"]["memory"]["requests"], 2)

    def test_unusable_options_are_explained(self):
        for words, message in (
            (("--memory", "x=1GiB"), "x is not a model of the configuration"),
            (("--memory", "a=much"), "'a=much' cannot be used"),
            (("--budget", "disk=1GiB"), "expected DEVICE=SIZE"),
            (("--last", "soon"), "expected a duration such as 24h"),
            (("--load-seconds", "a=-1"), "cannot be used"),
        ):
            done = self.simulate(*words)
            self.assertNotEqual(done.exit_code, 0)
            self.assertIn(message, done.output)

    def test_record_without_requests_for_these_models_is_an_error(self):
        self.record([(0, "gone", 1)])
        self.assertIn("no request for a model", self.simulate().output)
        self.log.unlink()
        self.assertIn("No such file", self.simulate().output)
