"""Filters apply in their order and never touch the model."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config import Filters
from llamaswap.config.schema.filters import Bounds
from llamaswap.errors import BadRequest
from llamaswap.wire.filters import FilterError, apply, bound_tokens
from llamaswap.wire.json_body import JsonBody

BETA = Filters(
    strip_params=("stream", "temperature"),
    set_params={"top_k": 7, "model": "zzz"},
    set_params_by_id={"beta:hot": {"temperature": 1.5, "top_k": 9}},
)


def filtered(text: bytes, rules: Filters, requested: str = "m", use_model_name: str = "") -> bytes:
    body = JsonBody.parse(text)
    apply(body, rules, requested=requested, use_model_name=use_model_name)
    return body.render()


class FilterTests(SynchronousTestCase):
    def test_rename_strip_and_set(self):
        """http T056"""
        self.assertEqual(
            filtered(b'{"model":"beta","temperature":0.2,"stream":false,"x":1}', BETA, "beta", "beta-up"),
            b'{"model":"beta-up","x":1,"top_k":7}',
        )

    def test_the_requested_name_chooses_the_last_word(self):
        """http T057"""
        self.assertEqual(
            filtered(b'{"model":"beta:hot","temperature":0.2}', BETA, "beta:hot", "beta-up"),
            b'{"model":"beta-up","top_k":9,"temperature":1.5}',
        )

    def test_without_rules_the_bytes_stay(self):
        text = b'{ "model":"a" }'
        self.assertIs(filtered(text, Filters()), text)

    def test_model_is_neither_stripped_nor_set(self):
        rules = Filters(strip_params=("model",), set_params={"model": "x"}, set_params_by_id={"m": {"model": "y"}})
        self.assertEqual(filtered(b'{"model":"m"}', rules), b'{"model":"m"}')

    def test_whole_floats_are_sent_as_integers(self):
        rules = Filters(set_params={"a": 2.0, "b": [1.0, {"c": 0.5}]})
        self.assertEqual(filtered(b"{}", rules), b'{"a":2,"b":[1,{"c":0.5}]}')

    def test_parameter_with_a_question_mark_is_set_only_if_it_is_absent(self):
        rules = Filters(
            set_params={"max_tokens?": 16000, "options.top_k?": 7, "model?": "x"},
            set_params_by_id={"hot": {"temperature?": 1.5}},
        )
        self.assertEqual(
            filtered(b'{"model":"m"}', rules, "hot"),
            b'{"model":"m","max_tokens":16000,"options":{"top_k":7},"temperature":1.5}',
        )
        sent = b'{"model":"m","max_tokens":5,"options":{"top_k":null},"temperature":0}'
        self.assertIs(filtered(sent, rules, "hot"), sent)

    def test_failures_name_the_parameter(self):
        error = self.assertRaises(FilterError, filtered, b"{}", Filters(strip_params=("a*",)))
        self.assertIn("error stripping parameter a* from request", str(error))

    def test_array_where_a_rule_needs_an_object_is_an_error_of_the_client(self):
        for rules, word in (
            (Filters(set_params={"model2.x": 1}), "error setting parameter model2.x in request"),
            (Filters(set_params={"model2.0.1.x?": 1}), "error setting parameter model2.0.1.x? in request"),
            (Filters(rename_params={"y": "model2.x"}), "error renaming parameter y in request"),
        ):
            error = self.assertRaises(BadRequest, filtered, b'{"model2":[["s",[]]],"y":1}', rules)
            self.assertIn(word, str(error))

    def test_system_prompt_of_a_name_comes_before_that_of_the_model(self):
        rules = Filters(system_prompt="general", system_prompt_by_id={"m": "own"})
        for name, text in (("m", "own"), ("other", "general")):
            body = JsonBody.parse(b'{"messages":[]}')
            apply(body, rules, requested=name)
            self.assertEqual(json.loads(body.render())["messages"][0]["content"], text)

    def test_system_prompt_is_added_if_the_client_sends_none(self):
        rules = Filters(system_prompt='be "kind"')
        added = b'{"role":"system","content":"be \\"kind\\""}'
        user = b'{"role": "user", "content": "hi"}'
        for sent, expected in (
            (b'{"messages": [%s] }' % user, b'{"messages": [%s,%s] }' % (added, user)),
            (b'{"messages":[]}', b'{"messages":[%s]}' % added),
            (b'{"messages":[3]}', b'{"messages":[%s,3]}' % added),
        ):
            self.assertEqual(filtered(sent, rules), expected)
        for sent in (
            b'{"prompt":"hi"}',
            b'{"messages":"hi"}',
            b'{"messages":{"role":"user"}}',
            b'{"messages":[{"role" : "system","content":"x"},%s]}' % user,
            b'{"messages":[{"content":"x","role":"developer"}]}',
            b'{"system":"x","messages":[%s]}' % user,
        ):
            self.assertIs(filtered(sent, rules), sent)


class RuleTests(SynchronousTestCase):
    def test_a_parameter_is_renamed_also_inside_others(self):
        rules = Filters(rename_params={"max_completion_tokens": "max_tokens", "options.temp": "temperature"})
        sent = b'{"max_completion_tokens":9,"options":{"temp":0.5,"x":1}}'
        self.assertEqual(filtered(sent, rules), b'{"options":{"x":1},"max_tokens":9,"temperature":0.5}')
        self.assertEqual(filtered(b'{"max_completion_tokens":9,"max_tokens":5}', rules), b'{"max_tokens":5}')
        untouched = b'{ "x":1 }'
        self.assertIs(filtered(untouched, rules), untouched)

    def test_numbers_are_clamped_also_inside_others(self):
        rules = Filters(clamp_params={"temperature": Bounds(0.2, 1.5), "options.n.0": Bounds(most=4)})
        for sent, made in (
            ("0", "0.2"),
            ("1.0", "1.0"),
            ("9e99", "1.5"),
            ("-1", "0.2"),
            ('"7"', "1.5"),
            ("null", "null"),
        ):
            self.assertEqual(
                filtered(b'{"temperature":%b}' % sent.encode(), rules), b'{"temperature":%b}' % made.encode()
            )
        self.assertEqual(filtered(b'{"options":{"n":[9,9]}}', rules), b'{"options":{"n":[4,9]}}')
        self.assertEqual(filtered(b"{}", rules), b"{}")

    def test_a_number_that_is_written_with_escapes_is_clamped(self):
        rules = Filters(clamp_params={"n": Bounds(most=4)})
        self.assertEqual(filtered(b'{"n":"\\u0039"}', rules), b'{"n":4}')

    def test_a_number_given_twice_is_clamped_twice(self):
        rules = Filters(clamp_params={"n": Bounds(most=4)})
        self.assertEqual(filtered(b'{"n":1,"n":99}', rules), b'{"n":1,"n":4}')
        self.assertEqual(filtered(b'{"n":' + b"9" * 1000 + b"}", rules), b'{"n":4}')

    def test_bounds_hold_for_what_is_set(self):
        rules = Filters(set_params={"n?": 9}, clamp_params={"n": Bounds(most=4)})
        self.assertEqual(filtered(b"{}", rules), b'{"n":4}')

    def test_the_token_bound_knows_each_api(self):
        for path, sent, made in (
            ("/v1/chat/completions", {}, {"max_tokens": 5}),
            ("/v1/chat/completions", {"max_completion_tokens": 9}, {"max_completion_tokens": 5}),
            ("/v1/completions", {"max_tokens": 4}, {"max_tokens": 4}),
            ("/v1/messages", {"max_tokens": 4096}, {"max_tokens": 5}),
            ("/v1/responses", {"max_output_tokens": None}, {"max_output_tokens": 5}),
            ("/completion", {"n_predict": -1}, {"n_predict": 5}),
            ("/infill", {}, {"n_predict": 5}),
            ("/v1/completions", {"max_output_tokens": 1}, {"max_output_tokens": 1, "max_tokens": 5}),
            ("/v1/chat/completions/", {}, {"max_tokens": 5}),
            ("/v1/chat/completions/batch", {}, {"max_tokens": 5}),
            ("/v1/embeddings", {}, {}),
        ):
            body = JsonBody.parse(json.dumps(sent).encode())
            bound_tokens(body, path, 5)
            self.assertEqual(json.loads(body.render()), made, (path, sent))

    def test_the_token_bound_is_divided_among_all_choices(self):
        chat, text, batch = "/v1/chat/completions", "/v1/completions", "/v1/chat/completions/batch"
        question = [{"role": "user", "content": "hi"}]
        for path, sent, most in (
            (chat, {"n": 4}, 25),
            (chat, {"n": "4"}, 25),
            (chat, {"n": None}, 100),
            (chat, {"n": "NaN", "n_cmpl": 0}, 100),
            (chat, {"n_cmpl": 3}, 33),
            (chat, {"n": 100}, 1),
            (chat, {"messages": question * 3}, 100),
            (batch, {"messages": [question] * 3, "n": 2}, 16),
            (text, {"n": 2, "best_of": 5}, 20),
            (text, {"prompt": "one"}, 100),
            (text, {"prompt": ["one", "two"], "n": 2}, 25),
            (text, {"prompt": [[1, 2], [3]]}, 50),
            (text, {"prompt": list(range(200))}, 100),
            (text, {"prompt": ["one", 2, 3]}, 100),  # llama.cpp: one prompt of texts and tokens
            (text, {"prompt": []}, 100),
        ):
            body = JsonBody.parse(json.dumps(sent).encode())
            bound_tokens(body, path, 100)
            self.assertEqual(json.loads(body.render())["max_tokens"], most, (path, sent))
        body = JsonBody.parse(b'{"n":1,"n":2,"prompt":[' + b" " * 200 + b'"a", "b"]}')
        bound_tokens(body, text, 100)
        self.assertEqual(json.loads(body.render())["max_tokens"], 25)

    def test_a_request_for_more_choices_than_tokens_is_refused(self):
        for sent in ({"n": 101}, {"n": "1e999"}, {"prompt": ["a"] * 101}, {"prompt": ["a"] * 60, "n": 2}):
            body = JsonBody.parse(json.dumps(sent).encode())
            self.assertRaises(BadRequest, bound_tokens, body, "/v1/completions", 100)
