"""Log files of a running service."""

import json
import os

from twisted.trial.unittest import SynchronousTestCase

from tests.live.product import Product, wait_for
from tests.live.test_service import chat, config


class LogFileTests(SynchronousTestCase):
    timeout = 60

    def test_each_models_output_is_in_its_file_and_files_do_not_grow_for_ever(self):
        folder = os.path.abspath(self.mktemp())
        text = json.loads(config(one="--say FIRST", two=f"--flood {5 * 1024 * 1024}"))
        text["logFiles"] = {"folder": folder, "size": 1, "keep": 2}
        with Product(json.dumps(text)) as product:
            product.json("/v1/chat/completions", chat("one"))
            product.json("/v1/chat/completions", chat("two"))

            def there():
                return sorted(os.listdir(folder)) if os.path.isdir(folder) else []

            wait_for(lambda: "model-two.log.2" in there(), 20, "rotation")
        self.assertEqual(
            there(), ["llamaswap.log", "model-one.log", "model-two.log", "model-two.log.1", "model-two.log.2"]
        )
        with open(os.path.join(folder, "model-one.log")) as file:
            self.assertIn("FIRST\n", file.read())
        with open(os.path.join(folder, "llamaswap.log")) as file:
            said = file.read()
        self.assertIn("ready one", said)
        self.assertIn("shutdown complete", said)
        for name in there():
            self.assertLessEqual(os.path.getsize(os.path.join(folder, name)), 1024 * 1024)

    def test_a_folder_that_cannot_be_written_harms_nothing(self):
        text = json.loads(config(one=""))
        text["logFiles"] = {"folder": "/dev/null/logs"}
        with Product(json.dumps(text)) as product:
            product.json("/v1/chat/completions", chat("one"))
            wait_for(lambda: "log files cannot be written" in product.output, 10, "the warning")
            product.json("/v1/chat/completions", chat("one"))
