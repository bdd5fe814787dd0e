"""The chat as a daily user meets it, against the mock."""

from __future__ import annotations

import base64
import json
import re
import unittest
from typing import Any

from tests.ui import harness

TEXT = "Paragraph with enough words to fill a line of the pane and a bit more.\n\n" * 40
LONG = f"{TEXT}```python\nx = 1\n```\n\n- [x] bread\n- [ ] milk\n"
WIDE = "|" + "|".join(f" a rather wide column {number} " for number in range(9)) + "|\n" + "|---" * 9 + "|\n"


def sse(text: str, **usage: Any) -> str:
    """A streamed answer."""
    words = [{"choices": [{"delta": {"content": text[at : at + 400]}}]} for at in range(0, len(text), 400)]
    last = {"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": usage or {"completion_tokens": 3}}
    return "".join(f"data: {json.dumps(event)}\n\n" for event in [*words, last]) + "data: [DONE]\n\n"


class Chats(harness.MockCase):
    """One chat, with answers that the test chooses."""

    def chat(self, **more: Any) -> Any:
        page = self.page("playground", **more)
        self.live(page)
        return page

    def answers(self, page: Any, *answers: str | int) -> list[dict[str, Any]]:
        """Answer chat requests with these in turn, a number as an error; returns the list of bodies that came."""
        bodies: list[dict[str, Any]] = []
        left = list(answers)

        def answer(route: Any) -> None:
            bodies.append(route.request.post_data_json)
            given = left.pop(0)
            if isinstance(given, int):
                route.fulfill(status=given, json={"error": {"message": "the model failed"}})
            else:
                route.fulfill(status=200, content_type="text/event-stream", body=given)

        page.route("**/v1/chat/completions", answer)
        return bodies

    def say(self, page: Any, text: str) -> None:
        box = page.get_by_role("textbox", name="Message")
        box.fill(text)
        box.press("Enter")

    def at_end(self, page: Any) -> bool:
        """Whether the last line of the conversation is in view."""
        box = page.get_by_role("region", name="Conversation", exact=True)
        return bool(box.evaluate("box => box.scrollHeight - box.scrollTop - box.clientHeight < 4"))

    def test_time_in_the_queue_is_not_called_the_time_of_the_load(self) -> None:
        page = self.chat()
        notice = {"choices": [{"delta": {"reasoning_content": "━━━━━\nllama-swap loading model: x\nDone! (2s)\n━━━━━\n"}}]}
        self.answers(page, f"data: {json.dumps(notice)}\n\n{sse('fine')}")
        self.say(page, "hi")
        foot = page.locator(".bubble.assistant footer", has_text="token")
        self.assertRegex(foot.inner_text(), "model ready after")

    def test_blank_end_of_a_loading_notice_is_neither_a_thought_nor_a_token(self) -> None:
        page = self.chat()
        notice = ("━━━━━\nllama-swap loading model: x\n", "Done! (2s)\n━━━━━", "\n", " ", "\n")
        events = [{"choices": [{"delta": {"reasoning_content": piece}}]} for piece in notice]
        start = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
        failure = {"error": {"message": "unspecific error: upstream command exited prematurely (exit status 3)"}}
        self.answers(page, start + sse("fine"), f"{start}data: {json.dumps(failure)}\n\ndata: [DONE]\n\n")
        answer = page.locator(".bubble.assistant").last
        self.say(page, "hi")
        answer.get_by_text("model ready after").wait_for()
        self.assertEqual(answer.get_by_text("Thought for").count(), 0)
        self.say(page, "and now")
        answer.get_by_text("upstream command exited prematurely").wait_for()
        page.get_by_role("button", name="Regenerate").wait_for()
        self.assertNotRegex(answer.inner_text(), "unspecific|token|first after|model ready")

    def test_model_of_a_link_is_chosen_although_a_conversation_with_another_was_open(self) -> None:
        page = self.chat()
        self.answers(page, sse("fine"))
        page.get_by_role("combobox", name="Model").first.select_option("gpt-oss-120b")
        self.say(page, "hi")
        self.stored(page, "fine")
        page.goto(f"{self.url}/ui/playground?tab=chat&model=qwen3-coder-30b")
        page.get_by_role("region", name="Conversation", exact=True).get_by_text("fine").wait_for()
        self.assertEqual(page.get_by_role("combobox", name="Model").first.input_value(), "qwen3-coder-30b")

    # -- faults ---------------------------------------------------------------------------------------------

    def test_several_files_are_all_attached(self) -> None:
        page = self.chat()
        names = ("a.txt", "b.txt", "c.txt")
        page.set_input_files(
            ".composer input[type=file]",
            files=[{"name": name, "mimeType": "text/plain", "buffer": name.encode()} for name in names],
        )
        page.locator(".attach", has_text="c.txt").wait_for()
        self.assertEqual(page.locator(".attach").count(), 3)

    def test_binary_file_is_refused_instead_of_sent_as_text(self) -> None:
        page = self.chat()
        picked = [
            {"name": "report.pdf", "mimeType": "application/pdf", "buffer": b"%PDF-1.7\n\xe2\xe3\xcf\xd3\x00\x01"},
            {"name": "notes.md", "mimeType": "", "buffer": "# Grüße".encode()},
        ]
        page.set_input_files(".composer input[type=file]", files=picked)
        page.locator(".toast.error", has_text="report.pdf").wait_for()
        page.locator(".attach", has_text="notes.md").wait_for()
        self.assertEqual(page.locator(".attach").count(), 1)

    def test_chat_shows_the_end_of_answers_also_after_a_failed_request_and_a_stop(self) -> None:
        page = self.chat()
        self.answers(page, sse(LONG), 500, sse(LONG))
        self.say(page, "one")
        page.locator(".md-code").wait_for()
        harness.until(lambda: self.at_end(page))
        self.say(page, "two")
        page.locator(".bubble.assistant .bad", has_text="the model failed").wait_for()
        harness.until(lambda: self.at_end(page))
        self.say(page, "three")
        page.locator(".md-code").nth(1).wait_for()
        harness.until(lambda: self.at_end(page))
        page.unroute("**/v1/chat/completions")
        self.world.pace = 0.5
        self.say(page, "four")
        page.locator(".bubble.assistant").nth(3).locator(".md h2, .md p").first.wait_for()
        page.get_by_role("button", name="Stop").click()
        page.locator(".bubble.assistant", has_text="Stopped").wait_for()
        harness.until(lambda: self.at_end(page))

    def test_reader_who_scrolled_up_is_left_there_and_has_a_way_back(self) -> None:
        page = self.chat()
        self.answers(page, sse(LONG), sse(LONG))
        self.say(page, "one")
        page.locator(".md-code").wait_for()
        harness.until(lambda: self.at_end(page))
        box = page.get_by_role("region", name="Conversation", exact=True)
        box.hover()
        page.mouse.wheel(0, -700)
        page.get_by_role("button", name="To the end").wait_for()
        self.assertFalse(self.at_end(page))
        page.get_by_role("button", name="To the end").click()
        harness.until(lambda: self.at_end(page))

    def test_wide_table_scrolls_in_itself_on_a_phone(self) -> None:
        for theme in ("light", "dark"):
            page = self.chat(width=390, theme=theme)
            self.answers(page, sse(f"A table:\n\n{WIDE}| cell |\n\nAfter it."))
            self.say(page, "a table")
            page.locator(".md table").wait_for()
            look = "box => [box.getBoundingClientRect().width, box.closest('.transcript').clientWidth]"
            wide, pane = page.locator(".bubble.assistant .md").evaluate(look)
            self.assertLessEqual(wide, pane)
            foot = page.locator(".bubble-foot .num").last
            foot.filter(has_text="tokens").wait_for()
            self.assertLessEqual(foot.evaluate("text => text.getBoundingClientRect().right"), 390, "figures are cut")

    def test_task_list_keeps_its_boxes(self) -> None:
        page = self.chat()
        self.answers(page, sse("- [x] bread\n- [ ] milk\n"))
        self.say(page, "shopping")
        page.locator(".md li", has_text="☑ bread").wait_for()
        page.locator(".md li", has_text="☐ milk").wait_for()

    def test_replayed_request_is_sent_again_by_regenerate(self) -> None:
        page = self.page("requests?open=420")
        self.live(page)
        page.get_by_role("button", name="Replay").click()
        page.locator(".bubble.user").last.wait_for()
        bodies = self.answers(page, sse("Once more"), sse("Once more"))
        page.get_by_role("button", name="Regenerate").click()
        page.locator(".bubble.assistant", has_text="Once more").wait_for()
        self.assertEqual(len(bodies), 1)

    def test_chat_says_what_it_is_queued_behind_and_for_how_long(self) -> None:
        page = self.chat()
        page.get_by_label("Model", exact=True).select_option("glm-4.5-air")
        with page.expect_request("**/v1/chat/completions") as sent:
            page.route("**/v1/chat/completions", lambda route: None)
            self.say(page, "Hello")
        session = sent.value.headers["x-session-id"]

        def tell(phase: str, **more: object) -> None:
            entry = self.world.entry("900", "glm-4.5-air", phase, 1.0, session=session, **more)
            self.world.tell("inflight", {"operation": "upsert", "request": entry})

        tell("queued", reason="does not fit", waits_for=["gemma-3-27b"])
        text = page.locator(".bubble.assistant .typing")
        text.filter(has_text=re.compile(r"queued behind gemma-3-27b \(\d+ s of about 22 s\)")).wait_for()
        tell("queued", reason="does not fit", waits_for=["gpt-oss-120b"])
        text.filter(has_text="queued until gpt-oss-120b has finished").wait_for()
        tell("loading")
        self.world.set_state("glm-4.5-air", "starting")
        text.filter(has_text=re.compile(r"loading, about \d+ s left")).wait_for()
        tell("prefill")
        text.filter(has_text="waiting for the first token").wait_for()

    # -- what people are used to from other chats -------------------------------------------------------------

    def test_stopped_answer_is_continued(self) -> None:
        page = self.chat()
        cut = sse("Once upon a").replace('"stop"', '"length"')
        bodies = self.answers(page, cut, sse(" time there was a llama."))
        self.say(page, "a tale")
        page.get_by_role("button", name="Continue").click()
        page.locator(".bubble.assistant", has_text="Once upon a time there was a llama.").wait_for()
        self.assertEqual(page.locator(".bubble.assistant").count(), 1)
        self.assertEqual(bodies[1]["messages"][-1], {"role": "assistant", "content": "Once upon a"})
        self.assertTrue(bodies[1]["continue_final_message"])

    def test_answer_is_kept_when_another_conversation_is_opened_meanwhile(self) -> None:
        page = self.chat()
        side = page.get_by_role("complementary", name="Conversations")
        self.say(page, "a first line")
        page.get_by_role("button", name="Regenerate").wait_for()
        page.get_by_role("button", name="New", exact=True).click()
        self.world.pace = 0.5
        self.say(page, "a second line")
        page.locator(".bubble.assistant .md").get_by_text(re.compile(r"\w")).first.wait_for()
        side.locator(".histitem", has_text="a first line").click()
        page.locator(".bubble.user", has_text="a first line").wait_for()
        page.get_by_role("button", name="Regenerate").wait_for()
        side.locator(".histitem", has_text="a second line").click()
        page.locator(".bubble.assistant", has_text="Stopped").wait_for()
        page.get_by_role("button", name="Continue").wait_for()

    def test_answer_is_readable_when_the_part_for_markdown_cannot_be_fetched(self) -> None:
        page = self.chat()
        page.route("**/assets/markdown-*", lambda route: route.abort())
        self.answers(page, sse("a *plain* answer"))
        self.say(page, "hi")
        page.locator(".bubble.assistant", has_text="a *plain* answer").wait_for()

    def test_conversations_are_renamed_and_grouped_by_date(self) -> None:
        page = self.chat()
        self.answers(page, sse("hello"))
        self.say(page, "a first line")
        side = page.get_by_role("complementary", name="Conversations")
        side.get_by_role("region", name="Today").get_by_text("a first line").wait_for()
        side.get_by_role("button", name="Rename a first line").click()
        name = side.get_by_label("Name of the conversation")
        name.fill("Llamas of Peru")
        name.press("Enter")
        side.get_by_text("Llamas of Peru").wait_for()
        self.in_store(
            page,
            "async (store, done) => { const [one] = await done(store.getAll()); await done("
            "store.put({...one, id: 'old', title: 'An older one', updated: Date.now() - 3 * 86400000})); }",
        )
        page.reload()
        side.get_by_role("region", name="Today").get_by_text("Llamas of Peru").wait_for()
        side.get_by_role("region", name="Last 7 days").get_by_text("An older one").wait_for()

    def test_system_prompts_are_kept_as_presets(self) -> None:
        page = self.chat()
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("System prompt", exact=True).fill("You are a pirate.")
        page.get_by_label("Name of the preset").fill("Pirate")
        page.get_by_role("button", name="Save as preset").click()
        page.get_by_label("System prompt", exact=True).fill("")
        page.get_by_label("System prompt preset").select_option("Pirate")
        self.assertEqual(page.get_by_label("System prompt", exact=True).input_value(), "You are a pirate.")
        page.get_by_role("button", name="Close").click()
        bodies = self.answers(page, sse("Arr"))
        self.say(page, "Hi")
        page.locator(".bubble.assistant", has_text="Arr").wait_for()
        self.assertEqual(bodies[0]["messages"][0], {"role": "system", "content": "You are a pirate."})

    def test_context_meter_counts_the_prompt_once(self) -> None:
        page = self.chat()
        page.get_by_label("Model", exact=True).select_option("gpt-oss-120b")
        usage = {"prompt_tokens": 3000, "completion_tokens": 500, "prompt_tokens_details": {"cached_tokens": 2900}}
        self.answers(page, sse("hello", **usage))
        self.say(page, "hi")
        page.locator(".context", has_text=re.compile("^3,500 of ")).wait_for()

    def test_code_has_its_language_and_a_copy_button(self) -> None:
        for theme in ("light", "dark"):
            page = self.chat(theme=theme, bypass_csp=True)
            self.answers(page, sse("In a list:\n\n- so\n  ```rust\n  fn main() {}\n  ```\n\n```\nplain\n```\n"))
            self.say(page, "code")
            page.locator(".md-code-head", has_text="rust").get_by_role("button", name="Copy").wait_for()
            page.locator(".md-code-head", has_text="text").wait_for()
            page.locator(".md-code .hljs-keyword", has_text="fn").wait_for()
            self.accessible(page)

    def test_tool_calls_are_shown_with_their_arguments(self) -> None:
        page = self.chat()
        call = {"index": 0, "id": "c1", "function": {"name": "weather", "arguments": '{"city": "Lima"}'}}
        event = {"choices": [{"delta": {"tool_calls": [call]}}]}
        self.answers(page, f"data: {json.dumps(event)}\n\n{sse('')}")
        self.say(page, "weather in Lima?")
        page.locator(".tool summary", has_text="weather").click()
        page.locator(".tool", has_text='"city": "Lima"').wait_for()

    # -- tools of MCP servers -------------------------------------------------------------------------------

    def with_tools(self, page: Any) -> list[dict[str, Any]]:
        """An MCP server with one tool; returns the list of messages that it got."""
        messages: list[dict[str, Any]] = []
        tool = {"name": "weather", "description": "The weather of a city", "inputSchema": {"type": "object"}}
        results: dict[str, dict[str, object]] = {
            "initialize": {"protocolVersion": "2025-06-18"},
            "tools/list": {"tools": [tool]},
            "tools/call": {"content": [{"type": "text", "text": "21 degrees, dry"}]},
        }

        def message(route: Any) -> None:
            asked = route.request.post_data_json
            messages.append({**asked, "session": route.request.headers.get("mcp-session-id")})
            found = results.get(asked["method"])
            reply = {"jsonrpc": "2.0", "id": asked["id"], "result": found} if found else {}
            route.fulfill(status=200, json=reply, headers={"Mcp-Session-Id": "s-1"})

        page.route("**/api/mcp", lambda route: route.fulfill(json={"servers": ["home"]}))
        page.route("**/api/mcp/home", message)
        return messages

    def call(self, text: str = "") -> str:
        call = {"index": 0, "id": "c1", "function": {"name": "weather", "arguments": '{"city": "Lima"}'}}
        return f"data: {json.dumps({'choices': [{'delta': {'tool_calls': [call]}}]})}\n\n{sse(text)}"

    def choose_tools(self, page: Any, *, alone: bool = False) -> None:
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("home").check()
        page.get_by_text("1 tool", exact=True).wait_for()
        page.get_by_label("Run tool calls without a question").set_checked(alone)
        page.get_by_role("button", name="Close").click()

    def test_tool_runs_after_a_question_and_the_model_goes_on_with_its_answer(self) -> None:
        for theme in ("light", "dark"):
            page = self.chat(theme=theme, bypass_csp=True)
            messages = self.with_tools(page)
            bodies = self.answers(page, self.call(), sse("It is warm in Lima."))
            self.choose_tools(page)
            self.say(page, "weather in Lima?")
            page.get_by_role("button", name="Run weather").wait_for()
            self.accessible(page)
            self.assertEqual([one["method"] for one in messages if one["method"] == "tools/call"], [])
            page.get_by_role("button", name="Run weather").click()
            page.locator(".bubble.assistant", has_text="It is warm in Lima.").wait_for()
            self.assertEqual(bodies[0]["tools"][0]["function"]["name"], "weather")
            self.assertEqual(messages[-1]["params"], {"name": "weather", "arguments": {"city": "Lima"}})
            self.assertEqual(messages[-1]["session"], "s-1")
            self.assertEqual(bodies[1]["messages"][-2]["tool_calls"][0]["id"], "c1")
            self.assertEqual(
                bodies[1]["messages"][-1], {"role": "tool", "tool_call_id": "c1", "content": "21 degrees, dry"}
            )

    def test_declined_tool_does_not_run_and_the_model_is_told(self) -> None:
        page = self.chat()
        messages = self.with_tools(page)
        bodies = self.answers(page, self.call(), sse("Then not."))
        self.choose_tools(page)
        self.say(page, "weather in Lima?")
        page.get_by_role("button", name="Decline").click()
        page.locator(".bubble.assistant", has_text="Then not.").wait_for()
        self.assertNotIn("tools/call", [one["method"] for one in messages])
        self.assertIn("declined", bodies[1]["messages"][-1]["content"])

    def test_tools_run_without_a_question_if_that_was_chosen_but_not_for_ever(self) -> None:
        page = self.chat()
        messages = self.with_tools(page)
        bodies = self.answers(page, *[self.call() for _ in range(12)])
        self.choose_tools(page, alone=True)
        self.say(page, "weather in Lima?")
        page.locator(".bubble.assistant").nth(9).wait_for()
        page.get_by_role("button", name="Run weather").wait_for()
        self.assertEqual(len(bodies), 10)
        self.assertEqual(len([one for one in messages if one["method"] == "tools/call"]), 9)

    def test_conversation_that_is_opened_while_tools_are_fetched_keeps_its_messages(self) -> None:
        page = self.chat()
        self.with_tools(page)
        self.answers(page, sse("hello"))
        self.choose_tools(page)
        self.say(page, "a first line")
        page.locator(".bubble.assistant", has_text="hello").wait_for()
        page.reload()
        held: list[Any] = []
        page.route("**/api/mcp/home", lambda route: held.append(route))
        page.get_by_role("button", name="New", exact=True).click()
        self.say(page, "a second line")
        page.get_by_role("button", name="Stop").wait_for()
        page.locator(".histitem", has_text="a first line").click()
        page.locator(".bubble.user", has_text="a first line").wait_for()
        for route in held:
            route.abort()
        page.get_by_role("button", name="Regenerate").wait_for()
        self.assertEqual(page.locator(".bubble.user").all_inner_texts(), ["a first line"])
        page.locator(".bubble.assistant", has_text="hello").wait_for()

    def test_tools_that_cannot_be_fetched_are_named(self) -> None:
        page = self.chat()
        self.with_tools(page)
        self.answers(page, sse("hello"))
        self.choose_tools(page)
        page.reload()
        refused = {"error": {"message": "the MCP server home cannot be reached: refused"}}
        page.route("**/api/mcp/home", lambda route: route.fulfill(status=502, json=refused))
        self.say(page, "hi")
        page.locator(".toast.error", has_text="The model gets no tools of home").wait_for()
        page.locator(".bubble.assistant", has_text="hello").wait_for()

    def test_tool_that_runs_is_stopped_and_can_be_run_again(self) -> None:
        page = self.chat()
        messages = self.with_tools(page)
        self.answers(page, self.call(), sse("It is warm in Lima."))
        self.choose_tools(page)
        held: list[Any] = []

        def hold(route: Any) -> None:
            if route.request.post_data_json["method"] == "tools/call" and not held:
                held.append(route)
            else:
                route.fallback()

        page.route("**/api/mcp/home", hold)
        self.say(page, "weather in Lima?")
        page.get_by_role("button", name="Run weather").click()
        page.get_by_role("button", name="Stop", exact=True).wait_for()
        page.get_by_role("button", name="Stop weather").click()
        page.get_by_role("button", name="Run weather").wait_for()
        page.get_by_role("button", name="Send", exact=True).wait_for()
        harness.until(lambda: page.wait_for_timeout(20) or messages[-1]["method"] == "notifications/cancelled")
        self.assertEqual(messages[-1]["params"]["requestId"], held[0].request.post_data_json["id"])
        page.get_by_role("button", name="Run weather").click()
        page.locator(".bubble.assistant", has_text="It is warm in Lima.").wait_for()

    def test_session_that_the_mcp_server_has_ended_is_begun_again(self) -> None:
        page = self.chat()
        messages = self.with_tools(page)
        self.answers(page, self.call(), sse("It is warm in Lima."))
        self.choose_tools(page)
        ended: list[str] = []

        def end(route: Any) -> None:
            if route.request.post_data_json["method"] == "tools/call" and not ended:
                ended.append("s-1")
                route.fulfill(status=404, json={"error": {"message": "the session has ended"}})
            else:
                route.fallback()

        page.route("**/api/mcp/home", end)
        self.say(page, "weather in Lima?")
        page.get_by_role("button", name="Run weather").click()
        page.locator(".bubble.assistant", has_text="It is warm in Lima.").wait_for()
        methods = [one["method"] for one in messages]
        self.assertEqual(methods[-3:], ["initialize", "notifications/initialized", "tools/call"])
        self.assertIsNone(messages[-3]["session"], "the ended session is named")

    def test_replayed_request_keeps_the_calls_of_tools_and_their_answers(self) -> None:
        call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Lima"}'}}
        asked = [
            {"role": "user", "content": "weather in Lima?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "21 degrees"},
        ]
        page = self.page("requests?open=420")
        self.live(page)
        capture = harness.ask(f"{self.url}/api/captures/420")
        body = json.dumps({"model": "gpt-oss-120b", "messages": asked}).encode()
        capture["req_body"] = base64.b64encode(body).decode()
        page.route("**/api/captures/420", lambda route: route.fulfill(json=capture))
        page.reload()
        page.locator(".turn", has_text="21 degrees").first.wait_for()
        page.get_by_role("button", name="Replay").click()
        page.locator(".tool summary", has_text="weather").wait_for()
        bodies = self.answers(page, sse("It is warm."))
        page.get_by_role("button", name="Regenerate").click()
        page.locator(".bubble.assistant", has_text="It is warm.").wait_for()
        self.assertEqual(bodies[0]["messages"], asked)

    def test_refusal_to_list_the_mcp_servers_is_shown(self) -> None:
        page = self.chat()
        page.route("**/api/mcp", lambda route: route.fulfill(status=403, json={"error": {"message": "needs admin"}}))
        page.get_by_role("button", name="Settings").click()
        page.get_by_text("The MCP servers could not be fetched: needs admin").wait_for()

    def test_no_tool_is_offered_unless_it_was_chosen(self) -> None:
        page = self.chat()
        self.with_tools(page)
        bodies = self.answers(page, sse("hello"))
        self.say(page, "hi")
        page.locator(".bubble.assistant", has_text="hello").wait_for()
        self.assertNotIn("tools", bodies[0])


class RealTools(harness.RealCase):
    """The real server as an MCP server of its own chat."""

    def test_tools_of_a_configured_server_are_listed_and_called(self) -> None:
        text = harness.ask(f"{self.url}/api/config")
        added = f"{text}\nui:\n  mcpServers:\n    models: {self.url}/mcp\n"
        page = self.page("playground")
        self.live(page)
        page.evaluate(
            "async text => { const tag = (await fetch('../api/config')).headers.get('ETag');"
            "await fetch('../api/config', {method: 'PUT', body: text,"
            "headers: {'Content-Type': 'application/yaml', 'If-Match': tag}}); }",
            added,
        )
        harness.until(lambda: harness.ask(f"{self.url}/api/mcp")["servers"] == ["models"])
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("models").check()
        page.get_by_text(re.compile(r"^\d+ tools$")).wait_for()
        self.assertEqual(page.faults, [])


if __name__ == "__main__":
    unittest.main()
