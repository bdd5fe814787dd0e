"""The first minutes of a new user with the demo of the README, without the manual."""

from __future__ import annotations

import os
import re
import struct
import sys
from pathlib import Path
from typing import Any

from tests.ui import harness

MODEL = "llama-3b-q4_k_m"
# Stands for llama-server: it fails as that does if the context takes more memory than there is.
ENGINE = """#!{python} -IS
import argparse, os, sys
parser = argparse.ArgumentParser()
for name in ("--port", "--model", "--ctx-size"):
    parser.add_argument(name, default="0")
parser.add_argument("-m", dest="model")
parser.add_argument("-c", dest="ctx_size")
given, _ = parser.parse_known_args()
if int(given.ctx_size or 0) == 0 or int(given.ctx_size) > 8192:
    sys.exit("ggml_backend_alloc: failed to allocate the context: out of memory")
os.execv(sys.executable, [sys.executable, "-IS", "{server}", "--port", given.port, "--model", "llama"])
"""


class DemoServer(harness.RealServer):
    """`llamaswap demo --allow-config-edit` for a user with one model file and an engine."""

    def command(self) -> list[str]:
        (self.folder / "bin").mkdir()
        engine = self.folder / "bin" / "llama-server"
        server = harness.ROOT / "llamaswap" / "demo" / "server.py"
        engine.write_text(ENGINE.format(python=sys.executable, server=server), encoding="utf-8")
        engine.chmod(0o755)
        (self.folder / "models").mkdir()
        head = b"GGUF" + struct.pack("<IQQ", 3, 0, 0)
        (self.folder / "models" / "llama-3b-Q4_K_M.gguf").write_bytes(head + bytes(1024))
        return ["-m", "llamaswap", "demo", "--allow-config-edit", "--listen", "127.0.0.1:0"]

    def surroundings(self) -> tuple[Path, dict[str, str]]:
        home = str(self.folder)
        mine = {"HOME": home, "XDG_CACHE_HOME": f"{home}/.cache", "PATH": f"{home}/bin:{os.environ['PATH']}"}
        return self.folder, mine


class Newcomer(harness.BrowserCase):
    """From the demo to the slow request."""

    def walk(self, width: int) -> None:
        server = DemoServer()
        self.addCleanup(server.stop)
        server.start()
        self.url = server.url
        page = self.page(width=width)
        self.live(page)

        # A model file is added as it is found; the context is more than the machine has memory for.
        self.open(page, "Models")
        page.get_by_role("link", name="Add a model").click()
        page.get_by_role("button", name="Add llama-3b").click()
        page.get_by_label("Context").fill("32768")
        self.save(page)

        # It is loaded, it fails, and the page says why.
        page.get_by_role("button", name="Load", exact=True).first.click()
        page.locator(".toast.error", has_text="was not loaded").wait_for()
        page.get_by_text("failed to allocate the context: out of memory").first.wait_for()
        page.locator(".toast.error").get_by_role("button", name="Dismiss").click()

        # It is mended where the page leads, and loads.
        page.get_by_role("link", name="Edit", exact=True).click()
        page.locator(".cm-line", has_text="32768").click()
        page.keyboard.press("End")
        for _ in "32768":
            page.keyboard.press("Backspace")
        page.keyboard.type("4096")
        self.save(page)
        self.open(page, "Models")
        row = page.locator("tr[data-model='llama-3b-q4_k_m']")
        row.get_by_role("button", name="Load", exact=True).click()
        row.locator(".chip", has_text="ready").wait_for()

        # A chat with it, then with the parrot, which is not loaded: that request is slow.
        for model in (MODEL, "parrot"):
            self.open(page, "Playground")
            page.get_by_label("Model", exact=True).select_option(model)
            page.get_by_role("textbox", name="Message").fill("hello")
            page.get_by_role("textbox", name="Message").press("Enter")
            page.locator(".bubble-foot", has_text="token").last.wait_for()
            page.get_by_role("button", name="New", exact=True).click()

        # The overview's figure of the first token leads to the slowest request, which says what it waited for.
        self.open(page, "Overview")
        page.locator(".figures li", has_text="First token").get_by_role("link").click()
        page.wait_for_url(re.compile("sort=first_token"))
        page.locator("tr[data-id]", has_text="parrot").first.click()
        page.get_by_text(re.compile("Most of the time its model was being loaded")).wait_for()
        self.assertEqual([fault for fault in page.faults if "500" not in fault], [])

    def open(self, page: Any, name: str) -> None:
        """Choose a page in the navigation that this width has."""
        page.locator("nav:visible").get_by_role("link", name=name, exact=True).first.click()

    def save(self, page: Any) -> None:
        page.get_by_role("button", name="Review and save").click()
        page.get_by_role("button", name="Save and apply").click()
        page.get_by_text("Saved and applied").first.wait_for()

    def test_new_user_adds_mends_and_uses_a_model_at_a_desk(self) -> None:
        self.walk(1440)

    def test_new_user_adds_mends_and_uses_a_model_on_a_phone(self) -> None:
        self.walk(390)
