"""A stream that is ended early ends as at a token limit, in the form of its API."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.wire.stream_end import LINE_LIMIT, OUTPUT_LIMIT, StreamEnd


def chunk(text: str, **more: object) -> bytes:
    document = {"id": "c1", "created": 7, "model": "m", "choices": [{"index": 0, "delta": {"content": text}}], **more}
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def named(kind: str, **more: object) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **more})}\n\n".encode()


def events(data: bytes) -> list[dict]:
    lines = [line[6:] for line in data.split(b"\n") if line.startswith(b"data: ")]
    return [json.loads(line) for line in lines if line != b"[DONE]"]


class StreamEndTests(SynchronousTestCase):
    def test_a_chat_ends_with_finish_reason_length(self):
        stream = StreamEnd("/v1/chat/completions")
        self.assertEqual(stream.feed(chunk("Hel") + chunk("lo")), chunk("Hel") + chunk("lo"))
        end = stream.end()
        choice = {"index": 0, "delta": {}, "finish_reason": "length"}
        self.assertEqual(events(end), [{"id": "c1", "created": 7, "model": "m", "choices": [choice]}])
        self.assertTrue(end.endswith(b"data: [DONE]\n\n"))
        self.assertEqual(stream.tokens, 2)

    def test_usage_that_each_event_has_is_passed_on(self):
        stream = StreamEnd("/v1/chat/completions")
        stream.feed(chunk("a", usage={"completion_tokens": 1}))
        self.assertEqual(events(stream.end())[0]["usage"], {"completion_tokens": 1})

    def test_a_completion_ends_with_a_text(self):
        stream = StreamEnd("/v1/completions")
        self.assertEqual(events(stream.end())[0]["choices"], [{"index": 0, "text": "", "finish_reason": "length"}])
        self.assertEqual(events(StreamEnd("/completion").end())[0]["stop_type"], "limit")

    def test_no_end_falls_inside_a_line_or_an_event(self):
        stream = StreamEnd("/v1/chat/completions")
        whole = chunk("one") + chunk("two")
        passed = b"".join(stream.feed(whole[place : place + 1]) for place in range(len(whole) - 1))
        self.assertEqual(passed, whole[:-1])
        self.assertEqual([len(event["choices"]) for event in events(passed + stream.end())], [1, 1, 1])
        self.assertNotIn(b"\n\n\n", passed + stream.end())

    def test_a_message_closes_its_block_and_stops_for_max_tokens(self):
        stream = StreamEnd("/v1/messages")
        stream.feed(named("message_start", message={}))
        stream.feed(named("content_block_start", index=0, content_block={"type": "text", "text": ""}))
        stream.feed(named("content_block_delta", index=0, delta={"type": "text_delta", "text": "a"}))
        stream.feed(named("ping"))
        stop, delta, last = events(stream.end())
        self.assertEqual(stop, {"type": "content_block_stop", "index": 0})
        self.assertEqual((delta["delta"]["stop_reason"], last), ("max_tokens", {"type": "message_stop"}))

    def test_a_message_between_blocks_closes_none(self):
        stream = StreamEnd("/v1/messages")
        stream.feed(named("content_block_stop", index=0))
        self.assertEqual([event["type"] for event in events(stream.end())], ["message_delta", "message_stop"])

    def test_a_response_becomes_incomplete(self):
        stream = StreamEnd("/v1/responses")
        stream.feed(named("response.created", response={"id": "r1", "status": "in_progress"}, sequence_number=0))
        stream.feed(named("response.output_text.delta", delta="a", sequence_number=4))
        [end] = events(stream.end())
        self.assertEqual((end["type"], end["sequence_number"]), ("response.incomplete", 5))
        self.assertEqual((end["response"]["id"], end["response"]["status"]), ("r1", "incomplete"))
        self.assertEqual(end["response"]["incomplete_details"], {"reason": "max_output_tokens"})

    def test_response_that_is_ended_repeats_what_it_has_said(self):
        stream = StreamEnd("/v1/responses")
        thought, call = {"id": "t1", "type": "reasoning"}, {"id": "c1", "type": "function_call", "arguments": ""}
        message = {"id": "m1", "type": "message", "status": "in_progress", "content": []}
        stream.feed(named("response.created", response={"id": "r1", "output": []}, sequence_number=0))
        stream.feed(named("response.output_item.done", output_index=0, item=thought, sequence_number=1))
        stream.feed(named("response.output_item.added", output_index=1, item=message, sequence_number=2))
        for text in ("on ", "and"):
            stream.feed(named("response.output_text.delta", output_index=1, content_index=0, delta=text))
        stream.feed(named("response.output_item.added", output_index=2, item=call, sequence_number=5))
        done, last = events(stream.end())
        text = {"type": "output_text", "text": "on and", "annotations": []}
        said = {**message, "status": "incomplete", "content": [text]}
        self.assertEqual(
            done, {"type": "response.output_item.done", "output_index": 1, "item": said, "sequence_number": 6}
        )
        self.assertEqual((last["response"]["output"], last["sequence_number"]), ([thought, said], 7))

    def test_response_that_is_very_long_repeats_nothing(self):
        stream = StreamEnd("/v1/responses")
        stream.feed(named("response.created", response={"id": "r1"}))
        stream.feed(named("response.output_item.added", output_index=0, item={"type": "message"}))
        for _ in range(OUTPUT_LIMIT // 500_000 + 1):
            stream.feed(named("response.output_text.delta", output_index=0, content_index=0, delta="x" * 500_000))
        [last] = events(stream.end())
        self.assertEqual(last["response"]["output"], [])

    def test_an_endless_line_passes_and_has_no_clean_end(self):
        stream = StreamEnd("/v1/chat/completions")
        sent = b"data: " + b"x" * (LINE_LIMIT + 1)
        self.assertEqual((stream.feed(sent), stream.clean), (sent, False))

    def test_the_rest_of_a_complete_stream_is_not_lost(self):
        stream = StreamEnd("/v1/chat/completions")
        self.assertEqual(stream.feed(b"data: [DONE]") + stream.rest(), b"data: [DONE]")

    def test_a_server_that_keeps_to_the_limit_ends_the_stream_itself(self):
        role = {"index": 0, "delta": {"role": "assistant", "content": None}}
        last = {"index": 0, "delta": {}, "finish_reason": "length"}
        chat = b"".join(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n" for choice in (role, last))
        chat = chat.replace(b"\n\ndata", b"\n\n" + chunk("a") + chunk("b") + b"data", 1) + b"data: [DONE]\n\n"
        message = (
            named("message_start", message={"content": []})
            + named("content_block_start", index=0, content_block={"type": "text", "text": ""})
            + named("content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": "a"})
            + named("content_block_delta", index=0, delta={"type": "signature_delta", "signature": "x"})
            + named("content_block_delta", index=0, delta={"type": "text_delta", "text": "a"})
            + named("content_block_stop", index=0)
            + named("message_delta", delta={"stop_reason": "max_tokens"}, usage={"output_tokens": 2})
            + named("message_stop")
        )
        whole = {"id": "r1", "output": [{"content": [{"type": "output_text", "text": "ab"}]}]}
        response = (
            named("response.created", response={"id": "r1"})
            + named("response.content_part.added", part={"type": "output_text", "text": ""})
            + named("response.output_text.delta", delta="a")
            + named("response.output_text.delta", delta="b")
            + named("response.output_text.done", text="ab")
            + named("response.completed", response=whole)
        )
        paths = {"/v1/chat/completions": chat, "/v1/messages": message, "/v1/responses": response}
        for path, sent in paths.items():
            stream = StreamEnd(path, 2)
            self.assertEqual((stream.feed(sent), stream.full, stream.tokens, stream.end()), (sent, False, 2, b""))

    def test_text_beyond_the_limit_does_not_pass_and_the_stream_has_one_end(self):
        stream = StreamEnd("/v1/messages", 1)
        text = named("content_block_delta", index=0, delta={"type": "text_delta", "text": "a"})
        passed = stream.feed(text * 2 + named("message_stop"))
        self.assertEqual((passed, stream.full), (text, True))
        kinds = [event["type"] for event in events(stream.end())]
        self.assertEqual(kinds, ["content_block_stop", "message_delta", "message_stop"])

    def test_no_name_of_an_event_passes_without_its_data(self):
        for cut in range(len(named("content_block_delta"))):
            stream = StreamEnd("/v1/messages")
            passed = stream.feed(named("message_start") + named("content_block_delta")[:cut]) + stream.end()
            blocks = [block for block in passed.split(b"\n\n") if block]
            self.assertEqual([block for block in blocks if b"data: " not in block], [])
