"""JSON bodies name their model, and change in one place only."""

from __future__ import annotations

import json
import time
from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.wire.json_body import EditError, JsonBody
from llamaswap.wire.json_members import LARGE, MEMBERS, SEARCH_WINDOW, split
from llamaswap.wire.json_path import parse_path


def model_of(text: bytes) -> str:
    body = JsonBody.parse(text)
    return body.model if body is not None else ""


def edited(text: bytes, *edits) -> bytes:
    body = JsonBody.parse(text)
    for edit in edits:
        if len(edit) == 1:
            body.delete(*edit)
        else:
            body.set(*edit)
    return body.render()


class ModelNameTests(SynchronousTestCase):
    def test_a_string_names_the_model(self):
        self.assertEqual(model_of(b' {"x": [1, {"model": "no"}], "model" : "alpha"}'), "alpha")

    def test_a_scalar_names_the_model_as_it_is_written(self):
        """http T047"""
        self.assertEqual(model_of(b'{"model":42}'), "42")
        self.assertEqual(model_of(b'{"model":true}'), "true")

    def test_null_an_object_and_an_array_name_no_model(self):
        for text in (b'{"model":null}', b'{"model":{"a":1}}', b'{"model":["alpha"]}', b'{"model":""}', b"{}"):
            self.assertEqual(model_of(text), "", text)

    def test_the_first_of_two_members_counts(self):
        """http T048"""
        self.assertEqual(model_of(b'{"model":"alpha","model":"org"}'), "alpha")

    def test_body_that_is_not_an_object_names_no_model(self):
        """http T037"""
        for text in (b"not-json", b'[{"model":"alpha"}]', b"", b'"model"', b'{"model"', b'{"model":', b'{"model":"alp'):
            self.assertEqual(model_of(text), "", text)

    def test_a_truncated_document_still_names_an_intact_model(self):
        self.assertEqual(model_of(b'{"model":"alpha","messages":[{"ro'), "alpha")
        self.assertEqual(model_of(b'{"messages":[],"model":"alpha"'), "alpha")

    def test_trailing_garbage_and_a_byte_order_mark_do_not_hide_the_model(self):
        self.assertEqual(model_of(b'{"model":"alpha"} trailing {'), "alpha")
        self.assertEqual(model_of(b'\xef\xbb\xbf{"model":"alpha"}'), "alpha")

    def test_escapes_in_key_and_value_are_understood(self):
        self.assertEqual(model_of(rb'{"mod\u0065l":"org\/g\u00e4mma"}'), "org/gämma")

    def test_a_lone_surrogate_becomes_something_that_can_be_encoded(self):
        self.assertEqual(model_of(rb'{"model":"a\ud800"}').encode(), b"a?")

    def test_a_broken_escape_names_no_model(self):
        self.assertEqual(model_of(rb'{"model":"\q"}'), "")

    def test_deep_nesting_is_walked_without_recursion(self):
        deep = b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b',"model":"alpha"}'
        self.assertEqual(model_of(deep), "alpha")

    def test_quotes_and_brackets_inside_strings_are_text(self):
        self.assertEqual(model_of(rb'{"x":["\"]}{", "\\"],"y":"a\\\\\"}","model":"alpha"}'), "alpha")

    def test_the_stream_flag_is_read_leniently(self):
        for text, flag in (
            (b"true", True),
            (b'"true"', True),
            (b"1", True),
            (b"0.5", True),
            (b"0", False),
            (b"false", False),
            (b'"no"', False),
            (b"null", False),
            (b"[]", False),
        ):
            self.assertIs(JsonBody.parse(b'{"stream":' + text + b"}").streaming, flag, text)

    def test_a_hundred_kilobytes_are_read_in_time_that_does_not_explode(self):
        """Linear in the number of brackets and strings; a second would be a quadratic walk."""
        text = b'{"model":"a","x":[' + b'"\\\\\\"",{},' * 30_000 + b"1"
        began = time.perf_counter()
        self.assertEqual(model_of(text), "a")
        self.assertLess(time.perf_counter() - began, 1.0)

    @settings(max_examples=150, deadline=None)
    @given(
        st.dictionaries(
            st.text(max_size=6) | st.just("model"),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
                lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
                max_leaves=8,
            ),
            max_size=5,
        ),
        st.sampled_from((None, 1)),
        st.booleans(),
    )
    def test_any_document_is_cut_as_a_parser_would(self, value, indent, ascii_only):
        text = json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
        try:
            text.decode()
        except UnicodeDecodeError:
            return
        body = JsonBody.parse(text)
        expected = value.get("model")
        if isinstance(expected, str) and ascii_only:
            expected = expected.encode("utf-8", "replace").decode()
        if isinstance(expected, str):
            self.assertEqual(body.model, expected)
        self.assertIs(body.render(), text)
        body.set("model", "new")
        body.delete("absent key")
        self.assertEqual(json.loads(body.render()), {**value, "model": "new"})

    @settings(max_examples=150, deadline=None)
    @given(st.binary(max_size=60), st.integers(0, 60))
    def test_garbage_is_survived(self, noise, cut):
        text = (b'{"model":"a","x":[{"y":"\\"z"}],' + noise + b"}")[:cut]
        body = JsonBody.parse(text)
        if body is not None:
            self.assertIn(body.model, ("a", ""))
            self.assertEqual(split(text, MEMBERS).render(), text)


