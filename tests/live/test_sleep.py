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

    def test_a_swap_is_a_sleep_and_a_wake_and_many_times_quicker(self):
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

    def test_an_unload_ends_sleeping_ones_and_so_does_the_end(self):
        with Product(config(one=sleepy(), two=sleepy())) as product:
            first, second = pid(product, "one"), pid(product, "two")
            product.ask("/api/models/unload/one", b"", method="POST")
            self.assertFalse(alive(first))
            pid(product, "one")
            self.assertEqual(sleeping(product), ["two"])
            product.process.send_signal(signal.SIGTERM)
            self.assertEqual(product.process.wait(15), 0)
            self.assertFalse(alive(second))

    def test_one_that_refuses_to_sleep_is_stopped_and_nobody_notices(self):
        with Product(config(one=sleepy("--sleepless"), two=sleepy())) as product:
            first = pid(product, "one")
            pid(product, "two")
            self.assertFalse(alive(first))
            self.assertEqual(sleeping(product), [])
            self.assertNotEqual(pid(product, "one"), first)

    def test_one_that_hangs_when_woken_is_started_anew_for_the_same_request(self):
        with Product(config(one=sleepy("--wake-takes 60"), two="")) as product:
            first = pid(product, "one")
            pid(product, "two")
            self.assertNotEqual(pid(product, "one"), first)
            self.assertFalse(alive(first))

    def test_one_that_is_killed_in_its_sleep_is_just_stopped(self):
        with Product(config(one=sleepy(), two="")) as product:
            first = pid(product, "one")
            pid(product, "two")
            os.kill(first, signal.SIGKILL)
            wait_for(lambda: not sleeping(product), 10, "the end of the sleep")
            self.assertNotEqual(pid(product, "one"), first)

    def test_too_many_sleepers_and_the_oldest_is_stopped(self):
        text = json.loads(config(one=sleepy(), two=sleepy(), three=sleepy()))
        text["routing"] = {"scheduler": {"settings": {"fifo": {"maxAsleep": 1}}}}
        with Product(json.dumps(text)) as product:
            first = pid(product, "one")
            pid(product, "two")
            pid(product, "three")
            wait_for(lambda: not alive(first), 10, "the end of the oldest")
            self.assertEqual(sleeping(product), ["two"])

    def test_idleness_is_sleep_and_then_the_end(self):
        with Product(config(one={**sleepy(ttl="1s"), "ttl": 1})) as product:
            first = pid(product, "one")
            wait_for(lambda: sleeping(product) == ["one"], 10, "its sleep")
            wait_for(lambda: not alive(first), 10, "its end")

    def test_an_upgrade_carries_sleeping_ones(self):
        with Product(config(one=sleepy(), two=sleepy())) as product:
            first = pid(product, "one")
            pid(product, "two")
            self.assertEqual(upgrade(product)["error"], "")
            self.assertEqual(sleeping(product), ["one"])
            self.assertEqual(pid(product, "one"), first)
