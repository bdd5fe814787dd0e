"""Figures, charts and the phases of requests: what the pages draw, and that it is where it belongs."""

from __future__ import annotations

import itertools
import re
from typing import Any

from tests.ui import harness


class Charts(harness.MockCase):
    """Against the mock, with two hours of requests."""

    def overview(self, width: int = 1440, **more: Any) -> Any:
        """The overview with its charts."""
        page = self.page(width=width, **more)
        self.live(page)
        page.locator(".chart .u-over").first.wait_for()
        return page

    def test_figures_have_a_value_and_a_course_and_lead_to_their_requests(self) -> None:
        page = self.overview(bypass_csp=True)
        figures = page.locator(".figures li")
        for _ in self.appearances(page):
            figures.nth(3).wait_for()
            texts = [text.replace("\n", " ") for text in figures.all_inner_texts()]
            for text, pattern in zip(
                texts,
                (r"Requests per minute [\d.]+ 420 requests", r"Tokens per second \d\d\.\d", r"First token, p95 [\d.]+ s",
                 r"Errors 2\.6 % 11 failed"),
                strict=True,
            ):  # fmt: skip
                self.assertRegex(text, pattern)
            self.assertEqual(figures.locator("svg polyline").count(), 4)
            self.accessible(page)
            figures.nth(3).get_by_role("link").click()
            page.wait_for_url(re.compile(r"/ui/requests\?status=error"))
            page.go_back()

    def test_figures_follow_the_range_and_fold_if_it_is_empty(self) -> None:
        page = self.overview()
        first = page.locator(".figures li").first
        first.get_by_text("420 requests").wait_for()
        page.get_by_role("button", name="15 min").click()
        harness.until(lambda: re.search(r"\b5\d requests", first.inner_text()))
        del self.world.rows[:]
        page.get_by_role("button", name="1 h", exact=True).click()
        page.get_by_text("No request ended in this time.").wait_for()

    def test_page_opens_on_the_range_that_holds_data(self) -> None:
        page = self.overview()
        page.get_by_role("button", name="Fit", pressed=True).wait_for()
        ticks = page.locator(".lanes .tick")
        harness.until(lambda: len([text for text in ticks.all_text_contents() if ":" in text]) in range(3, 10))
        left = page.locator(".lanes .seg rect").first.bounding_box()["x"]
        lanes = page.locator(".lanes svg").bounding_box()
        self.assertLess((left - lanes["x"]) / lanes["width"], 0.25, "the first model begins at the left")

    def test_timeline_and_charts_share_one_time_axis(self) -> None:
        page = self.overview()
        for width in (1440, 390):
            page.set_viewport_size(harness.viewport(width))
            page.evaluate(harness.PAINTED)
            line = page.locator(".lanes .lane-line").first.bounding_box()
            for plot in page.locator(".timeline .u-over").all():
                box = plot.bounding_box()
                self.assertLess(abs(box["x"] - line["x"]), 3)
                self.assertLess(abs(box["x"] + box["width"] - line["x"] - line["width"]), 3)

    def test_times_of_an_axis_do_not_run_into_each_other_on_a_phone(self) -> None:
        page = self.overview(390)
        page.locator(".lanes .tick").first.wait_for()
        ticks = "[...document.querySelectorAll('.lanes .tick')].map(tick => tick.getBoundingClientRect())"

        def apart() -> bool:
            boxes = page.evaluate(f"{ticks}.map(({{left, right}}) => [left, right])")
            return all(begin - end > 4 for (_, end), (begin, _) in itertools.pairwise(boxes))

        harness.until(apart)  # its width is measured when it is drawn for the first time

    def test_back_closes_a_request_and_then_leaves_the_page(self) -> None:
        page = self.page("models")
        self.live(page)
        page.get_by_role("link", name="Requests").first.click()
        row = page.locator("tr[data-id]").first
        row.click()
        shown = page.get_by_role("dialog", name=re.compile("Request"))
        shown.wait_for()
        page.go_back()
        self.gone(shown)
        row.click()
        page.keyboard.press("Escape")
        self.gone(shown)
        page.go_back()
        page.get_by_role("heading", name="Models", exact=True).wait_for()

    def test_tooltip_is_at_the_pointer_and_the_legend_has_last_min_and_max(self) -> None:
        page = self.overview()
        chart = page.locator(".chart", has_text="Generation speed")
        plot = chart.locator(".u-over")
        plot.scroll_into_view_if_needed()
        box = plot.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 30)
        tip = chart.locator(".chart-tip")
        tip.get_by_text("t/s").first.wait_for()
        over = tip.bounding_box()
        self.assertLess(abs(over["x"] - box["x"] - box["width"] / 2), 40)
        self.assertEqual(chart.locator("thead th").all_inner_texts()[1:], ["last", "min", "max"])
        row = chart.locator("tbody tr", has_text="gpt-oss-120b").inner_text()
        self.assertRegex(row, r"([\d.]+ t/s\s*){3}")
        page.mouse.move(5, 5)
        self.gone(page.locator(".chart-tip:visible"))

    def test_part_of_a_chart_is_chosen_with_the_pointer_for_all_of_them(self) -> None:
        page = self.overview()
        plot = page.locator(".chart .u-over").first
        plot.scroll_into_view_if_needed()
        box = plot.bounding_box()
        page.mouse.move(box["x"] + 100, box["y"] + 20)
        page.mouse.down()
        page.mouse.move(box["x"] + 300, box["y"] + 20, steps=4)
        page.mouse.up()
        page.get_by_role("button", name=re.compile("back to live")).wait_for()
        first = page.locator(".figures li").first
        harness.until(lambda: "420 requests" not in first.inner_text())
        page.get_by_role("button", name=re.compile("back to live")).click()
        first.get_by_text("420 requests").wait_for()

    def test_empty_panels_are_only_a_head(self) -> None:
        self.world.entries = []
        page = self.overview()
        panel = page.locator(".panel", has=page.get_by_role("heading", name="Running"))
        panel.get_by_text("nothing").wait_for()
        self.assertLess(panel.bounding_box()["height"], 50)