class EditTests(SynchronousTestCase):
    def test_a_large_document_keeps_every_byte_that_was_not_edited(self):
        text = b'{"a": "' + b"x" * LARGE + b'" , "model":"owl", "b": [1, 2]}'
        body = JsonBody.parse(text)
        body.set_model("lark")
        body.set("c", 3)
        self.assertEqual(body.render(), text.replace(b'"owl"', b'"lark"')[:-1] + b',"c":3}')
        self.assertEqual(b"".join(body.pieces()), body.render())
        self.assertIs(type(body.render()), bytes)

    def test_a_string_longer_than_one_search_is_found_whole(self):
        for size in (SEARCH_WINDOW - 1, SEARCH_WINDOW, SEARCH_WINDOW + 1, 2 * SEARCH_WINDOW + 3):
            body = JsonBody.parse(b'{"x":"' + b"x" * size + b'","model":"owl"}')
            self.assertEqual(body.model, "owl")

    def test_an_edited_name_is_read_by_its_own_length(self):
        body = JsonBody.parse(b'{"model":"' + b"x" * 100_000 + b'"}')
        body.set_model("owl")
        self.assertEqual(body.model, "owl")

    def test_model_name_of_absurd_length_is_ignored(self):
        body = JsonBody.parse(b'{"model":"' + b"x" * 100_000 + b'","stream":"' + b"1" * 100_000 + b'"}')
        self.assertEqual((body.model, body.streaming), ("", False))

    def test_stripped_members_take_their_comma_with_them(self):
        text = b'{"model":"m", "temperature":0.1, "x":"1", "stream":true}'
        self.assertEqual(edited(text, ("temperature",), ("stream",)), b'{"model":"m", "x":"1"}')

    def test_an_unchanged_body_is_the_very_same_bytes(self):
        """http T060"""
        text = b'{ "model" :"alpha",\n\t"n": 12345678901234567890 , "f":1.0e0 }'
        self.assertIs(edited(text, ("absent",), ("a.b",)), text)

    def test_only_the_addressed_value_changes(self):
        text = b'{ "n" : 12345678901234567890 ,"t":\t1 , "z":[ 1,2 ] }'
        self.assertEqual(edited(text, ("t", 2)), b'{ "n" : 12345678901234567890 ,"t":\t2 , "z":[ 1,2 ] }')

    def test_a_new_key_is_appended(self):
        self.assertEqual(edited(b'{"a":1}', ("b", "x")), b'{"a":1,"b":"x"}')
        self.assertEqual(edited(b"{}", ("b", None)), b'{"b":null}')

    def test_a_key_set_twice_stands_there_once(self):
        self.assertEqual(edited(b"{}", ("b", 1), ("b", 2)), b'{"b":2}')
        self.assertEqual(edited(b"{}", ("b", 1), ("b",)), b"{}")

    def test_a_dotted_path_makes_the_members_on_its_way(self):
        """http T059"""
        self.assertEqual(
            edited(b'{"model":"m"}', ("chat_template_kwargs.enable_thinking", False)),
            b'{"model":"m","chat_template_kwargs":{"enable_thinking":false}}',
        )
        self.assertEqual(edited(b'{"a":{"b":1}}', ("a.c.d", 2)), b'{"a":{"b":1,"c":{"d":2}}}')
        self.assertEqual(edited(b'{"a":null}', ("a.b", 2)), b'{"a":{"b":2}}')

    def test_numbers_index_arrays_and_name_members_of_objects(self):
        self.assertEqual(edited(b'{"a":[1,2]}', ("a.1", 3)), b'{"a":[1,3]}')
        self.assertEqual(edited(b'{"a":[1,2]}', ("a.0",)), b'{"a":[2]}')
        self.assertEqual(edited(b'{"a":[1]}', ("a.2", 3)), b'{"a":[1,null,3]}')
        self.assertEqual(edited(b'{"a":[1]}', ("a.-1", 3)), b'{"a":[1,3]}')
        self.assertEqual(edited(b'{"a":{"1":0}}', ("a.1", 3)), b'{"a":{"1":3}}')
        self.assertEqual(edited(b"{}", ("a.1", 3)), b'{"a":[null,3]}')

    def test_a_colon_makes_a_number_a_key_and_a_backslash_a_dot_a_letter(self):
        self.assertEqual(edited(b"{}", ("a.:1", 3)), b'{"a":{"1":3}}')
        self.assertEqual(edited(b'{"a.b":1}', (r"a\.b", 2)), b'{"a.b":2}')
        self.assertEqual(edited(b'{"a.b":1,"a":{"b":1}}', (r"a\.b",)), b'{"a":{"b":1}}')

    def test_wildcards_set_what_matches_and_delete_nothing(self):
        self.assertEqual(edited(b'{"ab":1,"ac":2,"b":3}', ("a?", 0)), b'{"ab":0,"ac":0,"b":3}')
        self.assertRaises(EditError, JsonBody.parse(b"{}").delete, "a*")

    def test_a_scalar_in_the_way_of_a_path_makes_room_instead_of_failing_the_request(self):
        for scalar in (b"null", b"5", b'"text"', b"true"):
            self.assertEqual(edited(b'{"a":' + scalar + b',"z":1}', ("a.b", 1)), b'{"a":{"b":1},"z":1}')
        self.assertEqual(edited(b'{"a":[5,6]}', ("a.0.b", 1)), b'{"a":[{"b":1},6]}')
        self.assertEqual(edited(b'{"a":"text"}', ("a.1", 2)), b'{"a":[null,2]}')
        self.assertEqual(edited(b'{"a":5}', ("a.b",)), b'{"a":5}')

    def test_an_index_that_would_fill_the_memory_is_an_error(self):
        self.assertRaises(EditError, JsonBody.parse(b"{}").set, "a.999999999", 1)

    def test_every_duplicate_is_changed_so_that_no_server_reads_the_old_one(self):
        self.assertEqual(edited(b'{"t":1,"t":2,"x":3}', ("t",)), b'{"x":3}')
        body = JsonBody.parse(b'{"model":"a","model":"b"}')
        body.set_model("c")
        self.assertEqual(body.render(), b'{"model":"c","model":"c"}')

    def test_a_cut_off_document_takes_changes_but_no_additions(self):
        body = JsonBody.parse(b'{"model":"a", "x":[1,')
        body.set_model("b")
        self.assertEqual(body.render(), b'{"model":"b", "x":[1,')
        self.assertRaises(EditError, body.set, "y", 1)

    def test_a_path_is_taken_apart_at_its_dots(self):
        steps = parse_path(r"a.:0.1.b\.c")
        self.assertEqual([step.key for step in steps], ["a", "0", "1", "b.c"])
        self.assertEqual([step.index for step in steps], [None, None, 1, None])


