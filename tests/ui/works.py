"""The interface does its work against the real server: loads, swaps, chats, shows what went wrong."""

from __future__ import annotations

import re

from tests.ui import harness


class Works(harness.RealCase):
    """One real server, one browser context a test."""

    def test_a_model_is_loaded_swapped_and_unloaded_from_the_models_page(self) -> None:
        page = self.page("models")
        self.live(page)
        row = page.locator("tr", has_text="parrot").first
        if row.get_by_role("button", name="Unload").count():
            row.get_by_role("button", name="Unload").click()
        row.get_by_role("button", name="Load").click()
        row.locator(".chip", has_text="ready").wait_for()
        other = page.locator("tr", has_text="poet").first
        other.get_by_role("button", name="Load").click()
        other.locator(".chip", has_text="ready").wait_for()
        row.locator(".chip", has_text="not loaded").wait_for()
        other.get_by_role("button", name="Unload").click()
        other.locator(".chip", has_text="not loaded").wait_for()
        self.assertEqual(page.faults, [])

    def test_a_failed_load_is_on_the_overview_and_on_the_models_own_page(self) -> None:
        page = self.page("models")
        self.live(page)
        page.locator("tr", has_text="broken").first.get_by_role("button", name="Load").click()
        page.goto(f"{self.url}/ui/")
        page.locator(".notice", has_text="broken failed to load").wait_for()
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
        page.reload()
        page.locator(".bubble.assistant .md", has_text="Squawk").wait_for()

    def test_a_finished_request_opens_with_its_conversation_and_is_replayed(self) -> None:
        chat = {"model": "poet", "messages": [{"role": "user", "content": "An autumn verse"}]}
        harness.ask(f"{self.url}/v1/chat/completions", chat)
        page = self.page("requests")
        self.live(page)
        page.locator("tr[data-row]").first.click()
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
        self.assertEqual(page.get_by_label("Status", exact=True).input_value(), "error")

    def test_a_swap_shows_where_the_time_went(self) -> None:
        for model in ("parrot", "poet"):
            harness.say(self.url, model)
        number = harness.ask(f"{self.url}/api/swaps")[0]["id"]
        page = self.page(f"swap?id={number}")
        self.live(page)
        page.get_by_role("heading", name="Where the time went").wait_for()
        self.assertGreaterEqual(page.locator(".waterfall tbody tr").count(), 2)

    def test_the_log_of_a_model_follows_it(self) -> None:
        page = self.page("logs?src=parrot")
        self.live(page)
        harness.say(self.url, "parrot")
        page.locator(".log .ln").first.wait_for()

    def test_an_invalid_configuration_is_refused_and_a_valid_one_saved_and_taken_back(self) -> None:
        page = self.page("config")
        self.live(page)
        page.locator(".cm-content").wait_for()
        page.evaluate("document.querySelector('.cm-content').focus()")
        page.keyboard.press("Control+End")
        page.keyboard.insert_text("\nmodels: 7")
        page.locator(".faults .bad").first.wait_for()
        page.get_by_role("button", name="Discard").click()
        # Typing goes on only when the editor shows the file again: it would be discarded with the rest.
        page.wait_for_function("!document.querySelector('.cm-content').innerText.includes('models: 7')")
        page.locator(".faults .bad").first.wait_for(state="detached")
        page.evaluate("document.querySelector('.cm-content').focus()")
        page.keyboard.press("Control+End")
        page.keyboard.insert_text("\nlogLevel: debug\n")
        page.wait_for_function("document.querySelector('.cm-content').innerText.includes('logLevel: debug')")
        page.get_by_role("button", name="Review and save").click()
        page.locator("dialog .diff", has_text="logLevel: debug").wait_for()
        page.get_by_role("button", name="Save and load").click()
        page.get_by_role("button", name="Undo the last save").wait_for()
        self.assertIn("logLevel: debug", (self.server.folder / "config.yaml").read_text())
        page.get_by_role("button", name="Undo the last save").click()
        page.get_by_text("back in force").wait_for()
        self.assertNotIn("logLevel: debug", (self.server.folder / "config.yaml").read_text())

    def test_the_profile_is_switched_in_the_header(self) -> None:
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

    def test_keys_open_pages_the_palette_and_the_filter(self) -> None:
        page = self.page()
        self.live(page)
        page.keyboard.press("g")
        page.keyboard.press("m")
        page.wait_for_url(re.compile("/ui/models"))
        page.get_by_label("Filter models").wait_for()
        page.keyboard.press("/")
        self.assertEqual(page.evaluate("document.activeElement.getAttribute('aria-label')"), "Filter models")
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
            page.wait_for_timeout(500)
        self.assertEqual([url for _, url, _ in page.asked if not url.startswith((self.url, "data:", "blob:"))], [])
        self.assertEqual(page.faults, [])

    def test_three_questions_are_answered_within_two_seconds(self) -> None:
        page = self.page()
        for heading in ("Loaded now", "Running", "Attention"):
            page.get_by_role("heading", name=heading).wait_for(timeout=2000)
        self.live(page)
