"""One key of a configuration's text is changed, and nothing else."""

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config.text_edit import NotEditable, add_item, remove, remove_value, scalar, set_key

PATH = ("routing", "memory")


class SetKeyTests(SynchronousTestCase):
    def becomes(self, before, after, path=PATH):
        self.assertEqual(set_key(before, path, "on"), after)

    def test_missing_section_comes_last(self):
        self.becomes("# mine\nmodels: {}  # none\n", "# mine\nmodels: {}  # none\n\nrouting:\n  memory: on\n")
        self.becomes("", "routing:\n  memory: on\n")
        self.becomes("# only\n", "# only\nrouting:\n  memory: on\n")
        self.becomes("{models: {}}", "{routing: {memory: on}, models: {}}")

    def test_key_is_added_to_a_section(self):
        self.becomes(
            "routing:\n  # first\n  scheduler:\n    use: fifo\nmodels: {}\n",
            "routing:\n  # first\n  memory: on\n  scheduler:\n    use: fifo\nmodels: {}\n",
        )
        self.becomes("routing: {defaultModel: a}\n", "routing: {memory: on, defaultModel: a}\n")
        self.becomes("routing: {}  # later\n", "routing: {memory: on}  # later\n")

    def test_empty_section_is_filled(self):
        self.becomes("routing:\nmodels: {}\n", "routing:\n  memory: on\nmodels: {}\n")
        self.becomes("models: {}\nrouting: # mine", "models: {}\nrouting: # mine\n  memory: on")
        self.becomes("{routing: }", "{routing: {memory: on} }")
        self.becomes("- routing:\n- 1\n", "- routing:\n    memory: on\n- 1\n", (0, *PATH))
        self.becomes("-\n- 1\n", "-\n  memory: on\n- 1\n", (0, "memory"))
        self.becomes("routing: null # no\n", "routing: {memory: on} # no\n")

    def test_several_missing_mappings_are_written_as_a_block(self):
        path = ("models", "a b", "filters", "setParams")
        self.becomes(
            "models:\n    x: {}\n", 'models:\n    "a b":\n      filters:\n        setParams: on\n    x: {}\n', path
        )

    def test_value_is_replaced(self):
        self.becomes("routing:\n  memory: advise # for now\n", "routing:\n  memory: on # for now\n")
        self.becomes('routing: {memory: "off"}\n', "routing: {memory: on}\n")
        self.becomes(
            "routing:\n  memory:\n    mode: off\n    hold: 1s\n",
            "routing:\n  memory:\n    mode: on\n    hold: 1s\n",
            (*PATH, "mode"),
        )

    def test_text_of_several_lines_is_replaced(self):
        self.becomes("routing:\n  memory: >-\n    a\n\nmodels: {}\n", "routing:\n  memory: on\n\nmodels: {}\n")

    def test_key_is_added_behind_an_anchor_and_a_tag(self):
        self.becomes(
            "routing: &r # &s\n  # mine\n  defaultModel: a\nx: *r\n",
            "routing: &r # &s\n  # mine\n  memory: on\n  defaultModel: a\nx: *r\n",
        )
        self.becomes("routing: !!map &r {}\n", "routing: !!map &r {memory: on}\n")
        self.becomes("--- &all\nmodels: {}\n", "--- &all\nmodels: {}\n\nrouting:\n  memory: on\n")

    def test_mapping_is_not_replaced_by_a_value(self):
        for text in ("routing: {memory: {hold: 1s}}", "routing: [1]", "- routing", "routing: {"):
            self.assertRaises(NotEditable, set_key, text, PATH, "on")


TEXT = """\
models:
  a:  # first
    cmd: |
      serve a
    aliases: [one, two]
  b:
    cmd: serve b
    aliases:
      - three
      - four
# tail
ttl: 3
"""


class ListTests(SynchronousTestCase):
    def test_item_is_added_to_each_kind_of_list(self):
        self.assertIn('aliases: [one, two, "x"]', add_item(TEXT, ("models", "a", "aliases"), '"x"'))
        self.assertIn('      - four\n      - "x"\n', add_item(TEXT, ("models", "b", "aliases"), '"x"'))
        self.assertIn('  a:  # first\n    tags: ["x"]\n', add_item(TEXT, ("models", "a", "tags"), '"x"'))

    def test_item_is_added_to_a_list_without_a_value(self):
        for empty in ("aliases:\n", "aliases: null\n", "aliases: []\n"):
            text = TEXT.replace("aliases: [one, two]\n", empty)
            self.assertIn("    aliases: [x]\n", add_item(text, ("models", "a", "aliases"), "x"))

    def test_item_is_removed_and_the_last_one_with_its_list(self):
        after = remove_value(TEXT, ("models", "b", "aliases"), "three")
        self.assertEqual(after, TEXT.replace("      - three\n", ""))
        self.assertIn("aliases: [two]\n", remove_value(TEXT, ("models", "a", "aliases"), "one"))
        after = remove_value(after, ("models", "b", "aliases"), "four")
        self.assertEqual(after, TEXT.replace("    aliases:\n      - three\n      - four\n", ""))

    def test_key_is_removed_with_its_value_and_no_comment_behind_it(self):
        head, _, rest = TEXT.partition("  a:")
        first, _, second = rest.partition("  b:")
        self.assertEqual(remove(TEXT, ("models", "a")), f"{head}  b:{second}")
        self.assertEqual(remove(TEXT, ("models", "b")), f"{head}  a:{first}# tail\nttl: 3\n")

    def test_member_in_braces_is_removed_with_its_comma(self):
        for before, after in (
            ("models: {a: {cmd: x}}", "models: {}"),
            ("models: {a: {cmd: x}, b: y, c: z} # why", "models: {b: y, c: z} # why"),
            ("models: {b: y, a: {cmd: x}}", "models: {b: y}"),
        ):
            self.assertEqual(remove(before, ("models", "a")), after)

    def test_missing_key_and_missing_item_are_not_removed(self):
        self.assertRaises(NotEditable, remove, TEXT, ("models", "c"))
        self.assertRaises(NotEditable, remove_value, TEXT, ("models", "a", "aliases"), "three")

    def test_key_that_is_not_a_plain_word_is_quoted_once(self):
        path = ("models", "hf.co/a: b")
        once = set_key("models:\n  a: x\n", path, "1")
        self.assertEqual(once, 'models:\n  "hf.co/a: b": 1\n  a: x\n')
        self.assertEqual(set_key(once, path, "2"), once.replace("1", "2"))
        self.assertEqual([scalar(word) for word in ("a", "on", "1", "a:", "é")], ["a", '"on"', '"1"', '"a:"', '"é"'])
