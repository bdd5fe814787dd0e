from twisted.trial.unittest import SynchronousTestCase

from llamaswap.errors import BodyTooLarge
from llamaswap.web.admin_request import MAX_JSON_BYTES, first_json


class FirstJsonTests(SynchronousTestCase):
    def test_first_json_value_of_a_body_counts(self):
        self.assertEqual(first_json(b' {"a": 1} and more'), {"a": 1})

    def test_body_without_json_is_a_value_error(self):
        for text in (b"", b"nonsense", b"[" * 200_000, b'{"a":' * 200_000):
            self.assertRaises(ValueError, first_json, text)

    def test_large_body_is_refused_with_its_limit(self):
        self.assertRaises(BodyTooLarge, first_json, b"1" * (MAX_JSON_BYTES + 1))
