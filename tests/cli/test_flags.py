"""The command line of the Go program."""

import io
import json
import os
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from twisted.application.twist._twist import Twist
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.cli.flags import FlagError, HelpRequested, main, parse


class ParsingTests(SynchronousTestCase):
    def test_flag_has_one_or_two_dashes_with_space_or_equals(self):
        """config T147"""
        for words in (["-config", "f"], ["--config", "f"], ["-config=f"], ["--config=f"]):
            self.assertEqual(parse(words).values, {"config": "f"})

    def test_switch_takes_its_value_only_after_equals(self):
        self.assertEqual(parse(["-watch-config=false"]).switches, {"watch-config": False})
        self.assertEqual(parse(["-watch-config"]).switches, {"watch-config": True})
        for word in ("1", "t", "T", "TRUE", "true", "True"):
            self.assertTrue(parse([f"-watch-config={word}"]).switches["watch-config"])

    def test_parsing_stops_at_the_first_word_that_is_not_a_flag(self):
        """config T147"""
        flags = parse(["-watch-config", "true", "-config", "f"])
        self.assertEqual((flags.values, flags.switches), ({}, {"watch-config": True}))
        self.assertEqual(parse(["-listen", ":1", "--", "-config", "f"]).values, {"listen": ":1"})

    def test_value_flag_takes_the_next_word_even_with_a_dash(self):
        self.assertEqual(parse(["-config", "-listen"]).values, {"config": "-listen"})

    def test_invalid_words_are_named(self):
        for words, part in (
            (["-nope"], "-nope"),
            (["-config"], "-config"),
            (["-watch-config=maybe"], "maybe"),
            (["---x"], "---x"),
        ):
            with self.assertRaises(FlagError) as caught:
                parse(words)
            self.assertIn(part, str(caught.exception))

    def test_help_has_three_spellings(self):
        for word in ("-h", "-help", "--help"):
            self.assertRaises(HelpRequested, parse, [word])


class ExitTests(SynchronousTestCase):
    def run_main(self, *words):
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            stop = self.assertRaises(SystemExit, main, list(words))
        return stop.code, out.getvalue(), err.getvalue()

    def test_version_is_printed_on_stdout_and_exits_0(self):
        code, out, _ = self.run_main("-version", "-config", "/does/not/exist")
        self.assertEqual(code, 0)
        self.assertIn("version:", out)

    def test_unknown_flag_exits_2_with_the_usage(self):
        code, _, err = self.run_main("-nope")
        self.assertEqual(code, 2)
        self.assertIn("-watch-config", err)

    def test_option_of_commands_before_the_command_is_told_its_place(self):
        for words in (["--key", "K", "ps"], ["--url", "http://h", "ps"], ["-url=http://h", "ps"], ["--json", "ps"]):
            code, _, err = self.run_main(*words)
            name = words[0].lstrip("-").partition("=")[0]
            self.assertEqual(code, 2)
            self.assertIn(f"put --{name} after the command", err)
            self.assertNotIn("-watch-config", err)

    def test_help_exits_0(self):
        self.assertEqual(self.run_main("-h")[0], 0)

    def test_missing_configuration_is_explained_and_exits_1(self):
        """config T141"""
        folder = self.mktemp()
        os.makedirs(folder)
        back = os.getcwd()
        self.addCleanup(os.chdir, back)
        os.chdir(folder)
        code, _, err = self.run_main()
        self.assertEqual(code, 1)
        for part in ("-config", "-config-dir", "llamaswap init"):
            self.assertIn(part, err)

    def test_validate_checks_the_configuration_and_starts_nothing(self):
        folder = Path(self.mktemp())
        folder.mkdir()
        good, bad, more = folder / "good.yaml", folder / "bad.yaml", folder / "more"
        more.mkdir()
        good.write_text("models: {a: {cmd: 'true --port ${PORT}'}}\n")
        bad.write_text("models:\n  a:\n    cmd: true ${nope}\n")
        (more / "b.yaml").write_text("models: {b: {cmd: 'true ${other}'}}\n")
        self.assertEqual(self.run_main("-config", str(good), "-validate")[0], 0)
        code, _, err = self.run_main("-validate", "-config", str(bad))
        self.assertEqual(code, 1)
        self.assertIn("nope", err)
        self.assertIn("bad.yaml:3: ", err)
        code, _, err = self.run_main("-config", str(more), "-validate")
        self.assertEqual(code, 1)
        self.assertIn("use -config-dir", err)
        code, _, err = self.run_main("-config-dir", str(more), "-config", str(more), "-validate")
        self.assertEqual(code, 1)
        for words in (("-config-dir", str(more)), ("-config", str(good), "-config-dir", str(more))):
            code, _, err = self.run_main("-validate", *words)
            self.assertEqual(code, 1)
            self.assertIn("other", err)

    def twist_words(self, *words):
        found = []
        self.patch(Twist, "main", found.extend)
        main(list(words))
        return found

    def test_configuration_edits_are_allowed_as_with_twist(self):
        words = self.twist_words("-config", "c.yaml", "-allow-config-edit", "-watch-config")
        self.assertEqual(words, ["twist", "llamaswap", "--config", "c.yaml", "--allow-config-edit", "--watch-config"])
        self.assertNotIn("--allow-config-edit", self.twist_words("-config", "c.yaml", "-allow-config-edit=false"))

    def test_serve_and_start_are_the_flags_alone(self):
        for word in ("serve", "start"):
            words = self.twist_words(word, "-config", "c.yaml", "-listen", ":1")
            self.assertEqual(words, ["twist", "llamaswap", "--config", "c.yaml", "--listen", ":1"])

    def test_start_with_an_option_of_load_loads_a_model_instead_of_starting_the_server(self):
        code, out, _ = self.run_main("start", "--json", "owl", "--url", "unix:/nowhere/llamaswap.sock")
        self.assertEqual(code, 1)
        self.assertIn("nowhere", json.loads(out)["error"]["message"])

    def test_first_word_that_is_not_a_flag_is_a_command(self):
        code, out, _ = self.run_main("help", "ps")
        self.assertEqual((code, "Usage: llamaswap ps" in out), (0, True))
