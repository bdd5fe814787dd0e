"""`check`: validation, the expanded output and the comparison of configurations."""

import json
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.cli.effective import plain, text
from llamaswap.config import ConfigText, diff, files, load
from tests.cli.doubles import Server, invoke

EXAMPLE = Path(__file__).parent.parent.parent / "config" / "example.yaml"
GOOD = "models:\n  owl:\n    cmd: serve --port ${PORT}\n"


class CheckTests(SynchronousTestCase):
    def file(self, content):
        path = Path(self.mktemp())
        path.write_text(content, encoding="utf-8")
        return str(path)

    def test_valid_file_exits_0(self):
        done = invoke(["check", self.file(GOOD)])
        self.assertEqual((done.exit_code, "1 model," in done.stdout), (0, True))

    def test_peer_that_is_the_server_itself_is_an_error(self):
        for host, port in (("127.0.0.1", 8080), ("localhost", 9000), ("[::1]", 8080)):
            path = self.file(f'peers:\n  me: {{proxy: "http://{host}:{port}", models: [loop]}}\n')
            done = invoke(["check", path, "--listen", f":{port}"])
            self.assertEqual(done.exit_code, 1)
            self.assertIn(f"{path}:2: peers.me.proxy: peer me is this server itself", done.stderr)
            self.assertEqual(invoke(["check", path, "--listen", "127.0.0.1:1"]).exit_code, 0)

    def test_check_without_a_name_checks_the_default_file(self):
        told = json.loads(invoke(["help", "check", "--json"]).stdout)
        self.assertEqual([(one["name"], one["required"]) for one in told["arguments"]], [("CONFIG", False)])
        done = invoke(["check"])
        self.assertIn("config.yaml: cannot be read", done.stderr)

    def test_all_errors_are_reported_at_once(self):
        done = invoke(
            ["check", self.file("nonsense: 1\nmodels:\n  owl:\n    ttl: -5\n  cat:\n    cmd: a\n    ttl: x\n")]
        )
        self.assertEqual(done.exit_code, 1)
        for part in ("owl", "cat"):
            self.assertIn(part, done.stderr)

    def test_each_problem_of_every_stage_is_reported_once(self):
        text = """
            startPort: zero
            logToStdout: nowhere
            macros: {PORT: 3}
            nonsense: 1
            models:
              owl: 5
              cat: {cmd: "a ${nope}", ttl: soon, proxy: "http://h"}
              dog: {cmd: "a ${PORT}", proxy: "http://[bad"}
            selectors: {s: {strategy: pin, targets: [owl, zebra]}}
            profiles: {p: {pins: {x: ghost}}}
            groups: {g: {members: [dog, dog]}}
        """
        done = invoke(["check", "--json", self.file(text)])
        found = json.loads(done.stdout)
        words = [
            "macro 'PORT'",
            "startPort",
            "owl must be",
            "nope",
            "logToStdout",
            "ttl",
            "[bad",
            "twice",
            "zebra",
            "ghost",
        ]
        messages = [one["message"] for one in found["errors"]]
        for word in words:
            self.assertEqual(sum(word in message for message in messages), 1, (word, messages))
        self.assertEqual(len(messages), len(words), messages)
        self.assertIn("nonsense", str(found["warnings"]))

    def test_syntax_errors_of_each_file_are_reported(self):
        folder = Path(self.mktemp())
        folder.mkdir()
        (folder / "a.yaml").write_text("models: [")
        (folder / "b.yaml").write_text("models: {")
        found = json.loads(invoke(["check", "--json", str(folder)]).stdout)
        self.assertEqual([Path(one["file"]).name for one in found["errors"]], ["a.yaml", "b.yaml"])

    def test_warning_is_an_error_with_strict_only(self):
        path = self.file(GOOD + "nonsense: 1\n")
        self.assertEqual(invoke(["check", path]).exit_code, 0)
        done = invoke(["check", "--strict", path])
        self.assertEqual((done.exit_code, "nonsense" in done.stderr), (1, True))

    def test_folder_is_merged(self):
        folder = Path(self.mktemp())
        folder.mkdir()
        (folder / "a.yaml").write_text(GOOD)
        (folder / "b.yml").write_text(GOOD.replace("owl", "cat"))
        self.assertIn("2 models", invoke(["check", str(folder)]).stdout)

    def test_json_has_file_and_line(self):
        path = self.file(GOOD + "    ttl: -5\n")
        found = json.loads(invoke(["check", "--json", path]).stdout)
        self.assertEqual((found["valid"], found["errors"][0]["file"], found["errors"][0]["line"]), (False, path, 4))

    def test_diff_lists_what_a_reload_restarts(self):
        new = "models:\n  owl:\n    cmd: serve --port ${PORT} --more\n  new:\n    cmd: x --port ${PORT}\n"
        done = invoke(["check", self.file(GOOD), "--diff", self.file(new), "--json"])
        found = json.loads(done.stdout)["changes"]
        self.assertEqual((found["restart"], found["add"], found["remove"]), (["owl"], ["new"], []))

    def test_changed_settings_have_the_names_of_the_file(self):
        path = self.file(GOOD + "healthCheckTimeout: 60\nlogRequests: true\n")
        found = json.loads(invoke(["check", self.file(GOOD), "--diff", path, "--json"]).stdout)["changes"]
        self.assertEqual(found["settings"], ["healthCheckTimeout", "logRequests"])

    def test_file_with_warnings_is_not_called_nothing_wrong(self):
        done = invoke(["check", self.file(GOOD + "nonsense: 1\n")])
        self.assertIn("1 model, 1 warning; it loads", done.stdout)
        self.assertNotIn("nothing wrong", done.stdout)

    def test_expired_key_is_a_warning(self):
        key = "apiKeys: [{key: sk-1, name: old, expires: 2020-01-01}, {key: sk-2, name: new, expires: 2999-01-01}]\n"
        done = invoke(["check", self.file(GOOD + key), "--json"])
        (warning,) = json.loads(done.stdout)["warnings"]
        self.assertIn("old has expired at 2020-01-01", warning["message"])
        self.assertIn("keys rotate old", warning["hint"])
        self.assertNotIn("sk-1", done.output)
        self.assertEqual(invoke(["check", "--strict", self.file(GOOD + key)]).exit_code, 1)

    def test_missing_program_is_noted_and_not_an_error(self):
        path = self.file(GOOD + "  cat: {cmd: 'serve --port ${PORT}'}\n  dog: {cmd: 'sh -c ${PORT}'}\n")
        done = invoke(["check", "--strict", path], env={"PATH": "/usr/bin:/bin"})
        self.assertEqual(done.exit_code, 0, done.output)
        self.assertIn("note     serve is not on this machine", done.stderr)
        self.assertIn("(needed by cat, owl)", done.stderr)
        self.assertNotIn("nothing wrong", done.stdout)
        found = json.loads(invoke(["check", "--json", path], env={"PATH": "/usr/bin:/bin"}).stdout)
        self.assertEqual((found["valid"], found["missing_programs"]), (True, {"serve": ["cat", "owl"]}))

    def test_missing_file_of_a_model_is_noted_and_not_an_error(self):
        there = self.file("")
        path = self.file(
            "models:\n"
            f"  owl: {{cmd: 'sh -m {there} --mmproj=/no/p.gguf --port ${{PORT}}'}}\n"
            "  cat: {cmd: 'sh -m no.gguf --port ${PORT}', replicas: 2}\n"
            "  far: {cmd: 'docker run -p ${PORT}:80 -m /no/inside.gguf', cmdStop: docker stop far}\n"
            "  hub: {cmd: 'sh -m pack.module --model org/name --port ${PORT}'}\n"
        )
        done = invoke(["check", "--strict", path])
        self.assertEqual(done.exit_code, 0, done.output)
        self.assertIn("note     no.gguf does not exist (needed by cat)", done.stderr)
        found = json.loads(invoke(["check", "--json", path]).stdout)
        self.assertEqual(found["missing_files"], {"no.gguf": ["cat"], "/no/p.gguf": ["owl"]})

    def test_file_that_only_other_hosts_need_is_not_noted(self):
        path = self.file(
            "hosts: {}\nmodels:\n"
            "  owl: {cmd: 'sh -m /no/owl.gguf --port ${PORT}', place: nas}\n"
            "  cat: {cmd: 'sh -m /no/cat.gguf --port ${PORT}', place: [nas, here]}\n"
        )
        done = invoke(["check", path])
        self.assertNotIn("owl.gguf", done.stderr)
        self.assertIn("/no/cat.gguf does not exist (needed by cat)", done.stderr)

    def test_running_llamaswap_is_asked_what_other_hosts_lack(self):
        path = self.file("hosts: {}\nmodels: {owl: {cmd: 'sh --port ${PORT}'}}\n")
        lacking = ["nas lacks /m/owl.gguf (needed by owl)", "here lacks /m/cat.gguf (needed by cat)"]
        done = invoke(["check", path], Server().on("GET /api/hosts", {"findings": lacking}))
        self.assertEqual(done.exit_code, 0)
        self.assertIn(f"note     {lacking[0]}", done.stderr)
        self.assertNotIn("here lacks", done.stderr)
        done = invoke(["check", path], Server().on("GET /api/hosts", OSError("refused")))
        self.assertEqual(done.exit_code, 0)
        self.assertIn("known while llamaswap runs", done.stderr)

    def test_folder_that_cannot_be_used_is_noted_and_not_an_error(self):
        file, shared = Path(self.mktemp()), Path(self.mktemp())
        dangling = Path(self.mktemp())
        dangling.symlink_to("missing")
        self.assertIn("is not a directory", files.folder_problem(str(dangling / "logs")))
        file.write_text("")
        shared.mkdir()
        shared.chmod(0o777)
        keys = f"logFiles: {{folder: {file}/logs}}\ncaptures: {{path: {shared}}}\n"
        path = self.file(GOOD + keys)
        done = invoke(["check", "--strict", path])
        self.assertEqual(done.exit_code, 0, done.output)
        logs, captures = done.stderr.splitlines()[-2:]
        self.assertTrue(logs.startswith(f"note     {path}:4: logFiles.folder: "), logs)
        self.assertIn(f"{file.absolute()} is not a directory", logs)
        self.assertTrue(captures.startswith(f"note     {path}:5: captures.path: "), captures)
        self.assertIn(f"{shared.absolute()} can be written by other users", captures)
        self.assertNotIn("nothing wrong", done.stdout)
        found = json.loads(invoke(["check", "--json", self.file(GOOD + keys)]).stdout)
        self.assertEqual([one["line"] for one in found["unusable_folders"]], [4, 5])

    def test_missing_folder_that_can_be_created_is_not_noted(self):
        new = Path(self.mktemp()) / "a" / "b"
        done = invoke(["check", self.file(GOOD + f"logFiles: {{folder: {new}}}\ncaptures: {{path: {new}}}\n")])
        self.assertNotIn("folder", done.stderr)
        self.assertFalse(new.exists())

    def test_replicas_are_one_model(self):
        content = "models: {owl: {cmd: 'x ${PORT}', replicas: 3}}\n"
        self.assertIn(": 1 model,", invoke(["check", self.file(content)]).stdout)

    def test_diff_without_changes_is_reported(self):
        self.assertIn("change nothing", invoke(["check", self.file(GOOD), "--diff", self.file(GOOD)]).stdout)

    def test_effective_output_has_expanded_macros(self):
        done = invoke(["check", "--effective", self.file("macros: {m: hello}\nmodels: {owl: {cmd: 'x ${m} ${PORT}'}}")])
        self.assertIn("x hello 5800", done.stdout)


