"""`llamaswap keys`: the configuration's text is changed at one place, and a new key is shown once."""

import json
from hashlib import sha256
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config import ConfigText, load
from llamaswap.config.text_edit import NotEditable, add_item, remove, set_key
from tests.cli.doubles import invoke

MODELS = "# mine\nmodels:\n  small: {cmd: 'srv ${PORT}'} # the small one\n"
FORMS = (
    MODELS,
    MODELS + "apiKeys: # who\n",
    MODELS + "apiKeys: [] # who\n",
    "apiKeys: [plain-1, ] # who\n" + MODELS,
    "apiKeys:\n  - plain-1 # first\n  # between\n  - {key: plain-2, name: two} # second\n\n# after\n" + MODELS,
    "apiKeys:\n- key: plain-1\n  name: one # first\n  scopes:\n  - admin # all\n# after\n" + MODELS,
    "{apiKeys: [plain-1], models: {}}",
    "",
)


class EditTests(SynchronousTestCase):
    def config(self, text):
        return load([ConfigText("c", text)], {}).config

    def test_entry_is_added_and_removed_in_every_form_of_the_list(self):
        item = '{key: "plain-9", name: "nine"}'
        for text in FORMS:
            with self.subTest(text):
                before = self.config(text).api_keys
                more = add_item(text, ("apiKeys",), item)
                found = self.config(more).api_keys
                self.assertEqual((found[:-1], found[-1].name), (before, "nine"))
                for comment in ("# who", "# between", "# after", "# first", "# all", "# the small one"):
                    self.assertEqual(comment in more, comment in text)
                fewer = remove(more, ("apiKeys", len(before)))
                self.assertEqual(self.config(fewer).api_keys, before)
                for index in reversed(range(len(before))):
                    fewer = remove(fewer, ("apiKeys", index))
                    self.assertEqual(self.config(fewer).api_keys, before[:index])

    def test_first_entries_are_removed_too(self):
        for text in FORMS:
            count = len(self.config(text).api_keys)
            for left in reversed(range(count)):
                text = remove(text, ("apiKeys", 0))
                self.assertEqual(len(self.config(text).api_keys), left)

    def test_value_in_an_entry_is_replaced_or_added(self):
        text = set_key(FORMS[5], ("apiKeys", 0, "key"), '"other"')
        text = set_key(text, ("apiKeys", 0, "rpm"), "3")
        (found,) = self.config(text).api_keys
        self.assertEqual((found.value, found.name, found.rpm), ("other", "one", 3))
        self.assertIn("# first", text)

    def test_other_values_are_not_changed(self):
        for text in ("apiKeys: {a: b}", "[1]", "a: ["):
            self.assertRaises(NotEditable, add_item, text, ("apiKeys",), "x")
        self.assertRaises(NotEditable, remove, "apiKeys: []", ("apiKeys", 0))
        self.assertRaises(NotEditable, set_key, "apiKeys: [a]", ("apiKeys", 0, "key"), "x")


class KeysTests(SynchronousTestCase):
    def setUp(self):
        folder = Path(self.mktemp())
        folder.mkdir()
        self.file = folder / "config.yaml"
        self.file.write_text(MODELS)

    def run_it(self, *words, status=0):
        done = invoke(["keys", *words])
        self.assertEqual(done.exit_code, status, done.output)
        return done

    def keys(self):
        return load([ConfigText("c", self.file.read_text())], {}).config.api_keys

    def add(self, name, *options):
        return self.run_it("add", name, str(self.file), *options)

    def test_household_is_made_by_three_commands(self):
        done = self.add("child", "--model", "small", "--budget", "200k/1d", "--max-parallel", "2", "--rpm", "30")
        self.assertIn("no key has the scope admin", done.stderr)
        self.add("phone")
        done = self.add("parent", "--scope", "admin", "--expires", "2099-01-01", "--json")
        child, phone, parent = self.keys()
        self.assertEqual((child.models, child.scopes, child.budget.tokens), (("small",), ("infer",), 200_000))
        self.assertEqual((child.max_parallel, child.rpm, phone.scopes, parent.scopes), (2, 30, ("infer",), ("admin",)))
        self.assertIn("# the small one", self.file.read_text())
        told = json.loads(done.stdout)
        self.assertEqual(parent.digest, sha256(told["key"].encode()).digest())
        self.assertNotIn(told["key"], self.file.read_text())

    def test_new_key_is_alone_on_standard_output(self):
        key = self.add("phone").stdout.strip()
        self.assertTrue(key.startswith("sk-"))
        self.assertEqual(self.keys()[0].digest, sha256(key.encode()).digest())
        plain = self.add("other", "--plain").stdout.strip()
        self.assertEqual(self.keys()[1].plain, plain)

    def test_rotated_key_keeps_its_limits(self):
        self.add("phone", "--rpm", "7")
        (old,) = self.keys()
        new = self.run_it("rotate", "phone", str(self.file), "--expires", "2099-05-01").stdout.strip()
        (found,) = self.keys()
        self.assertEqual((found.digest, found.rpm), (sha256(new.encode()).digest(), 7))
        self.assertNotEqual(found.digest, old.digest)
        self.assertEqual(found.expires, 4081276800.0)

    def test_revoked_key_is_gone(self):
        self.add("phone")
        self.add("tablet")
        self.run_it("revoke", "phone", str(self.file))
        self.assertEqual([key.name for key in self.keys()], ["tablet"])
        self.assertIn("no key is left", self.run_it("revoke", "tablet", str(self.file)).stderr)

    def test_revoking_the_last_key_of_an_administrator_says_what_it_closes(self):
        self.add("me", "--scope", "admin")
        self.add("child")
        self.assertIn("no key has the scope admin", self.run_it("revoke", "me", str(self.file)).stderr)

    def test_list_shows_names_and_limits_and_no_key(self):
        self.file.write_text(MODELS + "apiKeys: [plain-1]\n")
        key = self.add("child", "--model", "small", "--budget", "200k", "--tpm", "20k").stdout.strip()
        shown = self.run_it("list", str(self.file)).stdout
        for word in ("child", "infer", "small", "20000 tokens/min", "200000 tokens/1d", "1 keys have no name"):
            self.assertIn(word, shown)
        for secret in (key, "plain-1", self.keys()[1].digest.hex()):
            self.assertNotIn(secret, shown)
        (row,) = json.loads(self.run_it("list", str(self.file), "--json").stdout)
        self.assertEqual(row["name"], "child")

    def test_mistakes_change_nothing(self):
        self.add("phone")
        text = self.file.read_text()
        for words, said in (
            (("add", "phone"), "there is a key phone already"),
            (("add", "a b"), "cannot be the name"),
            (("add", "x", "--tpm", "many"), "wanted a whole number"),
            (("add", "x", "--expires", "soon"), "wanted a date"),
            (("revoke", "fone"), "key fone is not in the file; the named keys there: phone"),
            (("rotate", "fone"), "key fone is not in the file"),
        ):
            done = self.run_it(words[0], words[1], str(self.file), *words[2:], status=1)
            self.assertIn(said, done.output)
        self.assertEqual(self.file.read_text(), text)
