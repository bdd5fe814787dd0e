"""What the page says after an action of the operator: of loads that fail, keys, pages that are not there."""

from __future__ import annotations

import re
from typing import Any

from tests.ui import harness


def row(page: Any, model: str) -> Any:
    """A model's row of the models page."""
    return page.locator(f"tr[data-model='{model}']")


def load(page: Any, model: str) -> None:
    """Press the button in its row."""
    row(page, model).get_by_role("button", name="Load", exact=True).click()


class RealFeedback(harness.RealCase):
    """Against the real server, whose models fail in real ways."""

    def setUp(self) -> None:
        super().setUp()
        harness.unload(self.url)

    def test_load_that_fails_later_says_why_in_its_row_and_a_toast_that_lead_to_its_log(self) -> None:
        for width, theme in ((1440, "light"), (390, "dark")):
            with self.subTest(width=width):
                page = self.page("models", width=width, theme=theme, bypass_csp=True)
                self.live(page)
                load(page, "broken")
                row(page, "broken").get_by_text("failed: exit 3").wait_for()
                page.locator(".toast.error", has_text="broken was not loaded: upstream command exited").wait_for()
                self.accessible(page)
                page.get_by_role("button", name="Open its log").click()
                page.wait_for_url(re.compile(r"/ui/logs\?src=broken"))
                page.go_back()
                row(page, "broken").get_by_text("failed: exit 3").click()
                page.wait_for_url(re.compile(r"/ui/logs\?src=broken"))
                page.locator(".log .ln", has_text="error: no such file").first.wait_for()

    def test_command_that_cannot_be_run_is_a_failure_of_its_model(self) -> None:
        page = self.page("models")
        self.live(page)
        load(page, "missing")
        row(page, "missing").get_by_text("failed: no such executable file").wait_for()
        page.locator(".toast.error", has_text="missing was not loaded").wait_for()
        page.goto(f"{self.url}/ui/")
        page.locator(".notice", has_text="missing failed").wait_for()

    def test_load_that_a_pinned_model_blocks_says_which_one(self) -> None:
        harness.say(self.url, "poet")
        harness.ask(f"{self.url}/api/models/pin/poet", {})
        self.addCleanup(harness.ask, f"{self.url}/api/models/pin/poet", None, "DELETE")
        page = self.page("models")
        self.live(page)
        load(page, "parrot")
        page.locator(".toast.error", has_text="Cannot load parrot: poet is pinned").wait_for()
        row(page, "parrot").get_by_role("button", name=re.compile("^Load.*poet is pinned")).wait_for()

    def test_load_that_waits_for_a_request_can_be_cancelled(self) -> None:
        held = harness.hold(self.url)
        self.addCleanup(held.close)
        page = self.page("models")
        self.live(page)
        row(page, "parrot").get_by_text("busy").wait_for()
        load(page, "poet")
        page.locator("dialog").get_by_role("button", name="Load", exact=True).click()
        row(page, "poet").get_by_role("button", name="Cancel").click()
        row(page, "poet").get_by_role("button", name=re.compile("^Load")).wait_for()
        harness.until(lambda: not harness.ask(f"{self.url}/api/queue")["queue"])
        self.assertEqual(page.locator(".toast.error").count(), 0)

    def test_star_of_the_list_and_pin_of_the_server_have_their_own_icons(self) -> None:
        harness.say(self.url, "poet")
        page = self.page("models")
        star = row(page, "poet").get_by_role("button", name="Keep poet at the top of this list")
        shape = star.locator("path").get_attribute("d")
        page.goto(f"{self.url}/ui/")
        pin = page.get_by_role("button", name="Keep poet loaded")
        self.assertNotEqual(pin.locator("path").get_attribute("d"), shape)


