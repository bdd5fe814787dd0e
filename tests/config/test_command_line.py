"""Commands: comments, quoting."""

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config.command_line import EmptyCommand, render_stop, split, strip_comments
from tests.config.loading import LoadCase


class SplitTests(SynchronousTestCase):
    def test_block_with_comments_quotes_and_continued_lines(self):
        """config T071"""
        text = 'srv --a "x y" \\\n# note \'quote\n  --b \'p q\'\n--c=\\$HOME --d "\\$HOME" \'#x\' # tail\n\n--e ""\n'
        want = ["srv", "--a", "x y", "--b", "p q", "--c=$HOME", "--d", "$HOME", "#x", "#", "tail", "--e", ""]
        self.assertEqual(split(text), want)

    def test_posix_quoting(self):
        """config T073"""
        for text, want in (
            ("a\\ b", ["a b"]),
            ("f\\oo", ["foo"]),
            (r'"b\ar\"c\\d\$e"', [r'b\ar"c\d$e']),
            (r"'b\ar'", [r"b\ar"]),
            ("x='1 2'y", ["x=1 2y"]),
            ('a "open b', ["a", "open b"]),
            ("a '' b", ["a", "", "b"]),
            ("a \\", ["a"]),
            ("'a'\"b\"c", ["abc"]),
        ):
            self.assertEqual(split(text), want, text)

    def test_command_of_comments_is_empty(self):
        """config T076"""
        for text in ("", "  \n\t", "# a\n  # b"):
            self.assertIn("empty command", str(self.assertRaises(EmptyCommand, split, text)))

    def test_comment_lines_are_removed(self):
        """config T079"""
        for text, want in (("a\n\nb", "a\n\nb"), ("   # i\na", "a"), ("# 1\n# 2", "")):
            self.assertEqual(strip_comments(text), want)

    def test_pid_is_inserted_into_a_stop_command(self):
        self.assertEqual(render_stop("kill -9 ${PID}", 12), ["kill", "-9", "12"])


class InFiles(LoadCase):
    def test_folded_text_has_one_line(self):
        """config T072"""
        text = "models:\n  owl:\n    cmd: >\n      {}\n      # mid\n      --x\n"
        model = self.ok(text.format("srv -p ${PORT}")).models["owl"]
        self.assertEqual(split(model.cmd), ["srv", "-p", "5800", "#", "mid", "--x"])
        self.err(text.format("# top ${PORT}"), "owl", "cmd is missing", "proxy")
