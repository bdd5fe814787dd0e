"""What a real llama.cpp server has read, over a swap."""

import json
import sys
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.live.product import Product, free_range, wait_for
from tests.live.test_real_llama import LIVE, MISSING, REPLY

LONG = " ".join(f"word{number}" for number in range(120))


def config(folder, **slots):
    server = f'"{sys.executable}" "{LIVE}/llama_server.py" --port ${{PORT}} -t 1 -a ${{MODEL_ID}}'
    models = {}
    for model, reply in REPLY.items():
        files = f'-m "{folder}/{model}.gguf" --slot-save-path "{folder}"'
        models[model] = {"cmd": f"""{server} {files} --make 'chat --name {model} --reply "{reply}"'"""}
    models["alpha"]["slots"] = {"save": True, **slots}
    return json.dumps({"healthCheckTimeout": 60, "startPort": free_range(), "models": models})


class SlotTests(SynchronousTestCase):
    if MISSING:
        skip = f"not installed: {', '.join(MISSING)} (extra: live)"

    timeout = 180

    def complete(self, product, model):
        return product.json("/completion", {"model": model, "prompt": LONG, "n_predict": 4})["timings"]

    def cache(self, product):
        return product.json("/api/models/alpha")["slot_cache"]

    def test_processed_prompt_is_not_processed_again_after_a_swap(self):
        with tempfile.TemporaryDirectory(prefix="llamaswap-slots-") as folder, Product(config(folder)) as product:
            first = self.complete(product, "alpha")
            self.assertGreater(first["prompt_n"], 100)
            self.complete(product, "beta")
            self.assertGreater(self.cache(product)["saved_tokens"], 100)
            self.assertTrue(Path(folder, "llamaswap-alpha-0.bin").exists())
            second = self.complete(product, "alpha")
            self.assertLess(second["prompt_n"], first["prompt_n"] / 10)
            self.assertGreater(second["cache_n"], 100)
            wait_for(lambda: self.cache(product)["trials"] == 1, 10, "the measure of it")
            self.complete(product, "beta")
            fresh = self.complete(product, "beta")
            self.assertGreater(fresh["cache_n"], 100, "the same server still has it")

    def test_slot_saving_slower_than_processing_is_given_up(self):
        # The tiny model reads thousands of words in a second: two requests and two files cost more than that saves.
        with tempfile.TemporaryDirectory(prefix="llamaswap-slots-") as folder, Product(config(folder)) as product:
            for restores in range(4):
                self.complete(product, "alpha")
                # A request is looked at a moment after its end; the next swap is not to come in between.
                wait_for(lambda done=restores: self.cache(product)["trials"] == done, 10, "the measure of it")
                self.complete(product, "beta")
            told = self.cache(product)
            self.assertIn(told["state"], ("on", "given up"))
            self.assertGreaterEqual(told["trials"], 3)
            self.assertEqual(told["state"] == "given up", told["gain_ms"] < told["cost_ms"], told)
