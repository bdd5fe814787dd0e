"""The interface does its work against the real server: loads, swaps, chats, shows what went wrong."""

from __future__ import annotations

import json
import re
from typing import Any

from tests.ui import harness


class Works(harness.RealCase):
    """One real server, one browser context a test."""

    def test_a_model_is_loaded_swapped_and_unloaded_from_the_models_page(self) -> None:
        harness.unload(self.url)
        page = self.page("models")
        self.live(page)
        row = page.locator("tr[data-model=parrot]")
        row.locator(".chip", has_text="not loaded").wait_for()
        row.get_by_role("button", name="Load", exact=True).click()
        row.locator(".chip", has_text="ready").wait_for()
        other = page.locator("tr[data-model=poet]")
        other.get_by_role("button", name="Load", exact=True).click()
        other.locator(".chip", has_text="ready").wait_for()
        row.locator(".chip", has_text="not loaded").wait_for()
        other.get_by_role("button", name="Unload").click()
        other.locator(".chip", has_text="not loaded").wait_for()
        self.assertEqual(page.faults, [])

    def test_a_failed_load_is_on_the_overview_and_on_the_models_own_page(self) -> None:
        page = self.page("models")
        self.live(page)
        with page.expect_response(re.compile("/api/models/load/broken")):
            page.locator("tr[data-model=broken]").get_by_role("button", name="Load", exact=True).click()
        page.goto(f"{self.url}/ui/")
        page.locator(".notice", has_text="Load failed: broken").wait_for()
        with self.assertRaises(OSError):
            harness.say(self.url, "broken")
        page.goto(f"{self.url}/ui/requests?model=broken")
        page.locator(".errmsg").first.wait_for()
        self.assertRegex(page.locator(".errmsg").first.inner_text(), "^upstream command exited")
        page.goto(f"{self.url}/ui/model?id=broken")
        page.locator(".problem", has_text="exit").first.wait_for()
        page.locator(".log, .tailbox").get_by_text("error: no such file").first.wait_for()

    def test_a_chat_streams_and_carries_its_figures(self) -> None:
        page = self.page("playground?tab=chat&model=parrot")
        self.live(page)
        page.get_by_label("Message").fill("Hello parrot")
        page.get_by_label("Message").press("Enter")
        page.locator(".bubble.assistant .md", has_text="Squawk").wait_for()
        foot = page.locator(".bubble.assistant footer")
        foot.get_by_text(re.compile("token")).wait_for()
        self.stored(page, "Squawk")
        page.reload()
        page.locator(".bubble.assistant .md", has_text="Squawk").wait_for()

    def test_a_finished_request_opens_with_its_conversation_and_is_replayed(self) -> None:
        chat = {"model": "poet", "messages": [{"role": "user", "content": "An autumn verse"}]}
        before = harness.newest(self.url)
        harness.ask(f"{self.url}/v1/chat/completions", chat)
        number = harness.until(lambda: harness.newest(self.url) > before and harness.newest(self.url))
        page = self.page("requests")
        self.live(page)
        page.locator(f"tr[data-id='{number}']").click()
        page.locator(".turn.user", has_text="An autumn verse").wait_for()
        self.assertIn("open=", page.url)
        page.get_by_role("button", name="Replay").click()
        page.locator(".bubble.user", has_text="An autumn verse").wait_for()

    def test_filters_are_in_the_address(self) -> None:
        page = self.page("requests")
        self.live(page)
        page.get_by_label("Status", exact=True).select_option("error")
        page.wait_for_url(re.compile("status=error"))
        page.reload()
        page.locator('select[aria-label="Status"] option[value=error]:checked').wait_for(state="attached")

    def test_a_swap_shows_where_the_time_went(self) -> None:
        for model in ("parrot", "poet"):
            harness.say(self.url, model)
        number = harness.ask(f"{self.url}/api/swaps")[0]["id"]
        page = self.page(f"swap?id={number}")
        self.live(page)
        page.get_by_role("heading", name="Where the time went").wait_for()
        page.locator(".waterfall tbody tr").nth(1).wait_for()

    def test_the_use_of_the_models_is_summed_drawn_and_saved(self) -> None:
        harness.say(self.url, "parrot")
        harness.until(lambda: harness.ask(f"{self.url}/api/usage?by=model")["rows"])
        page = self.page("usage?by=model")
        self.live(page)
        page.locator("table.usage tr", has_text="parrot").locator("td.num").first.wait_for()
        page.get_by_role("img", name=re.compile("Tokens per day: .+ [1-9]")).wait_for()
        page.get_by_text("llamaswap keys add NAME").wait_for()
        with page.expect_download() as saved:
            page.get_by_role("button", name="CSV").click()
        with open(saved.value.path(), encoding="utf-8") as table:
            self.assertIn("model,requests,errors,input_tokens", table.readline())
        page.get_by_role("button", name="Key", exact=True).click()
        page.wait_for_url(re.compile("by=key"))
        page.locator("table.usage td", has_text="no name").wait_for()
        self.assertEqual(page.faults, [])

    def test_the_log_of_a_model_follows_it(self) -> None:
        page = self.page("logs?src=parrot")
        self.live(page)
        harness.say(self.url, "parrot")
        page.locator(".log .ln").first.wait_for()

    def test_a_request_leads_to_its_log_lines_and_a_line_has_an_address(self) -> None:
        harness.unload(self.url)
        before = harness.newest(self.url)
        harness.say(self.url, "poet")
        number = harness.until(lambda: harness.newest(self.url) > before and harness.newest(self.url))
        page = self.page(f"requests?open={number}")
        page.get_by_role("link", name="Logs of that time").click()
        page.locator(".log .ln.within", has_text="poet").first.wait_for()
        line = page.locator(".log .ln.within").last
        text = line.inner_text()
        line.click()
        page.locator(".log .ln.picked").wait_for()
        self.assertIn("line=", page.url)
        page.reload()
        self.assertEqual(page.locator(".log .ln.picked").inner_text(), text)
        page.get_by_role("button", name="Leave this line").click()
        self.gone(page.locator(".log .ln.picked"))
        self.assertNotIn("line=", page.url)
        self.assertEqual(page.faults, [])

    def type_into_the_configuration(self, page: Any, text: str) -> None:
        """Add a line at the end, as by typing, and see it there."""
        page.locator(".cm-content").focus()
        page.keyboard.press("Control+End")
        page.keyboard.insert_text(f"\n{text}")
        page.locator(".cm-content", has_text=text).wait_for()

    def test_an_invalid_configuration_is_refused_and_a_valid_one_saved_and_taken_back(self) -> None:
        page = self.page("config")
        self.live(page)
        self.type_into_the_configuration(page, "models: 7")
        page.locator(".faults .bad").first.wait_for()
        page.get_by_role("button", name="Discard").click()
        self.gone(page.locator(".cm-content", has_text="models: 7"))
        self.gone(page.locator(".faults .bad"))
        self.type_into_the_configuration(page, "logLevel: debug")
        page.get_by_role("button", name="Review and save").click()
        page.locator("dialog .diff", has_text="logLevel: debug").wait_for()
        page.get_by_role("button", name="Save and apply").click()
        page.get_by_role("button", name="Undo the last save").wait_for()
        self.assertIn("logLevel: debug", (self.server.folder / "config.yaml").read_text())
        page.get_by_role("button", name="Undo the last save").click()
        page.get_by_text("save is used again").wait_for()
        self.assertNotIn("logLevel: debug", (self.server.folder / "config.yaml").read_text())

    def test_a_save_is_undone_and_an_earlier_version_restored_after_the_tab_was_reloaded(self) -> None:
        path = self.server.folder / "config.yaml"
        first = path.read_text()
        page = self.page("config")
        self.live(page)
        self.type_into_the_configuration(page, "logLevel: warn")
        page.get_by_role("button", name="Review and save").click()
        page.get_by_role("button", name="Save and apply").click()
        page.get_by_text("Saved and applied").wait_for()
        page.reload()
        page.get_by_role("button", name="Undo the last save").click()
        page.get_by_text("save is used again").wait_for()
        self.assertEqual(path.read_text(), first)
        page.get_by_role("button", name="Versions").click()
        page.locator("dialog li", has_text="saved").first.get_by_role("button").click()
        page.locator("dialog .diff .d-add", has_text="logLevel: warn").wait_for()
        page.get_by_role("button", name="Restore and apply").click()
        page.get_by_text("earlier configuration is used again").wait_for()
        self.assertIn("logLevel: warn", path.read_text())
        page.get_by_role("button", name="Versions").click()
        page.locator("dialog li", has_text="found in the file").first.get_by_role("button").click()
        page.locator("dialog .diff .d-del", has_text="logLevel: warn").wait_for()
        page.get_by_role("button", name="Restore and apply").click()
        harness.until(lambda: path.read_text() == first)
        self.assertEqual(page.faults, [])

    def test_a_discarded_configuration_does_not_come_back_with_late_answers(self) -> None:
        page = self.page("config")
        self.live(page)
        page.locator(".cm-content").wait_for()
        held: list[Any] = []
        page.route("**/api/config/validate", lambda route: held.append(route))
        self.type_into_the_configuration(page, "models: 7")
        harness.until(lambda: page.wait_for_timeout(20) or len(held) == 1)
        page.get_by_role("button", name="Discard").click()
        self.gone(page.locator(".cm-content", has_text="models: 7"))
        self.type_into_the_configuration(page, "# mine")
        harness.until(lambda: page.wait_for_timeout(20) or len(held) == 2)
        # The answer to what was thrown away is the last to arrive.
        for route in reversed(held):
            route.continue_()
            route.request.response().finished()
        page.locator(".faults", has_text="No model restarts").wait_for()
        self.assertIn("# mine", page.locator(".cm-content").inner_text())
        self.assertEqual(page.locator(".faults .bad").count(), 0)

    def test_the_profile_is_switched_in_the_header(self) -> None:
        self.addCleanup(harness.ask, f"{self.url}/api/profiles/active", {"name": None}, "PUT")
        page = self.page()
        self.live(page)
        page.get_by_label("Profile").select_option("calm")
        page.get_by_text("Profile calm is active").wait_for()
        self.assertEqual(harness.ask(f"{self.url}/api/profiles")["active"], "calm")
        page.get_by_label("Profile").select_option("")
        page.get_by_text("No profile is active").wait_for()

    def test_two_models_answer_side_by_side_in_turn(self) -> None:
        harness.say(self.url, "parrot")
        page = self.page("playground?tab=compare")
        self.live(page)
        page.get_by_label("Model 1").select_option("parrot")
        page.get_by_label("Model 2").select_option("poet")
        page.get_by_text("do not fit together").wait_for()
        page.get_by_label("Prompt for all").fill("Hello")
        page.get_by_role("button", name="Ask").click()
        page.locator(".column", has_text="Squawk").wait_for()
        page.locator(".column .md").nth(1).wait_for()

    def test_a_column_of_a_comparison_has_its_own_settings(self) -> None:
        page = self.page("playground?tab=compare")
        self.live(page)
        page.get_by_label("Model 1").select_option("parrot")
        page.get_by_label("Model 2").select_option("poet")
        page.get_by_role("button", name="Settings of column 2").click()
        page.get_by_label("The same as for all columns").uncheck()
        page.get_by_label("Seed").fill("7")
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Own settings of column 2").wait_for()
        page.get_by_label("Prompt for all").fill("Hello")
        page.get_by_role("button", name="Ask").click()
        page.locator(".column .md").nth(1).wait_for()
        sent = [json.loads(data) for _, url, data in page.asked if url.endswith("/v1/chat/completions")]
        self.assertEqual({body["model"]: body.get("seed") for body in sent}, {"parrot": None, "poet": 7})

    def test_a_text_is_gone_on_with(self) -> None:
        page = self.page("playground?tab=complete")
        self.live(page)
        page.get_by_label("Model", exact=True).select_option("parrot")
        page.get_by_label("Text", exact=True).fill("Once upon a time")
        page.get_by_role("button", name="Complete").click()
        page.locator(".answer", has_text="Once upon a time").wait_for()
        page.get_by_role("button", name="Add to the text").click()
        self.assertGreater(len(page.get_by_label("Text", exact=True).input_value()), 20)

    def test_keys_open_pages_the_palette_and_the_filter(self) -> None:
        page = self.page()
        self.live(page)
        page.keyboard.type("gm")
        page.wait_for_url(re.compile("/ui/models"))
        page.get_by_label("Filter models").wait_for()
        page.keyboard.press("/")
        page.locator("[aria-label='Filter models']:focus").wait_for()
        page.keyboard.press("Escape")
        page.keyboard.press("Control+k")
        page.get_by_label("Command", exact=True).fill("system")
        page.keyboard.press("Enter")
        page.wait_for_url(re.compile("/ui/system"))
        page.keyboard.press("?")
        page.get_by_role("heading", name="Keyboard").wait_for()

    def test_nothing_is_fetched_from_elsewhere_under_the_policy_of_the_server(self) -> None:
        page = self.page()
        self.live(page)
        for where in ("models", "playground", "config", "system"):
            page.goto(f"{self.url}/ui/{where}")
            self.settled(page)
        self.assertEqual([url for _, url, _ in page.asked if not url.startswith((self.url, "data:", "blob:"))], [])
        self.assertEqual(page.faults, [])

    def test_own_requests_of_the_page_are_not_in_its_log(self) -> None:
        def lines() -> list[str]:
            all_lines = harness.ask(f"{self.url}/logs").splitlines()
            return [line for line in all_lines if '"GET /' in line and '"GET /logs' not in line]

        harness.ask(f"{self.url}/v1/models")
        harness.until(lambda: any('"GET /v1/models' in line for line in lines()))
        before = len(lines())
        page = self.page()
        for where in ("models", "model?id=poet", "add", "requests", "playground", "playground?tab=compare", "usage",
                      "logs", "config", "system", "system?tab=settings"):  # fmt: skip
            page.goto(f"{self.url}/ui/{where}")
            self.settled(page)
        harness.ask(f"{self.url}/v1/models")
        harness.until(lambda: lines()[before:] and '"GET /v1/models' in lines()[-1])
        self.assertEqual(lines()[before:-1], [])

    def test_three_questions_are_answered_within_two_seconds(self) -> None:
        page = self.page()
        for heading in ("Loaded now", "Running", "Attention"):
            page.get_by_role("heading", name=heading).wait_for(timeout=2000 * harness.SLACK)
        self.live(page)
