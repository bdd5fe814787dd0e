from twisted.trial.unittest import SynchronousTestCase

from llamaswap.web.admin_request import first_json


class FirstJsonTests(SynchronousTestCase):
    def test_the_first_value_counts(self):
        self.assertEqual(first_json(b' {"a": 1} and more'), {"a": 1})

    def test_what_is_none_is_a_value_error(self):
        for text in (b"", b"nonsense", b"[" * 200_000, b'{"a":' * 200_000):
            self.assertRaises(ValueError, first_json, text)
