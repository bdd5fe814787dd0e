"""Every page in both themes and at three widths: no errors, no sideways scrolling, nothing axe calls serious."""

from __future__ import annotations

import unittest
from collections.abc import Callable
from typing import Any

from tests.ui import harness, mock

PAGES = {
    "overview": "",
    "models": "models",
    "model": "model?id=poet",
    "requests": "requests",
    "request": "requests?open=1",
    "swap": "swap?id=1",
    "logs": "logs",
    "config": "config",
    "system": "system",
    "usage": "usage",
    "hardware": "system?tab=hardware",
    "settings": "system?tab=settings",
    **{f"play-{tab}": f"playground?tab={tab}" for tab in (
        "chat", "compare", "complete", "images", "speech", "transcription", "rerank", "embeddings", "loadtest")},
}  # fmt: skip
CROWDED = {
    "overview": "",
    "models": "models",
    "model": "model?id=gpt-oss-120b",
    "requests": "requests",
    "request": "requests?open=420",
    "swap": "swap?id=9",
    "logs": "logs?src=proxy|upstream",
    "system": "system",
    "usage": "usage",
}


class Looks(harness.BrowserCase):
    """The matrix; the subclasses say against whom."""

    __test__ = False
    name = ""

    def matrix(self, page_name: str, where: str) -> None:
        """One page, loaded once and looked at in each width and theme."""
        page = self.page(where, bypass_csp=True)
        self.settled(page)
        for width, theme in self.appearances(page):
            with self.subTest(page=page_name, width=width, theme=theme), self.telling(f"{page_name}-{width}-{theme}"):
                if harness.SHOTS:
                    harness.SHOTS.mkdir(parents=True, exist_ok=True)
                    page.screenshot(path=harness.SHOTS / f"{self.name}-{page_name}-{width}-{theme}.png")
                self.fits(page)
                self.accessible(page)
                self.assertEqual(page.faults, [])


def one_test_a_page(pages: dict[str, str]) -> Callable[[type[Looks]], type[Looks]]:
    """Give a class a test for each of the pages."""

    def add(case: type[Looks]) -> type[Looks]:
        for name, where in pages.items():

            def test(self: Looks, name: str = name, where: str = where) -> None:
                self.matrix(name, where)

            setattr(case, f"test_{name.replace('-', '_')}_in_three_widths_and_both_themes", test)
        return case

    return add


@one_test_a_page(PAGES)
class RealLooks(Looks, harness.RealCase):
    """The real server, after a load, a swap and a failure."""

    __test__ = True
    name = "real"

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        for model in ("parrot", "poet", "broken", "poet"):
            chat = {"model": model, "messages": [{"role": "user", "content": "Hello"}]}
            try:
                harness.ask(f"{cls.url}/v1/chat/completions", chat)
            except OSError:
                continue


@one_test_a_page(CROWDED)
class CrowdedLooks(Looks, harness.MockCase):
    """The mock: many models, two GPUs, long histories."""

    __test__ = True
    name = "crowded"


@one_test_a_page({"overview": "", "models": "models"})
class MemoryLooks(Looks, harness.MockCase):
    """The mock with the memory of its devices and models."""

    __test__ = True
    name = "memory"

    def setUp(self) -> None:
        super().setUp()
        self.world.memory = mock.MEMORY

    def settled(self, page: Any) -> None:
        super().settled(page)
        shown = page.locator(".device-facts, th:has-text('Memory')").first
        shown.wait_for(state="attached")
        shown.evaluate("element => element.scrollIntoView({block: 'center'})")

    def test_bars_name_models_other_programs_and_what_is_free(self) -> None:
        page = self.page()
        bar = page.get_by_role("img", name="GPU1 memory: ")
        bar.wait_for()
        self.assertEqual(
            bar.get_attribute("aria-label"),
            "GPU1 memory: qwen3-coder-30b 19.2 GiB, other programs (Xorg) 900 MiB, free 2.9 GiB, reserve 1.0 GiB",
        )
        page.locator(".device-facts", has_text="gemma-3-27b (estimated: gguf, squeezed to fit) ~2.0 GiB").wait_for()
        page.locator(".advice", has_text="llamaswap memory enable").wait_for()
        page.locator(".loaded", has_text="49.8 GiB").wait_for()

    def test_models_show_what_they_use_or_need(self) -> None:
        page = self.page("models")
        page.locator("tr[data-model=gpt-oss-120b]", has_text="49.8 GiB").wait_for()
        page.locator("tr[data-model=bge-m3]", has_text="~1.2 GiB").wait_for()
        page.locator("tr[data-model=whisper-large-v3]", has_text="–").wait_for()
        page.get_by_role("columnheader", name="Memory").wait_for()
        page.goto(f"{self.url}/ui/model?id=bge-m3")
        page.locator(".facts", has_text="~1.2 GiB; learned from 40 samples").wait_for()


if __name__ == "__main__":
    unittest.main()