class Phases(harness.MockCase):
    """Where the time of a request went."""

    def test_columns_of_requests_say_what_they_waited_for(self) -> None:
        page = self.page("requests", width=1440)
        self.live(page)
        slow = page.locator("tr[data-id='420']")
        slow.wait_for()
        heads = page.locator("thead th").all_inner_texts()
        for head in ("Waited", "Loaded", "First token", "Breakdown", "Key"):
            self.assertIn(head, heads)
        self.assertRegex(slow.inner_text(), r"\d s\s+[\d.]+ s\s+[\d.]+ s")
        self.assertIn("Loaded the model", slow.locator(".phasebar").get_attribute("aria-label"))
        page.get_by_role("button", name="First token").click()
        page.wait_for_url(re.compile("sort=first_token"))

    def test_columns_of_requests_fit_into_the_window(self) -> None:
        page = self.page("requests", width=1280)
        self.live(page)
        page.locator("tr[data-id='420'] .phasebar").wait_for()
        box = page.get_by_role("region", name="Finished requests")
        self.assertLessEqual(box.evaluate("box => box.scrollWidth - box.clientWidth"), 0)

    def test_slow_request_says_why_in_its_waterfall(self) -> None:
        page = self.page("requests?open=420", bypass_csp=True)
        self.live(page)
        for _ in self.appearances(page):
            waterfall = page.locator("section", has_text="Where the time went").locator("table.waterfall")
            waterfall.locator("tbody th").nth(3).wait_for()
            names = waterfall.locator("tbody th").all_inner_texts()
            self.assertEqual(names, ["Waited for its turn", "Loaded the model", "Read the prompt", "Generated"])
            page.get_by_text(re.compile("Most of the time its model was being loaded: .* of ")).wait_for()
            usual = waterfall.locator("tbody tr", has_text="Read the prompt").locator("td").nth(1)
            harness.until(lambda cell=usual: re.search(r"\d", cell.inner_text()))
            self.accessible(page)


class RealPhases(harness.RealCase):
    """The real server measures the phases."""

    def test_cold_request_was_mostly_waiting_for_its_load(self) -> None:
        harness.unload(self.url)
        before = harness.newest(self.url)
        harness.hold(self.url).close()
        number = harness.until(lambda: harness.newest(self.url) > before and harness.newest(self.url))
        row = harness.ask(f"{self.url}/api/metrics/activity?limit=1")["data"][0]
        self.assertGreater(row["loaded_ms"], 1000)
        self.assertGreaterEqual(row["ttft_ms"], row["loaded_ms"])
        page = self.page(f"requests?open={number}")
        page.locator("table.waterfall tbody th", has_text="Loaded the model").wait_for()
        page.goto(f"{self.url}/ui/")
        page.locator(".figures li", has_text="Requests per minute").wait_for()


class ModelFacts(harness.MockCase):
    """What tells models apart, and how one is found among many."""

    def test_table_of_models_has_context_quantisation_file_load_time_and_group(self) -> None:
        page = self.page("models", bypass_csp=True)
        self.live(page)
        for width, _ in self.appearances(page):
            row = page.locator("tr[data-model='gpt-oss-120b']")
            row.get_by_text("MXFP4").wait_for()
            shown = row.inner_text()
            self.assertIn("128k", shown)
            self.assertEqual("59.0 GiB" in shown, width > 1100)
            self.assertEqual("22 s" in shown, width > 1100)
            self.assertEqual("big" in shown.splitlines() or "\tbig\t" in shown, width == 1440)
            self.fits(page)
            self.accessible(page)

    def test_model_that_is_kept_loaded_is_marked_with_the_pin(self) -> None:
        self.world.pins.add("gpt-oss-120b")
        page = self.page("models")
        self.live(page)
        page.locator("tr[data-model='gpt-oss-120b'] .kept").wait_for()
        self.assertEqual(page.locator(".kept").count(), 1)

    def test_model_is_searched_for_and_is_among_the_last_used_afterwards(self) -> None:
        page = self.page("playground?tab=chat")
        self.live(page)
        page.get_by_role("button", name="Search the models").first.click()
        dialog = page.locator("dialog")
        self.assertEqual(dialog.locator("h4").first.inner_text(), "Loaded")
        dialog.get_by_label("Search models").fill("glm 4.5")
        harness.until(lambda: dialog.locator(".picks button").count() == 1)
        page.keyboard.press("Enter")
        self.gone(dialog)
        select = page.locator(".modelselect select").first
        self.assertEqual(select.input_value(), "glm-4.5-air")
        self.assertEqual(select.locator("optgroup[label='Last used'] option").all_text_contents(), ["glm-4.5-air"])
