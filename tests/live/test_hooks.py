"""Hooks of a running service: real commands around real servers."""

import json
import os
import sys

from twisted.trial.unittest import SynchronousTestCase

from tests.live.product import Product, wait_for
from tests.live.test_service import chat, config


class HooksTests(SynchronousTestCase):
    timeout = 60

    def test_a_models_life_is_told_in_order(self):
        code = "import os, sys; open(sys.argv[1], 'a').write(os.environ['LLAMASWAP_EVENT'] + chr(10))"
        told = self.mktemp() + ".log"
        with open(told, "w"):
            pass
        note = f'{sys.executable} -I -S -c "{code}" {os.path.abspath(told)}'
        events = ("before_load", "after_ready", "before_unload", "after_unload", "on_failure")
        text = json.loads(config(one="", bad={"cmd": f"{sys.executable} -c 'raise SystemExit(3)' --port ${{PORT}}"}))
        text["hooks"] = {event: [note] for event in events}
        with Product(json.dumps(text)) as product:
            product.json("/v1/chat/completions", chat("one"))
            product.ask("/api/models/unload", b"", method="POST")
            self.assertGreaterEqual(product.ask("/v1/chat/completions", chat("bad"))[0], 500)

            def lines():
                with open(told) as file:
                    return file.read().split()

            wait_for(lambda: "on_failure" in lines(), 10, "on_failure")
            self.assertEqual([event for event in lines() if event.startswith("before")][:2], list(events[0:3:2]))
            self.assertEqual(set(lines()), set(events))

    def test_what_follows_an_unload_is_done_when_the_service_ends_too(self):
        code = "import sys, time; time.sleep(1); print(1, flush=True); open(sys.argv[1], 'w')"
        told = os.path.abspath(self.mktemp())
        text = json.loads(config(one=""))
        text["hooks"] = {"after_unload": [f'{sys.executable} -I -S -c "{code}" {told}']}
        with Product(json.dumps(text)) as product:
            product.json("/v1/chat/completions", chat("one"))
            product.process.terminate()
            product.process.wait(20)
            self.assertTrue(os.path.exists(told))
