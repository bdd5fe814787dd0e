"""Servers that sleep instead of being stopped: real processes, real requests."""

import json
import os
import signal
import time

from twisted.trial.unittest import SynchronousTestCase

from tests.live.product import Product, alive, wait_for
from tests.live.test_service import chat, config
from tests.live.test_upgrade import upgrade

SLEEP = {"sleep": "POST /sleep?level=1", "wake": "POST /wake_up", "timeout": "3s"}
COLD = 1.0  # seconds a cold start of the stand-in takes


def sleepy(flags="", **more):
    """A model that takes a second to load, and sleeps."""
    return {"flags": f"--ready-after {COLD} {flags}", "sleep": {**SLEEP, **more}}


def pid(product, model):
    return product.json("/v1/chat/completions", chat(model))["pid"]


def took(act):
    began = time.monotonic()
    act()
    return time.monotonic() - began


def sleeping(product):
    return [row["model"] for row in product.json("/running").get("sleeping", [])]


class SleepTests(SynchronousTestCase):
    timeout = 90

    def test_swap_between_suspended_servers_is_many_times_quicker(self):
        with Product(config(one=sleepy(), two=sleepy())) as product:
            first, second = pid(product, "one"), pid(product, "two")
            self.assertEqual((product.running(), sleeping(product)), ({"two": "ready"}, ["one"]))
            detail = product.json("/api/models/one")
            self.assertEqual((detail["state"], detail["asleep"], detail["pid"]), ("stopped", True, first))
            swaps = [took(lambda model=model: pid(product, model)) for model in ("one", "two") * 5]
            self.assertEqual((pid(product, "one"), pid(product, "two")), (first, second))
            self.assertLess(sorted(swaps)[len(swaps) // 2], COLD / 4)
            loaded = product.json("/api/models/one")
            self.assertEqual((len(loaded["load_ms"]), len(loaded["wake_ms"])), (1, 6))

    def test_unload_and_shutdown_end_suspended_servers(self):
        with Product(config(one=sleepy(), two=sleepy())) as product:
            first, second = pid(product, "one"), pid(product, "two")
            product.ask("/api/models/unload/one", b"", method="POST")
            self.assertFalse(alive(first))
            pid(product, "one")
            self.assertEqual(sleeping(product), ["two"])
            product.process.send_signal(signal.SIGTERM)
            self.assertEqual(product.process.wait(15), 0)
            self.assertFalse(alive(second))

    def test_server_that_refuses_to_suspend_is_stopped_without_an_error(self):
        with Product(config(one=sleepy("--sleepless"), two=sleepy())) as product:
            first = pid(product, "one")
            pid(product, "two")
            self.assertFalse(alive(first))
            self.assertEqual(sleeping(product), [])
            self.assertNotEqual(pid(product, "one"), first)

    def test_server_that_hangs_while_it_resumes_is_restarted_for_the_same_request(self):
        with Product(config(one=sleepy("--wake-takes 60"), two="")) as product:
            first = pid(product, "one")
            pid(product, "two")
            self.assertNotEqual(pid(product, "one"), first)
            self.assertFalse(alive(first))

    def test_killed_suspended_server_counts_as_stopped(self):
        with Product(config(one=sleepy(), two="")) as product:
            first = pid(product, "one")
            pid(product, "two")
            os.kill(first, signal.SIGKILL)
            wait_for(lambda: not sleeping(product), 10, "the end of the sleep")
            self.assertNotEqual(pid(product, "one"), first)

    def test_oldest_suspended_server_is_stopped_beyond_the_limit(self):
        text = json.loads(config(one=sleepy(), two=sleepy(), three=sleepy()))
        text["routing"] = {"scheduler": {"settings": {"fifo": {"maxAsleep": 1}}}}
        with Product(json.dumps(text)) as product:
            first = pid(product, "one")
            pid(product, "two")
            pid(product, "three")
            wait_for(lambda: not alive(first), 10, "the end of the oldest")
            self.assertEqual(sleeping(product), ["two"])

    def test_idle_server_is_suspended_and_later_stopped(self):
        with Product(config(one={**sleepy(ttl="1s"), "ttl": 1})) as product:
            first = pid(product, "one")
            wait_for(lambda: sleeping(product) == ["one"], 10, "its sleep")
            wait_for(lambda: not alive(first), 10, "its end")

    def test_upgrade_keeps_suspended_servers(self):
        with Product(config(one=sleepy(), two=sleepy())) as product:
            first = pid(product, "one")
            pid(product, "two")
            self.assertEqual(upgrade(product)["error"], "")
            self.assertEqual(sleeping(product), ["one"])
            self.assertEqual(pid(product, "one"), first)
