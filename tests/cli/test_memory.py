"""`memory` and `memory enable`, and the MEMORY column of `ps`."""

import json
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.cli.memory import use_by_model
from llamaswap.config import ConfigText, load
from tests.cli.doubles import Server, invoke
from tests.cli.test_models import detail, server_with


def share(model, mib, source="measured", squeezed=False):
    return {"model": model, "mib": mib, "source": source, "squeezed": squeezed}


def need(ram, *options, source="gguf", **more):
    found = {"ram_mib": ram, "gpus": [list(option) for option in options], "source": source}
    return {**found, "samples": 0, "p95_mib": None, "load_seconds": None, **more}


MEMORY = {
    "mode": "advise",
    "devices": [
        {
            "device": "ram", "name": "RAM", "total_mib": 65536, "free_mib": 32768, "reserve_mib": 2048,
            "foreign_mib": 8192, "foreign_by": "firefox", "models": [share("owl", 500), share("lease:x", 5, "lease")],
        },
        {
            "device": "gpu0", "name": "Test [GPU]", "total_mib": 24576, "free_mib": 1000, "reserve_mib": 512,
            "foreign_mib": 0, "foreign_by": "firefox-gpu",
            "models": [share("owl", 9216), share("hen", 4000, "gguf", True)],
        },
    ],
    "needs": {
        "owl": need(500, [9216], source="learned", samples=12, p95_mib=9716, load_seconds=3.25),
        "cat": need(512, [1024, 2048], [3072]),
    },
    "advice": ["owl and hen would fit together"],
}  # fmt: skip


class ShowTests(SynchronousTestCase):
    def test_devices_needs_and_advice_are_shown(self):
        done = invoke(["memory"], Server().on("GET /api/memory", MEMORY))
        self.assertEqual(done.exit_code, 0, done.output)
        for part in (
            "routing.memory: advise",
            "8.0 GiB (firefox)",
            "Test [GPU]",
            "owl 500 MiB, lease:x 5 MiB",
            "owl 9.0 GiB, hen ~3.9 GiB (squeezed)",
            "1.0 GiB + 2.0 GiB",
            "learned",
            "9.5 GiB",
            "3.2s",
            "would fit together",
        ):
            self.assertIn(part, done.stdout)

    def test_program_that_uses_nothing_beside_a_budget_is_not_named(self):
        self.assertNotIn("firefox-gpu", invoke(["memory"], Server().on("GET /api/memory", MEMORY)).stdout)

    def test_json_is_the_servers_document(self):
        done = invoke(["memory", "--json"], Server().on("GET /api/memory", MEMORY))
        self.assertEqual(json.loads(done.stdout), MEMORY)

    def test_unknown_memory_is_said(self):
        nothing = {"mode": "off", "devices": [], "needs": {}, "advice": []}
        self.assertIn("no device is measured", invoke(["memory"], Server().on("GET /api/memory", nothing)).stdout)

    def test_use_is_the_sum_of_the_devices_and_an_estimate_begins_with_a_tilde(self):
        found = {"owl": "9.5 GiB", "lease:x": "5 MiB", "hen": "~3.9 GiB", "cat": "~3.5 GiB"}
        self.assertEqual(use_by_model(MEMORY), found)
        self.assertEqual(use_by_model({}), {})


class PsTests(SynchronousTestCase):
    def test_ps_shows_the_memory_of_each_model(self):
        server = server_with(detail("owl"), detail("new")).on("GET /api/memory", MEMORY)
        shown = invoke(["ps"], server).stdout
        self.assertIn("MEMORY", shown)
        self.assertIn("9.5 GiB", shown)
        found = json.loads(invoke(["ps", "--json"], server).stdout)
        self.assertEqual([row.get("memory") for row in found["models"]], ["9.5 GiB", None])

    def test_column_is_absent_if_nothing_is_known(self):
        for answer in ((404, {}), {"mode": "off", "devices": [], "needs": {}, "advice": []}):
            self.assertNotIn("MEMORY", invoke(["ps"], server_with(detail("owl")).on("GET /api/memory", answer)).stdout)


class EnableTests(SynchronousTestCase):
    def file(self, text):
        path = Path(self.mktemp())
        path.mkdir()
        (path / "config.yaml").write_text(text)
        return path / "config.yaml"

    def enabled(self, text, *words):
        file = self.file(text)
        done = invoke(["memory", "enable", str(file), *words])
        return done, file

    def test_mode_is_set_and_comments_stay(self):
        before = "# my models\nmodels: {owl: {cmd: 'srv ${PORT}'}} # one\nrouting:\n  # rules\n  defaultModel: owl\n"
        done, file = self.enabled(before)
        self.assertEqual(done.exit_code, 0, done.output)
        after = file.read_text()
        for comment in ("# my models", "# one", "# rules"):
            self.assertIn(comment, after)
        self.assertEqual(load([ConfigText("a", after)], {}).config.routing.memory.mode, "on")
        self.assertIn("+  memory: on", done.stdout)
        self.assertEqual(file.with_name("config.yaml.bak").read_text(), before)

    def test_other_settings_of_memory_stay(self):
        for text in ("routing: {memory: {hold: 1m, reserve: {ram: 1GiB}}}", "routing: {memory: {mode: off, hold: 1m}}"):
            _, file = self.enabled(text + "\nmodels: {}\n")
            found = load([ConfigText("a", file.read_text())], {}).config.routing.memory
            self.assertEqual((found.mode, found.hold), ("on", 60.0))

    def test_enabled_file_is_not_written_again(self):
        done, file = self.enabled("routing: {memory: on}\nmodels: {}\n")
        self.assertIn("on already", done.stdout)
        self.assertFalse(file.with_name("config.yaml.bak").exists())

    def test_dry_run_writes_nothing(self):
        done, file = self.enabled("models: {}\n", "--dry-run", "--json")
        self.assertEqual(file.read_text(), "models: {}\n")
        told = json.loads(done.stdout)
        self.assertEqual((told["written"], told["diff"][-2:]), (False, ["+routing:", "+  memory: on"]))

    def test_invalid_file_is_not_changed(self):
        done, file = self.enabled("models: {owl: {cmd: [1]}}\n")
        self.assertEqual((done.exit_code, file.read_text()), (1, "models: {owl: {cmd: [1]}}\n"))
        self.assertIn("is not changed", done.stderr)