class EffectiveTests(SynchronousTestCase):
    def test_effective_output_loads_with_the_same_meaning(self):
        environ = {"LLAMASWAP_API_KEY": "abcdef", "HOME": "/root"}
        first = load([ConfigText("a", EXAMPLE.read_text(encoding="utf-8"))], environ).config
        second = load([ConfigText("b", text(first))], environ).config
        plan = diff(first, second)
        # chat has replicas and therefore ${PORT}; only the text of its command differs, not its words.
        self.assertEqual((plan.added, plan.removed, plan.retuned), ((), (), ("chat",)))
        self.assertEqual(plan.settings - {"api_keys", "peers"}, frozenset())
        self.assertEqual(plain(second), plain(first))

    def test_secrets_are_masked_everywhere(self):
        content = """
apiKeys: [hunter2hunter2]
models:
  owl:
    cmd: serve --api-key topsecret1 --max-tokens 5 --port ${PORT} --seen hunter2hunter2
    env: [HF_TOKEN=topsecret2, PLAIN=ok]
    metadata: {note: hunter2hunter2, password: topsecret3}
peers:
  box: {proxy: http://box, apiKey: topsecret4, models: [far]}
"""
        shown = text(load([ConfigText("a", content)], {}).config)
        for secret in ("hunter2hunter2", "topsecret1", "topsecret2", "topsecret3", "topsecret4"):
            self.assertNotIn(secret, shown)
        for part in ("--max-tokens 5", "PLAIN=ok"):
            self.assertIn(part, shown)

    def test_words_with_blanks_and_quotes_stay_the_same_words(self):
        content = "models:\n  owl:\n    cmd: |\n      serve --port ${PORT} --say 'a \"b\" c\\d $x' ''\n"
        first = load([ConfigText("a", content)], {}).config
        from llamaswap.config.command_line import split

        again = load([ConfigText("b", text(first))], {}).config
        self.assertEqual(split(again.models["owl"].cmd), split(first.models["owl"].cmd))
