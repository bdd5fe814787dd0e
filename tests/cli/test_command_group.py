"""The group of all commands."""

import json
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.cli import serve
from llamaswap.cli.command_group import COMMANDS
from llamaswap.demo import demo_config
from tests.cli.doubles import Server, chat, invoke
from tests.cli.test_models import detail

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

    def test_demo_to_be_edited_leaves_an_existing_configuration_alone(self):
        config = Path(self.mktemp())
        config.write_text("models: {}\n", encoding="utf-8")
        self.patch(serve, "DEFAULT_CONFIG", str(config))
        done = invoke(["demo", "--allow-config-edit"])
        self.assertEqual((done.exit_code, config.read_text(encoding="utf-8")), (1, "models: {}\n"))
        self.assertIn("exists here", done.stderr)

    def test_demo_to_be_edited_goes_on_with_its_own_configuration(self):
        config = Path(self.mktemp())
        config.write_text(demo_config() + "  mine: {cmd: sleep}\n", encoding="utf-8")
        started = []
        self.patch(serve, "DEFAULT_CONFIG", str(config))
        self.patch(serve.Twist, "main", started.append)
        self.assertEqual(invoke(["demo", "--allow-config-edit"]).exit_code, 0)
        self.assertIn("--allow-config-edit", started[0])
        self.assertIn("mine:", config.read_text(encoding="utf-8"))

    def test_mistyped_command_is_answered_with_the_right_one(self):
        for words in (["unlaod"], ["help", "unlaod"]):
            self.assertEqual(invoke(words).stderr, "Error: unknown command unlaod; did you mean unload?\n")
        self.assertEqual(invoke(["xyz"]).stderr, "Error: unknown command xyz; llamaswap help lists them\n")

    def test_word_for_what_another_command_or_page_shows_is_answered_with_that(self):
        for word, part in (("usage", "/api/usage"), ("doctor", "llamaswap check"), ("why", "/api/plan?model="),
                           ("version", "llamaswap -version")):  # fmt: skip
            done = invoke([word])
            self.assertEqual(done.exit_code, 2)
            self.assertIn(f"unknown command {word}; ", done.stderr)
            self.assertIn(part, done.stderr)

    def test_names_of_other_programs_are_accepted(self):
        server = Server().on("GET /running", {"running": []}).on("GET /api/queue", {"queue": []})
        server.on("GET /v1/models", {"data": [{"id": "owl"}]})
        server.on("GET /api/models/owl", detail("owl", "stopped")).on("POST /api/models/unload/owl", b"OK")
        server.on("POST /v1/chat/completions", chat("hi"))
        for words, part in ((["ls"], "owl"), (["list"], "owl"), (["status"], "nothing is loaded")):
            self.assertIn(part, invoke(words, server).stdout)
        self.assertEqual(invoke(["stop", "owl"], server).stdout, "unloaded owl\n")
        self.assertEqual(invoke(["chat", "owl", "hello"], server).stdout, "hi\n")
        self.assertIn(" load [OPTIONS] MODEL", invoke(["help", "start"]).stdout)
        self.assertIn("ls for ps --all", invoke(["help"]).stdout)

    def test_stop_without_a_model_does_not_unload_all(self):
        server = Server().on("POST /api/models/unload", {"msg": "ok"})
        done = invoke(["stop"], server)
        self.assertEqual((done.exit_code, server.asked), (2, []))
        self.assertIn("llamaswap unload unloads all", done.stderr)

    def test_error_with_json_is_a_document(self):
        server = Server().on("GET /running", (500, {"error": "broken"}))
        for words, status, code in (
            (["ps", "--json"], 500, 1),
            (["load", "--json", "x"], 404, 1),
            (["check", "--json", "--nope"], None, 2),
            (["service", "install", "--json", "--nope"], None, 2),
            (["fly", "--json"], None, 2),
            (["keys", "list", "/no/file", "--json"], None, 1),
        ):
            done = invoke(words, server)
            self.assertEqual((done.exit_code, done.stderr), (code, ""), words)
            error = json.loads(done.stdout)["error"]
            self.assertEqual((error["status"], bool(error["message"])), (status, True), words)

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
        # These serve until they are stopped, and write a log.
        self.assertEqual(without(told), {"agent", "demo", "serve", "wol"})

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

    def test_service_starts_without_importing_commands(self):
        code = (
            "import sys, llamaswap.tap, llamaswap.app.service; from llamaswap.cli.flags import main\n"
            "print([name for name in sys.modules if name.split('.')[0] in ('click', 'rich', 'curses')])\n"
            "print(sorted(name for name in sys.modules if name.startswith('llamaswap.cli')))"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
        self.assertEqual(done.stdout, "[]\n['llamaswap.cli', 'llamaswap.cli.flags']\n", done.stderr)

    def test_shell_completion_lists_commands(self):
        done = self.run_module(_LLAMASWAP_COMPLETE="bash_complete", COMP_WORDS="llamaswap un", COMP_CWORD="1")
        self.assertEqual(done.stdout, "plain,unload\n")