class MockFeedback(harness.MockCase):
    """Against the mock, which asks for keys and is away when a test wants it."""

    def test_key_dialog_that_was_cancelled_leaves_a_way_to_enter_the_key(self) -> None:
        self.world.key = "k-1"
        page = self.page()
        page.get_by_role("button", name="Close").click()
        self.gone(page.get_by_text("connecting"))
        page.get_by_text("Unknown without a key").first.wait_for()
        self.assertEqual(page.get_by_text("Waiting for the server").count(), 0)
        page.get_by_role("button", name="Enter the key").click()
        page.get_by_label("API key").fill("k-1")
        page.get_by_role("button", name="Use this key").click()
        self.live(page)

    def test_no_page_seems_to_load_or_to_be_empty_while_a_key_is_needed(self) -> None:
        self.world.key = "k-1"
        page = self.page()
        page.get_by_role("button", name="Close").click()
        main, empty = page.locator("main"), r"No lines yet|has finished yet|no models|\b0 local"
        for where in ("model?id=gpt-oss-120b", "usage", "logs", "system", "requests", "models", "playground"):
            self.turn(page, where)
            self.gone(main.locator(".spinner"))  # the part of a page is loaded
            main.get_by_text("Unknown without a key").first.wait_for(state="attached")
            harness.until(lambda: not re.search(empty, main.inner_text()))

    def test_curl_of_a_server_with_keys_has_the_header(self) -> None:
        page = self.page("model?id=gpt-oss-120b")
        code = page.locator("pre.code", has_text="curl http")
        code.wait_for()
        self.assertNotIn("Authorization", code.inner_text())
        self.world.key = "k-1"
        page.evaluate("localStorage.setItem('llamaswap.key', 'k-1')")
        page.reload()
        code.wait_for()
        self.assertIn('-H "Authorization: Bearer $LLAMASWAP_API_KEY"', code.inner_text())
        self.assertNotIn("k-1", code.inner_text())

    def test_page_that_was_opened_offline_is_whole_when_the_server_is_back(self) -> None:
        page = self.page()
        self.live(page)
        self.world.down = True
        page.route("**/assets/models-*", lambda route: route.abort())
        page.get_by_role("navigation", name="Main", exact=True).get_by_role("link", name="Models").click()
        page.locator("#main").get_by_text("could not be fetched").wait_for()  # a toast may say so too
        page.wait_for_selector(".linkmark.s-failed")
        page.unroute("**/assets/models-*")
        self.world.down = False
        row(page, "gpt-oss-120b").wait_for()

    def test_page_that_was_opened_during_a_short_loss_of_the_network_is_whole_afterwards(self) -> None:
        page = self.page()
        self.live(page)
        page.context.set_offline(True)
        page.get_by_role("navigation", name="Main", exact=True).get_by_role("link", name="Models").click()
        page.locator("#main").get_by_text("could not be fetched").wait_for()  # a toast may say so too
        page.context.set_offline(False)
        row(page, "gpt-oss-120b").wait_for()

    def test_model_that_is_chosen_as_soon_as_it_is_offered_stays_chosen(self) -> None:
        context = self.context()
        context.add_init_script(
            """new MutationObserver(() => {
                const box = document.querySelector("select[aria-label=Model]");
                if (window.chosen || ![...(box?.options ?? [])].some((one) => one.value === "gemma-3-27b")) return;
                window.chosen = true;
                box.value = "gemma-3-27b";
                box.dispatchEvent(new Event("change", { bubbles: true }));
            }).observe(document, { childList: true, subtree: true })"""
        )
        page = self.page("playground?tab=complete", context=context)
        self.live(page)
        harness.until(lambda: page.evaluate("window.chosen"))
        page.get_by_label("Text", exact=True).fill("x")  # whatever an update may change has happened by then
        self.assertEqual(page.get_by_label("Model", exact=True).input_value(), "gemma-3-27b")

    def test_part_whose_fetch_fails_after_the_server_is_back_is_fetched_again(self) -> None:
        page = self.page()
        self.live(page)
        held: list[Any] = []
        page.route("**/assets/models-*", lambda route: route.continue_() if held else held.append(route))
        page.get_by_role("navigation", name="Main", exact=True).get_by_role("link", name="Models").click()
        page.locator("main .spinner").wait_for()
        self.world.down = True
        page.wait_for_selector(".linkmark.s-failed")
        self.world.down = False
        self.live(page)
        held[0].abort()
        row(page, "gpt-oss-120b").wait_for()

    def test_part_that_an_updated_server_lacks_is_named_with_a_way_out(self) -> None:
        # Each: a part, where it is needed, and what needs it.
        parts = (
            ("palette", "models", lambda page: page.get_by_role("button", name="Commands").click()),
            ("editor", "config", None),
            ("uPlot", "", None),
            ("models", "", lambda page: page.locator("header nav").get_by_role("link", name="Models").click()),
        )
        for name, where, need in parts:
            with self.subTest(part=name):
                context = self.context()
                context.route(f"**/assets/{name}*", lambda route: route.fulfill(status=404))
                context.route("**/ui/manifest.json", lambda route: route.fulfill(json={"script": "assets/newer.js"}))
                page = self.page(where, context)
                self.live(page)
                if need:
                    need(page)
                told = page.locator(".toast.error, .problem", has_text="older than the server").first
                told.wait_for()
                context.unroute("**/ui/manifest.json")
                context.unroute(f"**/assets/{name}*")
                with page.expect_navigation():
                    told.get_by_role("button", name="Reload").click()

    def test_swap_page_without_a_number_lists_the_swaps(self) -> None:
        page = self.page("swap")
        page.get_by_role("heading", name="Swaps", exact=True).wait_for()
        page.get_by_role("link", name=re.compile(r"\d\d:\d\d")).first.click()
        page.get_by_role("heading", name="Where the time went").wait_for()

    def test_toast_covers_neither_the_title_nor_the_composer(self) -> None:
        for width in (1280, 390):
            page = self.page("models", width=width)
            self.live(page)
            load(page, "org/mistral-small-24b")
            page.locator("dialog").get_by_role("button", name="Load", exact=True).click()
            toast = page.locator(".toast.error")
            toast.wait_for()
            for part in (page.get_by_role("heading", level=1), page.locator("header.top"), page.locator(".tabbar")):
                if (box := part.bounding_box()) is not None:
                    over = toast.bounding_box()
                    beside = over["x"] >= box["x"] + box["width"] or over["y"] >= box["y"] + box["height"]
                    self.assertTrue(beside or over["y"] + over["height"] <= box["y"], (width, box, over))
            self.turn(page, "playground")
            box, over = page.locator(".composer").bounding_box(), toast.bounding_box()
            apart = over["x"] + over["width"] <= box["x"] or over["y"] + over["height"] <= box["y"]
            self.assertTrue(apart, (width, box, over))

    def test_control_s_reviews_the_configuration_and_errors_are_named(self) -> None:
        page = self.page("config")
        self.live(page)
        page.locator(".cm-content").focus()
        page.keyboard.insert_text("# mine\n")
        page.keyboard.press("Control+s")
        page.locator("dialog .diff", has_text="# mine").wait_for()
        page.get_by_role("button", name="Back").click()
        self.gone(page.locator("dialog"))  # until then the editor behind it takes no focus
        page.locator(".cm-content").focus()
        page.keyboard.insert_text("bad: 1\n")
        page.get_by_role("button", name="Review and save").click()
        page.locator(".toast.error", has_text="Not saved: models.bad: no cmd").wait_for()
        self.assertEqual(page.locator("dialog").count(), 0)

    def test_theme_item_of_the_phone_changes_what_is_seen(self) -> None:
        page = self.page("models", width=390, theme="dark")
        self.live(page)
        page.locator(".tabbar-more > button").click()
        page.get_by_role("button", name="Light theme").click()
        page.locator("html[data-theme=light]").wait_for(state="attached")

    def test_labels_of_the_palette_stay_on_one_line(self) -> None:
        self.world.add_model("org/a-model-with-a-very-long-name-of-many-words-instruct-q4_k_m-128k-context")
        page = self.page(width=390)
        self.live(page)
        page.keyboard.press("Control+k")
        page.get_by_label("Command", exact=True).fill("very long")
        items = page.locator("#palette-list li")
        items.first.wait_for()
        for item in items.all():
            self.assertLess(item.bounding_box()["height"], 40)

    def test_words_of_the_header_stay_whole_at_every_width(self) -> None:
        page = self.page()
        self.live(page)
        for width in (1440, 1280, 1120, 1024, 800):
            page.set_viewport_size({"width": width, "height": 860})
            page.evaluate(harness.PAINTED)
            for item in page.locator("header .nav a").all():
                box = item.bounding_box()
                self.assertLess(item.evaluate("a => a.getClientRects().length && a.scrollHeight - a.clientHeight"), 2)
                self.assertLess(box["x"] + box["width"], width - 60, (width, item.inner_text()))

    def test_header_reaches_the_edge_beside_the_scroll_bar(self) -> None:
        page = self.page("config")
        self.live(page)
        self.assertEqual(page.evaluate("getComputedStyle(document.documentElement).scrollbarGutter"), "auto")
        self.assertEqual(page.evaluate("getComputedStyle(document.documentElement).overflowY"), "scroll")