class BoundTests(SynchronousTestCase):
    def test_long_array_of_numbers_is_walked_to_its_end(self):
        body = JsonBody.parse(b'{"input":[' + b"12," * 50_000 + b'1],"model":"m"}')
        self.assertEqual(body.model, "m")

    def test_long_string_with_escapes_is_walked_to_its_end(self):
        for text in (b"\\n" * 1_200_000, b'\\"' * 5000, b"\\" * 5000, b'x\\"' + b"\\" * 5000, b"y" * 3000 + b'\\"' * 9):
            body = JsonBody.parse(b'{"x":"' + text + b'","model":"m"}')
            self.assertEqual(body.model, "m", text[:20])

    def test_string_that_never_closes_ends_the_walk(self):
        for text in (b"x" * 3000, b'\\"' * 3000, b'\\"' * 3000 + b"\\"):
            self.assertEqual(JsonBody.parse(b'{"model":"m","x":"' + text).model, "m")

    def test_deep_nesting_is_walked_to_its_end(self):
        body = JsonBody.parse(b'{"x":' + b"[" * 25_000 + b"]" * 25_000 + b',"model":"m"}')
        self.assertEqual(body.model, "m")

    def test_endless_number_ends_the_walk(self):
        self.assertEqual(JsonBody.parse(b'{"x":' + b"1" * 300 + b',"model":"m"}').model, "m")
        self.assertEqual(JsonBody.parse(b'{"x":' + b"1" * 5000 + b',"model":"m"}').model, "")

    def test_copy_of_a_body_is_edited_apart(self):
        body = JsonBody.parse(b'{"model":"m"}')
        other = body.copy()
        other.set_model("n")
        self.assertEqual((body.render(), other.render()), (b'{"model":"m"}', b'{"model":"n"}'))


