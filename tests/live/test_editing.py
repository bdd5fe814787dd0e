"""The configuration edited over HTTP, its history, and what a machine has to configure, on the real product."""

import json
import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.live.product import Product, wait_for

TEXT = "apiKeys: [k-first-1]\nmodels:\n  one:\n    cmd: serve --port ${PORT}\n"


class EditingTests(SynchronousTestCase):
    timeout = 60

    def edit(self, product, key, text):
        _, headers, _ = product.ask("/api/config", headers={"x-api-key": key})
        given = {"x-api-key": key, "If-Match": headers["ETag"], "Content-Type": "application/yaml"}
        return product.ask("/api/config", text.encode(), method="PUT", headers=given)[0]

    def models(self, product, key):
        return [row["id"] for row in product.json("/v1/models", headers={"x-api-key": key})["data"]]

    def test_an_edit_is_in_force_and_can_be_taken_back_whole(self):
        with Product(TEXT, "--allow-config-edit") as product:
            changed = TEXT.replace("k-first-1", "k-second-2").replace("one:", "two:")
            self.assertEqual(self.edit(product, "k-first-1", changed), 200)
            key = {"x-api-key": "k-second-2"}
            wait_for(lambda: product.ask("/running", headers=key)[0] == 200, 5, "the new key")
            self.assertEqual(self.models(product, "k-second-2"), ["two"])
            now, before = product.json("/api/config/history", headers=key)["versions"]
            self.assertEqual((now["why"], now["address"], now["in_force"]), ("saved", "127.0.0.1", True))
            self.assertEqual((before["why"], before["in_force"]), ("found", False))
            path = f"/api/config/history/{before['id']}"
            _, _, shown = product.ask(path, headers=key)
            self.assertIn(b"one:", shown)
            self.assertNotIn(b"k-first-1", shown)
            folder = product.config.parent / ".llamaswap"
            self.assertEqual(os.stat(folder).st_mode & 0o777, 0o700)

            refused = product.ask(
                f"{path}/restore", b"", method="POST", headers={**key, "Origin": "http://evil.example"}
            )
            self.assertEqual(refused[0], 403)
            _, headers, _ = product.ask("/api/config", headers=key)
            product.json(f"{path}/restore", b"", method="POST", headers={**key, "If-Match": headers["ETag"]})
            self.assertEqual(product.config.read_text(), TEXT)
            wait_for(lambda: product.ask("/running", headers={"x-api-key": "k-first-1"})[0] == 200, 5, "the old key")
            self.assertEqual(self.models(product, "k-first-1"), ["one"])
            self.assertEqual(product.ask("/api/config", headers=key)[0], 401)

    def test_without_the_flag_there_is_no_history_and_nothing_is_kept(self):
        with Product(TEXT) as product:
            key = {"x-api-key": "k-first-1"}
            self.assertEqual(self.edit(product, "k-first-1", TEXT + "#\n"), 403)
            for path in ("/api/config/history", "/api/discover"):
                self.assertEqual(product.ask(path, headers=key)[0], 403)
            self.assertFalse((product.config.parent / ".llamaswap").exists())


class DiscoveryTests(SynchronousTestCase):
    timeout = 60

    def test_a_model_on_the_disk_is_offered_and_loads_into_the_configuration(self):
        home = Path(self.mktemp()).absolute()
        (home / "models").mkdir(parents=True)
        (home / "models" / "Tiny-Q4_0.gguf").write_bytes(b"x" * 2000)
        with Product("models: {}\n", "--allow-config-edit", env={"HOME": str(home)}) as product:
            found = {one["name"]: one for one in product.json("/api/discover")["models"]}
            tiny = found["tiny-q4_0"]
            self.assertEqual((tiny["bytes"], tiny["configured_as"]), (2000, None))
            checked = product.json(
                "/api/config/validate",
                f"models:\n{tiny['yaml']}".encode(),
                headers={"Content-Type": "application/yaml"},
            )
            self.assertTrue(checked["valid"], json.dumps(checked))
            self.assertEqual(checked["impact"]["add"], ["tiny-q4_0"])
