"""The group of all commands."""

import json
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.cli.command_group import COMMANDS
from tests.cli.doubles import invoke

ROOT = Path(__file__).parent.parent.parent


class AppTests(SynchronousTestCase):
    def test_every_command_has_help(self):
        for name in COMMANDS:
            done = invoke(["help", name])
            self.assertEqual(done.exit_code, 0, done.output)
            self.assertIn("Usage:", done.stdout)

    def test_unknown_command_exits_2(self):
        self.assertEqual(invoke(["fly"]).exit_code, 2)
        self.assertEqual(invoke(["help", "fly"]).exit_code, 2)

    def test_mistyped_command_is_answered_with_the_right_one(self):
        for words in (["unlaod"], ["help", "unlaod"]):
            self.assertEqual(invoke(words).stderr, "Error: unknown command unlaod; did you mean unload?\n")
        self.assertEqual(invoke(["xyz"]).stderr, "Error: unknown command xyz; llamaswap help lists them\n")

    def test_each_shell_has_a_completion_script(self):
        for shell in ("bash", "zsh", "fish"):
            self.assertIn("_LLAMASWAP_COMPLETE", invoke(["completion", shell]).stdout)

    def test_every_command_with_a_result_prints_json(self):
        def without(told):
            if told["commands"]:
                return {name for below in told["commands"] for name in without(below)}
            has = any("--json" in option["names"] for option in told["options"])
            return set() if has else {told["name"]}

        told = json.loads(invoke(["help", "--json"]).stdout)
        self.assertEqual({below["name"] for below in told["commands"]}, set(COMMANDS))
        # These two serve until they are stopped, and write a log.
        self.assertEqual(without(told), {"demo", "wol"})

    def test_help_of_a_command_lists_arguments_and_options(self):
        told = json.loads(invoke(["help", "--json", "bench"]).stdout)
        self.assertEqual([one["name"] for one in told["arguments"]], ["MODEL"])
        self.assertIn(["-n", "--requests"], [one["names"] for one in told["options"]])

    def test_completion_script_is_available_as_json(self):
        told = json.loads(invoke(["completion", "fish", "--json"]).stdout)
        self.assertEqual(told["script"] + "\n", invoke(["completion", "fish"]).stdout)

    def run_module(self, *words, **env):
        return subprocess.run(
            [sys.executable, "-m", "llamaswap", *words],
            cwd=ROOT,
            env={"PATH": "/usr/bin:/bin", **env},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def test_module_runs_commands_and_flags(self):
        self.assertIn("version:", self.run_module("-version").stdout)
        self.assertIn("Usage: llamaswap ps", self.run_module("help", "ps").stdout)

    def test_shell_completion_lists_commands(self):
        done = self.run_module(_LLAMASWAP_COMPLETE="bash_complete", COMP_WORDS="llamaswap un", COMP_CWORD="1")
        self.assertEqual(done.stdout, "plain,unload\n")