class AbsurdTests(SynchronousTestCase):
    """A document that no client would write costs little time and memory, and is not accepted as a body."""

    def test_members_without_number(self):
        many = b'{"model": "a", ' + b'"k": 1, ' * 2_000_000 + b'"z": 1}'
        self.assertIsNone(JsonBody.parse(many))
        usual = b'{"model": "a", ' + b'"k": 1, ' * 5000 + b'"z": 1}'
        self.assertEqual(JsonBody.parse(usual).model, "a")

    def test_brackets_without_number(self):
        body = JsonBody.parse(b'{"model": "a", "x": ' + b'{"x":' * 1_500_000)
        self.assertEqual(body.model, "a")
        self.assertEqual(body.render()[-5:], b'{"x":')

    def test_a_long_chat_is_no_absurdity(self):
        body = JsonBody.parse(b'{"messages": [' + b'{"content": ["x", {"y": []}]},' * 100_000 + b'{}], "model": "a"}')
        self.assertEqual(body.model, "a")


class IdleTimeTests(SynchronousTestCase):
    def test_each_servers_word_for_the_idle_time_is_read(self):
        for sent, seconds in (
            ('{"ttl":60}', 60.0),
            ('{"keepAlive":"10m"}', 600.0),
            ('{"keep_alive":"1.5h"}', 5400.0),
            ('{"keep_alive":30}', 30.0),
            ('{"keepAlive":0}', 0.0),
            ('{"keepAlive":-1}', inf),
            ('{"keepAlive":"-1m"}', inf),
            ('{"keepAlive":"' + "9" * 500 + '"}', inf),
            ('{"keepAlive":"soon"}', None),
            ('{"keepAlive":{}}', None),
            ('{"keepAlive":"nan"}', None),
            ("{}", None),
        ):
            self.assertEqual(JsonBody.parse(sent.encode()).idle_time, seconds, sent)
