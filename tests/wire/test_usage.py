"""Reading token counts out of documents and streams."""

import json

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.wire.usage import (
    FIRST_LINES,
    LAST_LINES,
    LINE_BOUND,
    LINE_TAIL,
    StreamScanner,
    Usage,
    from_document,
    from_fragment,
    from_lines,
)


def document(value, path="/v1/chat/completions"):
    return from_document(json.dumps(value).encode(), path)


def scanned(stream, size=None):
    scanner = StreamScanner()
    size = size or len(stream) or 1
    for start in range(0, len(stream), size):
        scanner.feed(stream[start : start + size])
    return from_lines(scanner.lines())


def sse(*events):
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"


def seven(usage):
    return (
        usage.input_tokens,
        usage.output_tokens,
        usage.cache_tokens,
        usage.draft_tokens,
        usage.draft_acc_tokens,
        usage.prompt_per_second,
        usage.tokens_per_second,
    )


class DocumentTests(SynchronousTestCase):
    def test_llama_cpp_timings(self):
        """http T123"""
        usage = document(
            {
                "timings": {
                    "prompt_n": 31,
                    "predicted_n": 64,
                    "prompt_per_second": 310.5,
                    "predicted_per_second": 42.25,
                    "prompt_ms": 99.9,
                    "predicted_ms": 1515.2,
                    "cache_n": 12,
                }
            }
        )
        self.assertEqual(seven(usage), (31, 64, 12, -1, -1, 310.5, 42.25))
        self.assertEqual(usage.server_ms, 1615)

    def test_timings_win_over_usage(self):
        """http T124"""
        usage = document(
            {
                "usage": {"prompt_tokens": 50, "completion_tokens": 25},
                "timings": {"prompt_n": 100, "predicted_n": 50},
            }
        )
        self.assertEqual(seven(usage), (100, 50, -1, -1, -1, 0, 0))

    def test_timings_without_cache_keep_the_usage_s(self):
        usage = document({"usage": {"cache_read_input_tokens": 7}, "timings": {"prompt_n": 1, "predicted_n": 2}})
        self.assertEqual(usage.cache_tokens, 7)

    def test_drafts_need_both_counts(self):
        both = document({"timings": {"draft_n": 9, "draft_n_accepted": 4}})
        self.assertEqual((both.draft_tokens, both.draft_acc_tokens), (9, 4))
        one = document({"timings": {"draft_n": 9}})
        self.assertEqual((one.draft_tokens, one.draft_acc_tokens), (-1, -1))

    def test_vllm_metrics(self):
        """http T128"""
        usage = document(
            {
                "usage": {
                    "prompt_tokens": 50,
                    "completion_tokens": 20,
                    "prompt_tokens_details": {"cached_tokens": 10},
                },
                "metrics": {
                    "time_to_first_token_ms": 80,
                    "mean_itl_ms": 12.5,
                    "tokens_per_second": 3,
                    "speculative_decoding": {"num_draft_tokens": 8, "num_accepted_draft_tokens": 6},
                },
            }
        )
        self.assertEqual(seven(usage), (50, 20, 10, 8, 6, 500, 80))

    def test_vllm_without_cache_information(self):
        """http T129"""
        usage = document({"usage": {"prompt_tokens": 100}, "metrics": {"time_to_first_token_ms": 50}})
        self.assertEqual(seven(usage), (100, 0, -1, -1, -1, 2000, -1))

    def test_infill_reads_its_last_element(self):
        """http T131"""
        answer = [{"content": "a"}, {"timings": {"prompt_n": 5, "predicted_n": 9}}]
        self.assertEqual(seven(document(answer, "/infill")), (5, 9, -1, -1, -1, 0, 0))
        self.assertIsNone(document(answer))
        self.assertIsNone(document([], "/infill"))

    def test_answers_without_usage_say_nothing(self):
        """http T132"""
        for data in (b'{"ok":true}', b"plain text", b"", b"[1,2]", b'{"usage":null}', b"7", b"\xff\xfe", b"[" * 99999):
            self.assertIsNone(from_document(data))
            self.assertIsNone(from_document(data + b" " * 1024))

    def test_embeddings_rerank_responses_and_anthropic(self):
        self.assertEqual(seven(document({"usage": {"prompt_tokens": 6, "total_tokens": 6}}))[:3], (6, 0, -1))
        responses = {"input_tokens": 9, "output_tokens": 4, "input_tokens_details": {"cached_tokens": 0}}
        self.assertEqual(seven(document({"usage": responses}))[:3], (9, 4, 0))
        anthropic = {"input_tokens": 9, "output_tokens": 4, "cache_read_input_tokens": 3}
        self.assertEqual(seven(document({"type": "message", "usage": anthropic}))[:3], (9, 4, 3))

    def test_nonsense_numbers_are_unknown(self):
        usage = from_document(b'{"usage":{"prompt_tokens":"7","completion_tokens":true,"cache_read_input_tokens":NaN}}')
        self.assertEqual(usage, Usage(0, 0, -1, -1, -1, -1.0, -1.0))

    def test_a_document_of_which_only_pieces_were_kept(self):
        pieces = b'{"object":"list","usage":{"prompt_tokens":3},"data":[0.1,0.2' + b'.5,0.7],"x":"say \\"usage\\":{}"}'
        self.assertEqual(from_fragment(pieces).input_tokens, 3)
        self.assertIsNone(from_fragment(b'..."usage": nothing'))


