"""The household of docs/keys.rst, word for word: three keys on the demo, from `keys add` to the page of their use."""

import json
import os
import re
import subprocess
import sys

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.live.product import ROOT, Product
from tests.ui.harness import CHROMIUM, why_not

DOCS = ROOT / "docs" / "keys.rst"


def shell_blocks():
    """The commands of the section about the demo."""
    section = (
        DOCS.read_text(encoding="utf-8").partition("Try it with the demo\n")[2].partition("What a key may do\n")[0]
    )
    return [re.sub("(?m)^   ", "", block) for block in re.findall(r"code-block:: sh\n\n((?:   .*\n)+)", section)]


class HouseholdTests(SynchronousTestCase):
    timeout = 120

    def setUp(self):
        self.start, self.commands = shell_blocks()
        program = ("-m", "llamaswap")
        words = self.start.partition("#")[0].split()[1:]
        self.product = Product(None, *words, "--listen", "127.0.0.1:0", program=program).__enter__()
        self.addCleanup(self.product.__exit__)
        self.folder = self.product.home

    def run_commands(self):
        """What the commands print, in a shell in which `llamaswap` is this one and its address that of the test."""
        tools = self.folder / "bin"
        tools.mkdir()
        (tools / "llamaswap").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m llamaswap "$@"\n')
        (tools / "llamaswap").chmod(0o755)
        env = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{tools}:{os.environ['PATH']}"}
        env["LLAMASWAP_URL"] = self.product.url
        text = "set -e\n" + self.commands.replace("localhost:8080", self.product.url)
        ran = subprocess.run(
            ["sh"], input=text, cwd=self.folder, env=env, capture_output=True, text=True, timeout=90, check=False
        )
        self.assertEqual(ran.returncode, 0, ran.stderr)
        return ran.stdout

    def ask(self, key, path, body=None):
        return self.product.ask(path, body, headers={"Authorization": f"Bearer {self.key(key)}"})

    def key(self, name):
        return (self.folder / f"{name}.key").read_text().strip()

    def test_documented_commands_make_a_household_and_the_page_shows_its_use(self):
        said = self.run_commands()
        self.assertIn("the configuration is reloaded", said)
        self.assertIn(" 200 OK", said)
        self.assertIn("x-ratelimit-limit-tokens: 200000", said)
        for key, model, status in (("child", "poet", 403), ("phone", "poet", 200), ("parent", "parrot", 200)):
            body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
            self.assertEqual(self.ask(key, "/v1/chat/completions", body)[0], status, key)
        names = [row["id"] for row in json.loads(self.ask("child", "/v1/models")[2])["data"]]
        self.assertEqual(names, ["parrot"])
        self.assertEqual([self.ask(key, "/api/usage")[0] for key in ("child", "phone", "parent")], [403, 403, 200])
        self.assertEqual(self.product.ask("/v1/models")[0], 401)
        if reason := why_not():
            raise SkipTest(f"the page was not looked at: {reason}")
        rows = self.usage_page()
        self.assertRegex(rows["child"], r"parrot")
        self.assertRegex(rows["phone"], r"poet")
        self.assertEqual(set(rows), {"child", "phone", "parent"})

    def usage_page(self):
        """The rows of the page's table of use, by key, after the parent's key was entered."""
        from playwright.sync_api import sync_playwright

        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page()
            page.goto(f"{self.product.url}/ui/")
            page.get_by_label("API key").fill(self.key("parent"))
            page.get_by_label("API key").press("Enter")
            page.get_by_role("link", name="Usage").click()
            page.get_by_text("of 200k in 24 h").wait_for()
            page.locator("table.usage td", has_text="parent").wait_for()
            rows = [row.inner_text().split("\t") for row in page.locator("table.usage tbody tr").all()]
            browser.close()
        return {row[0]: " ".join(row[1:]) for row in rows}
