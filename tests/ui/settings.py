"""The settings of the browser, against the mock."""

from __future__ import annotations

import unittest
from typing import Any

from tests.ui import harness


class Settings(harness.MockCase):
    """One page each."""

    def settings(self, **more: Any) -> Any:
        page = self.page("system?tab=settings", **more)
        page.get_by_role("heading", name="Appearance").wait_for()
        return page

    def test_key_is_entered_and_forgotten_in_the_settings(self) -> None:
        page = self.settings()
        self.live(page)
        form = page.locator("main form", has=page.get_by_role("button", name="Use this key"))
        page.locator("main input[type=password]").fill("sk-other")
        # From here on any request of the page may open the question for the key above the form.
        self.world.key = "sk-wrong"
        form.evaluate("form => form.requestSubmit()")
        page.get_by_text("The server refused this key.").first.wait_for()
        self.world.key = "sk-secret"
        dialog = page.get_by_role("dialog")
        dialog.get_by_role("button", name="Close").click()
        page.locator("main input[type=password]").fill("sk-secret")
        page.get_by_label("Remember on this device").check()
        form.evaluate("form => form.requestSubmit()")
        page.get_by_text("a key that ends in cret").wait_for()
        self.live(page)
        page.get_by_role("button", name="Forget the key").click()
        page.get_by_role("dialog").locator("input[type=password]").wait_for()
        self.assertIsNone(page.evaluate("localStorage.getItem('llamaswap.key')"))

    def test_density_changes_the_height_of_rows(self) -> None:
        context = self.context()
        page = self.settings(context=context)
        heights = []
        for name in ("Compact", "Normal", "Spacious"):
            page.get_by_role("button", name=name, exact=True).click()
            other = self.page("requests", context)
            row = other.locator("tbody tr[data-id]").first
            row.wait_for()
            heights.append(row.evaluate("row => row.getBoundingClientRect().height"))
            other.close()
        self.assertLess(heights[0], heights[1])
        self.assertLess(heights[1], heights[2])

    def test_new_chat_begins_with_the_default_model(self) -> None:
        context = self.context()
        page = self.settings(context=context)
        page.get_by_label("Default model", exact=True).select_option("qwen3-coder-30b")
        page.goto(f"{self.url}/ui/playground")
        model = page.get_by_label("Model", exact=True)
        model.wait_for()
        harness.until(lambda: model.input_value() == "qwen3-coder-30b")
        model.select_option("gemma-3-27b")
        page.get_by_role("button", name="New", exact=True).click()
        harness.until(lambda: model.input_value() == "qwen3-coder-30b")

    def test_conversations_that_were_not_used_for_long_are_removed(self) -> None:
        page = self.page("playground")
        self.live(page)
        put = (
            "(store, done) => { const one = (id, days) => ({id, title: id, model: 'm', params: {},"
            "messages: [{role: 'user', text: id}], updated: Date.now() - days * 86400000});"
            "store.put(one('old', 9)); return done(store.put(one('new', 1))); }"
        )
        self.in_store(page, put)
        page.goto(f"{self.url}/ui/system?tab=settings")
        page.get_by_label("Keep conversations").select_option("7")
        page.goto(f"{self.url}/ui/playground")
        side = page.get_by_role("complementary", name="Conversations")
        side.get_by_role("button", name="Rename new").wait_for()
        self.assertEqual(side.get_by_role("button", name="Rename old").count(), 0)
        page.goto(f"{self.url}/ui/system?tab=settings")
        page.get_by_role("button", name="Delete all conversations").click()
        page.get_by_role("button", name="Delete", exact=True).click()
        page.get_by_text("All conversations are deleted").wait_for()
        page.goto(f"{self.url}/ui/playground")
        side.get_by_text("Conversations are kept in this browser").wait_for()

    def test_browser_tells_of_loads_and_failures_if_asked_to(self) -> None:
        context = self.context()
        context.add_init_script(
            "window.shown = []; class Fake { static permission = 'default'; constructor(text) { shown.push(text); }"
            "static async requestPermission() { return (Fake.permission = window.refuse ? 'denied' : 'granted'); } }"
            "window.Notification = Fake;"
        )
        page = self.settings(context=context)
        self.live(page)
        page.evaluate("window.refuse = true")
        page.get_by_label("When a load is done").click()
        page.get_by_role("alert").get_by_text("does not allow notifications").wait_for()
        self.assertFalse(page.get_by_label("When a load is done").is_checked())
        page.evaluate("window.refuse = false")
        page.get_by_label("When a load is done").check()
        page.get_by_label("When a model fails").check()
        self.world.set_state("glm-4.5-air", "starting")
        page.wait_for_timeout(200)
        self.world.set_state("glm-4.5-air", "ready")
        harness.until(lambda: page.evaluate("shown") == ["glm-4.5-air is loaded"])
        status = self.world.model_status()
        status[0] |= {"state": "stopped", "failed": "exit 3"}
        self.world.tell("modelStatus", status)
        harness.until(lambda: page.evaluate("shown.at(-1)") == f"{status[0]['id']} failed: exit 3")

    def test_settings_name_the_version_and_lead_to_the_reference(self) -> None:
        page = self.settings()
        page.locator(".facts", has_text="0.2.0").wait_for()
        page.get_by_role("link", name="Reference of the API").wait_for()
        page.get_by_text("The manual is in the folder docs of the source").wait_for()
        page.keyboard.press("?")
        page.get_by_role("heading", name="Keyboard").wait_for()


if __name__ == "__main__":
    unittest.main()
