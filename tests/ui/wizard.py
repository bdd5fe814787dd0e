"""Models are added, disabled and deleted on the page."""

from __future__ import annotations

import re
import unittest
from typing import Any

from tests.ui import harness, mock


class Wizard(harness.MockCase):
    """Against the mock: a search that finds things, a hub, two GPUs."""

    def setUp(self) -> None:
        super().setUp()
        self.world.memory = mock.MEMORY

    def test_found_model_becomes_an_entry_with_settings_and_is_saved(self) -> None:
        page = self.page("models")
        self.live(page)
        page.get_by_role("link", name="Add a model").click()
        page.get_by_role("button", name="Add qwen3-8b").click()
        page.get_by_label("Context").fill("16000")
        page.get_by_label("GPU layers").fill("99")
        page.get_by_label("Unload after").fill("600")
        page.get_by_label("Aliases").fill("small\nqwen")
        page.locator("li", has_text="5.9 GiB of GPU1").wait_for()
        page.get_by_text("All settings").click()
        page.get_by_label(re.compile("^unlisted")).select_option("true")
        shown = page.locator("pre.code").inner_text()
        for line in ("qwen3-8b", "--ctx-size 16000", "--n-gpu-layers 99", "ttl: 600", "- small", "unlisted: true"):
            self.assertIn(line, shown)
        page.get_by_role("button", name="Review and save").click()
        page.get_by_role("dialog").get_by_role("button", name="Save and apply").click()
        page.get_by_text("Saved and applied").wait_for()
        self.assertIn("      --ctx-size 16000\n", self.world.config)
        self.assertIn("gpt-oss-120b", self.world.config)
        self.assertEqual(page.faults, [])

    def test_refused_entry_says_why_and_is_not_saved(self) -> None:
        page = self.page("add")
        page.get_by_role("button", name="Own command").click()
        page.get_by_label("ID the name that requests use").fill("bad")
        page.get_by_role("button", name="Review and save").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_text("models.bad: no cmd").wait_for()
        self.assertTrue(dialog.get_by_role("button", name="Save and apply").is_disabled())

    def test_model_of_hugging_face_is_downloaded_and_set_up(self) -> None:
        page = self.page("add?from=hub")
        page.get_by_label("Search Hugging Face").fill("tiny")
        page.get_by_label("Search Hugging Face").press("Enter")
        page.get_by_role("button", name="org/tiny-llama-GGUF").click()
        row = page.locator(".quants tr", has_text="F16")
        row.get_by_text("not all of it fits on the GPUs").wait_for()
        page.get_by_role("button", name="Download Q4_K_M").click()
        page.locator(".download", has_text="%").wait_for()
        page.get_by_role("button", name="Set up tiny-llama").click()
        page.locator("pre.code", has_text="/hub/tiny-llama.gguf").wait_for()
        self.assertEqual(page.faults, [])

    def test_missing_network_is_said_with_what_to_do_instead(self) -> None:
        self.world.offline = True
        page = self.page("add?from=hub")
        page.get_by_role("button", name="Search", exact=True).click()
        page.get_by_text("Hugging Face cannot be reached").wait_for()
        page.get_by_text("put a GGUF file into a folder").wait_for()

    def test_pages_look_right_in_all_widths_and_both_themes(self) -> None:
        for name, where in (("found", "add"), ("hub", "add?from=hub"), ("form", "add")):
            page = self.page(where, bypass_csp=True)
            self.settled(page)
            if name == "form":
                page.get_by_role("button", name="Add qwen3-8b").click()
                page.locator("li", has_text="of GPU1").wait_for()
                page.get_by_text("All settings").click()
            if name == "hub":
                page.get_by_role("button", name="Search", exact=True).click()
                page.get_by_role("button", name="org/tiny-llama-GGUF").click()
                page.locator(".quants tr").first.wait_for()
            for width, theme in self.appearances(page):
                with self.subTest(page=name, width=width, theme=theme):
                    if harness.SHOTS:
                        page.screenshot(path=harness.SHOTS / f"add-{name}-{width}-{theme}.png", full_page=True)
                    self.fits(page)
                    self.accessible(page)
            page.close()


class RealWizard(harness.RealCase):
    """Against the real server: what is saved is used."""

    def open(self, where: str) -> Any:
        page = self.page(where)
        self.live(page)
        return page

    def confirm(self, page: Any) -> None:
        page.get_by_role("dialog").get_by_role("button", name="Save and apply").click()
        page.get_by_text("Saved and applied").first.wait_for()
        self.gone(page.get_by_role("dialog"))

    def test_model_is_added_fails_is_disabled_enabled_and_deleted(self) -> None:
        page = self.open("add")
        page.get_by_role("button", name="Own command").click()
        page.get_by_label("ID the name that requests use").fill("mine")
        page.get_by_role("textbox", name="Command").fill("/no/such/engine --port ${PORT} -m /no/such/model.gguf")
        page.get_by_role("button", name="Review and save").click()
        page.get_by_role("dialog").get_by_text("mine", exact=True).wait_for()
        for name in ("/no/such/engine is not on this machine", "/no/such/model.gguf does not exist"):
            page.get_by_role("dialog").get_by_text(name).wait_for()
        self.confirm(page)
        page.get_by_role("heading", name="mine", exact=True).wait_for()
        page.get_by_role("link", name="Edit", exact=True).click()
        page.locator(".cm-activeLine", has_text="mine:").wait_for()
        page.go_back()
        self.assertIn("mine", [model["id"] for model in harness.ask(f"{self.url}/v1/models")["data"]])
        page.get_by_role("button", name="Disable", exact=True).click()
        self.confirm(page)
        harness.until(lambda: "mine" not in [m["id"] for m in harness.ask(f"{self.url}/v1/models")["data"]])
        page = self.open("add")
        page.get_by_role("button", name="Enable", exact=True).click()
        self.confirm(page)
        harness.until(lambda: "mine" in [m["id"] for m in harness.ask(f"{self.url}/v1/models")["data"]])
        page = self.open("model?id=mine")
        page.get_by_role("button", name="Delete", exact=True).click()
        self.confirm(page)
        harness.until(lambda: "mine" not in [m["id"] for m in harness.ask(f"{self.url}/v1/models")["data"]])
        self.assertNotIn("mine", harness.ask(f"{self.url}/api/config"))

    def test_memory_of_a_command_is_estimated(self) -> None:
        answer = harness.ask(f"{self.url}/api/memory/estimate", {"cmd": "llama-server -m /no/such.gguf"})
        self.assertFalse(answer["known"])


if __name__ == "__main__":
    unittest.main()
