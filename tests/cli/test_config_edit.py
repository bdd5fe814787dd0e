"""`rm`, and entries that commands add to a configuration."""

import json
from pathlib import Path, PurePath

from click import ClickException
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.cli.config_edit import add_model
from llamaswap.config import ConfigText, load
from llamaswap.discover.config_writer import FoundModel
from tests.cli.doubles import invoke

TEXT = "# mine\nmodels:\n  owl: {cmd: 'srv ${PORT}'} # first\n  cat: {cmd: 'srv ${PORT}'} # second\n"


class EditTests(SynchronousTestCase):
    def file(self, text=TEXT):
        path = Path(self.mktemp())
        path.write_text(text)
        return path

    def models(self, path):
        return load([ConfigText("c", path.read_text())], {}).config.models

    def test_model_is_removed_and_comments_stay(self):
        path = self.file()
        done = invoke(["rm", "owl", "--config", str(path)])
        self.assertEqual(done.exit_code, 0, done.output)
        self.assertEqual(list(self.models(path)), ["cat"])
        self.assertIn("# mine", path.read_text())
        self.assertEqual(Path(f"{path}.bak").read_text(), TEXT)
        both = self.file()
        self.assertEqual(
            json.loads(invoke(["rm", "owl", "cat", "--json", "--config", str(both)]).stdout)["removed"][1], "cat"
        )
        self.assertEqual(dict(self.models(both)), {})

    def test_unknown_or_needed_model_is_not_removed(self):
        text = TEXT + "selectors: {s: {strategy: pin, targets: [owl]}}\n"
        path = self.file(text)
        for name, reason in (("dog", "the models there: owl, cat"), ("owl", "could not be used")):
            done = invoke(["rm", name, "--config", str(path)])
            self.assertEqual((done.exit_code, path.read_text()), (1, text))
            self.assertIn(reason, done.stderr)

    def test_model_is_added_with_its_command(self):
        for text in (TEXT, "", "models: {}\n", "models:\n", "models: {owl: {cmd: 'srv ${PORT}'}}\n"):
            path = self.file(text)
            before = list(self.models(path))
            add_model(path, FoundModel("new", ("srv", "-m", "/a b/m.gguf"), files=(PurePath("x"),)), "test")
            added = self.models(path)
            self.assertEqual(sorted(added), sorted([*before, "new"]))
            self.assertIn('-m "/a b/m.gguf"', added["new"].cmd)
            self.assertRegex(added["new"].cmd, "--port [0-9]+")

    def test_added_model_is_written_as_in_the_documentation(self):
        for before, head in (("", "models:\n"), ("models:\n", "models:\n"), ("ttl: 1\n", "ttl: 1\n\nmodels:\n")):
            path = self.file(before)
            add_model(path, FoundModel("new", ("srv",)), "test")
            self.assertEqual(path.read_text(), head + '  new:\n    cmd: "srv --port ${PORT}"\n')

    def test_model_with_a_known_name_is_not_added(self):
        path = self.file()
        with self.assertRaises(ClickException) as caught:
            add_model(path, FoundModel("owl", ("srv",)), "test")
        self.assertIn("there is a model owl already", str(caught.exception))
        self.assertEqual(path.read_text(), TEXT)