class StreamTests(SynchronousTestCase):
    def test_anthropic_spreads_it_over_two_events(self):
        """http T125"""
        stream = (
            b'event: message_start\r\ndata:{"type":"message_start","message":{"usage":{"input_tokens":40,'
            b'"cache_read_input_tokens":8,"output_tokens":1}}}\r\n\r\n'
            b'event: message_delta\r\ndata:   {"usage":{"output_tokens":77}}\r\n\r\n'
        )
        self.assertEqual(seven(scanned(stream))[:3], (40, 77, 8))

    def test_later_zeros_and_nulls_change_nothing(self):
        """http T127"""
        stream = sse(
            {"usage": None},
            {"usage": {"prompt_tokens": 10, "completion_tokens": 6}},
            {"usage": {"prompt_tokens": 0, "completion_tokens": 0}},
        )
        self.assertEqual(seven(scanned(stream)), (10, 6, -1, -1, -1, -1, -1))

    def test_responses_api_completes_with_it(self):
        stream = sse({"type": "response.completed", "response": {"usage": {"input_tokens": 3, "output_tokens": 5}}})
        self.assertEqual(seven(scanned(stream))[:2], (3, 5))

    def test_the_last_timings_win(self):
        stream = sse({"timings": {"prompt_n": 1, "predicted_n": 1}}, {"timings": {"prompt_n": 4, "predicted_n": 8}})
        self.assertEqual(seven(scanned(stream))[:2], (4, 8))

    def test_a_stream_without_numbers_says_nothing(self):
        self.assertIsNone(scanned(sse({"choices": []})))
        self.assertIsNone(scanned(b'event: "usage"\n\ndata: {"usage" broken\n\n: "usage"\n'))

    @given(st.integers(1, 400))
    def test_usage_does_not_depend_on_chunk_boundaries(self, size):
        stream = sse(
            {"message": {"usage": {"input_tokens": 40}}},
            *({"delta": "word"} for _ in range(20)),
            {"usage": {"output_tokens": 77}, "timings": None},
        )
        self.assertEqual(seven(scanned(stream, size))[:2], (40, 77))

    def test_a_last_line_without_its_end_counts(self):
        self.assertEqual(scanned(b'data: {"usage":{"prompt_tokens":2}}').input_tokens, 2)

    def test_usage_in_every_event_keeps_a_bounded_number_of_them(self):
        scanner = StreamScanner()
        for count in range(1, 5000):
            scanner.feed(b'data: {"usage":{"prompt_tokens":9,"completion_tokens":%d}}\n\n' % count)
        self.assertEqual(len(scanner.lines()), FIRST_LINES + LAST_LINES)
        self.assertEqual(seven(from_lines(scanner.lines()))[:2], (9, 4999))

    def test_an_event_larger_than_the_bound_still_gives_the_usage_at_its_end(self):
        event = b'data: {"response":{"output":"' + b"x" * (3 * LINE_BOUND) + b'","usage":{"input_tokens":3}}}\n\n'
        scanner = StreamScanner()
        for start in range(0, len(event), 4096):
            scanner.feed(event[start : start + 4096])
            self.assertLessEqual(len(scanner.carry), LINE_BOUND + LINE_TAIL + 4096)
        self.assertEqual(from_lines(scanner.lines()).input_tokens, 3)


NUMBERS = st.fixed_dictionaries(
    {}, optional={"prompt_tokens": st.integers(0, 99), "completion_tokens": st.integers(0, 99)}
)
TIMES = st.fixed_dictionaries({}, optional={"prompt_n": st.integers(0, 99), "predicted_ms": st.floats(0, 99)})
LEAVES = (
    st.none() | st.integers() | st.text() | st.sampled_from(["usage", '"usage":{"prompt_tokens":7}', "}", "{", "\\"])
)
NAMES = st.sampled_from(["usage", "timings", "metrics", "id", "choices", '"usage', "x"])
TREES = st.recursive(
    LEAVES | NUMBERS | TIMES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4)
)


class ClosingTests(SynchronousTestCase):
    @given(
        st.dictionaries(NAMES, TREES, max_size=5), NUMBERS | TREES, st.dictionaries(NAMES, TIMES | TREES, max_size=3)
    )
    def test_usage_read_from_the_end_equals_that_of_the_whole_document(self, before, usage, after):
        before.pop("usage", None)
        document = {**before, "usage": usage, **{k: v for k, v in after.items() if k not in before and k != "usage"}}
        for options in ({}, {"separators": (",", ":")}, {"indent": 1}, {"ensure_ascii": False}):
            data = json.dumps(document, **options).encode()
            alone = {name: document[name] for name in ("usage", "timings", "metrics") if name in document}
            expected = from_document(json.dumps(alone).encode())
            self.assertEqual(from_document(data), expected, data)
            self.assertEqual(from_document(data[:-1] + b" " * 1024 + data[-1:]), expected, data)

    def test_the_usual_ones_are_read_from_their_end(self):
        for end, tokens in (
            (b'"usage":{"prompt_tokens":3,"details":{"cached_tokens":1}}}', 3),
            (b'"usage": {"prompt_tokens": 3}, "id": "x", "timings": {"prompt_n": 2}}\n', 2),
            (b'"usage":{"prompt_tokens":3},"system_fingerprint":null}', 3),
        ):
            broken = b'{"choices":[{"message":{"content":"not \\"usage\\": {' + b"x" * 1024 + b'"],'  # not JSON
            self.assertEqual(from_document(broken + end).input_tokens, tokens)

    def test_nested_usage_is_not_taken_for_the_responses(self):
        for data in (
            b'{"message":{"usage":{"prompt_tokens":3}}}',
            b'[{"usage":{"prompt_tokens":3}}]',
            b'{"a":[{"usage":{"prompt_tokens":3}}]}',
            b'{"\\"usage":{"prompt_tokens":3}}',
            b'{"a":"usage"}',
        ):
            self.assertIsNone(from_document(data))
            self.assertIsNone(from_document(data + b" " * 1024))
