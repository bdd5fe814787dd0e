"""Hostile and huge documents."""

from hypothesis import given, settings
from hypothesis import strategies as st

from llamaswap.config import ConfigText, load
from llamaswap.errors import ConfigError
from tests.config.loading import LoadCase

WORDS = st.sampled_from(
    [
        *("models", "owl", "cmd", "macros", "matrix", "sets", "groups", "members", "peers", "profiles", "selectors"),
        *(": ", "\n", "\n  ", "\n    ", "- ", "{", "}", "[", "]", ", ", "${PORT}", "${a}", "${env.X}", "&a ", "*a"),
        *("<<", "~", "1e3", "010", "2024-1-1", "'", '"', "# ", "|", ">", "!!int ", "startPort", "proxy", "http://h:1"),
        *("\x00", "\ud800", "é"),
    ]
)


class Hostile(LoadCase):
    @settings(max_examples=150, deadline=None)
    @given(st.one_of(st.text(max_size=80), st.lists(WORDS, max_size=25).map("".join)))
    def test_any_text_loads_or_is_a_config_error(self, text):
        try:
            load([ConfigText("f", text)], {"X": "y: z"})
        except ConfigError as error:
            self.assertTrue(str(error))

    def test_aliases_that_multiply_are_refused(self):
        lines = ["l0: &l0 [a, a, a, a, a, a, a, a, a, a]"]
        lines += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 12)]
        self.err("\n".join(lines), "aliases", "grow")

    def test_absurd_depth_is_refused(self):
        for text in ("a: " + "[" * 5000, "a: " + "[" * 500 + "]" * 500, "a: " + "{a: " * 5000, "a:\n" + "- " * 5000):
            self.err(text, "nested more than 100 deep", "f0.yaml")

    def test_alias_to_itself_is_refused(self):
        self.err("a: &a [*a]", "*a")
