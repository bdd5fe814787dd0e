"""One key of a configuration's text is changed, and nothing else."""

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.cli.config_edit import NotEditable, set_key

PATH = ("routing", "memory")


class SetKeyTests(SynchronousTestCase):
    def becomes(self, before, after, path=PATH):
        self.assertEqual(set_key(before, path, "on"), after)

    def test_missing_section_comes_last(self):
        self.becomes("# mine\nmodels: {}  # none\n", "# mine\nmodels: {}  # none\n\nrouting: {memory: on}\n")
        self.becomes("", "routing: {memory: on}\n")
        self.becomes("# only\n", "# only\nrouting: {memory: on}\n")
        self.becomes("{models: {}}", "{routing: {memory: on}, models: {}}")

    def test_key_is_added_to_a_section(self):
        self.becomes(
            "routing:\n  # first\n  scheduler:\n    use: fifo\nmodels: {}\n",
            "routing:\n  # first\n  memory: on\n  scheduler:\n    use: fifo\nmodels: {}\n",
        )
        self.becomes("routing: {defaultModel: a}\n", "routing: {memory: on, defaultModel: a}\n")
        self.becomes("routing: {}  # later\n", "routing: {memory: on}  # later\n")

    def test_empty_section_is_filled(self):
        self.becomes("routing:\nmodels: {}\n", "routing: {memory: on}\nmodels: {}\n")
        self.becomes("routing: null # no\n", "routing: {memory: on} # no\n")

    def test_value_is_replaced(self):
        self.becomes("routing:\n  memory: advise # for now\n", "routing:\n  memory: on # for now\n")
        self.becomes('routing: {memory: "off"}\n', "routing: {memory: on}\n")
        self.becomes(
            "routing:\n  memory:\n    mode: off\n    hold: 1s\n",
            "routing:\n  memory:\n    mode: on\n    hold: 1s\n",
            (*PATH, "mode"),
        )

    def test_mapping_is_not_replaced_by_a_value(self):
        for text in ("routing: {memory: {hold: 1s}}", "routing: [1]", "- routing", "routing: {"):
            self.assertRaises(NotEditable, set_key, text, PATH, "on")
