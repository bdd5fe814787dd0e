"""Upgrades in place while requests run and wait: which of them end, how, and when."""

import http.client
import json
import os
import signal
import threading
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.live.product import ROOT, Product, wait_for, wait_for_serving
from tests.live.test_service import chat, config, pids


def draining(drain=30, **models):
    """A configuration of stand-in engines with this `drainTimeout`."""
    return json.dumps({**json.loads(config(**models)), "drainTimeout": drain})


class Request:
    """One request in a thread; `status` is None if its connection broke."""

    def __init__(self, product, body):
        self.status, self.headers, self.body, self.error = None, {}, b"", None
        self._product, self._request = product, body
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        try:
            self.status, self.headers, self.body = self._product.ask("/v1/chat/completions", self._request, timeout=60)
        except http.client.IncompleteRead as error:
            self.body, self.error = error.partial, error
        except Exception as error:
            self.error = error

    def wait(self, seconds=30):
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "the request does not end"
        return self


def request_upgrade(product):
    os.kill(product.process.pid, signal.SIGUSR2)


class UpgradeCase(SynchronousTestCase):
    timeout = 120

    def force(self, product):
        """Ask for an upgrade, and again once it waits for requests."""
        request_upgrade(product)
        wait_for(lambda: self.phase(product) == "waiting", 30, "the wait for requests")
        request_upgrade(product)

    def phase(self, product):
        return product.json("/api/upgrade", timeout=60)["phase"]


class RunningRequestTests(UpgradeCase):
    def test_stream_is_not_cut_by_repeated_upgrade_requests_within_the_drain_timeout(self):
        with Product(draining(one="--tokens 160 --interval 0.05")) as product:
            stream = Request(product, chat("one", stream=True))
            wait_for_serving(product, "one")
            for _ in range(8):
                request_upgrade(product)
                time.sleep(0.5)
            stream.wait()
            self.assertEqual(stream.body.count(b'"tok'), 160, stream.error)
            self.assertIn(b"[DONE]", stream.body)
            wait_for(lambda: product.json("/api/upgrade", timeout=60)["count"] == 1, 30, "the upgrade")

    def test_forced_upgrade_closes_a_stream_only_after_the_drain_timeout(self):
        with Product(draining(3, one="--tokens 1200 --interval 0.05")) as product:
            (server,) = pids(product, "one")
            stream = Request(product, chat("one", stream=True))
            wait_for_serving(product, "one")
            self.force(product)
            forced = time.monotonic()
            stream.wait()
            self.assertGreater(time.monotonic() - forced, 2.5)
            self.assertGreater(stream.body.count(b'"tok'), 50)
            self.assertIn(b"is being upgraded", stream.body)
            wait_for(lambda: product.json("/api/upgrade", timeout=60)["count"] == 1, 30, "the upgrade")
            self.assertEqual(pids(product, "one"), [server])

    def test_configuration_that_broke_while_an_upgrade_waits_costs_no_request(self):
        with Product(draining(3, one="--tokens 160 --interval 0.05")) as product:
            stream = Request(product, chat("one", stream=True))
            wait_for_serving(product, "one")
            self.force(product)
            product.config.write_text("models: [")
            wait_for(lambda: "the service runs on" in product.output, 30, "the end of the upgrade")
            stream.wait()
            self.assertEqual(stream.body.count(b'"tok'), 160, stream.error)
            self.assertIn("configuration", product.json("/api/upgrade")["error"])
            self.assertNotIn("closing", product.output)

    def test_code_that_broke_while_an_upgrade_waits_leaves_the_old_one_serving(self):
        shadow = Path(self.mktemp()).resolve()
        shadow.mkdir(parents=True)
        with Product(draining(one="--tokens 100 --interval 0.05"), env={"PYTHONPATH": f"{shadow}:{ROOT}"}) as product:
            stream = Request(product, chat("one", stream=True))
            wait_for_serving(product, "one")
            request_upgrade(product)
            wait_for(lambda: self.phase(product) == "waiting", 30, "the wait for requests")
            (shadow / "llamaswap").mkdir()
            (shadow / "llamaswap" / "__init__.py").write_text("raise ImportError('half an installation')\n")
            stream.wait()
            wait_for(lambda: "the service runs on" in product.output, 30, "the end of the upgrade")
            self.assertIn("half an installation", product.json("/api/upgrade")["error"])
            self.assertIsNone(product.process.poll())


class WaitingRequestTests(UpgradeCase):
    def test_waiting_request_is_answered_503_with_retry_after_by_a_forced_upgrade(self):
        with Product(draining(2, one="--tokens 1200 --interval 0.05", two="")) as product:
            stream = Request(product, chat("one", stream=True))
            wait_for_serving(product, "one")
            waiting = [Request(product, chat("two")) for _ in range(5)]
            wait_for(lambda: len(product.json("/api/queue")["queue"]) == 5, 10, "the requests in the queue")
            self.force(product)
            for request in waiting:
                request.wait()
                self.assertEqual((request.status, request.error), (503, None))
                self.assertGreaterEqual(int(request.headers["Retry-After"]), 1)
                self.assertIn(b"upgrade", request.body)
            stream.wait()
            wait_for(lambda: product.json("/api/upgrade", timeout=60)["count"] == 1, 30, "the upgrade")
            product.json("/v1/chat/completions", chat("two"))

    def test_request_for_a_model_that_loads_is_answered_503_by_a_forced_upgrade(self):
        with Product(draining(2, slow="--ready-after 12", two="")) as product:
            waiting = Request(product, chat("slow"))
            wait_for(lambda: product.running() == {"slow": "starting"}, 10, "the start of the model")
            self.force(product)
            self.assertEqual((waiting.wait().status, waiting.error), (503, None))
            self.assertIn("Retry-After", waiting.headers)
            wait_for(lambda: product.json("/api/upgrade", timeout=60)["count"] == 1, 30, "the upgrade")
            self.assertEqual(product.running(), {})
            product.json("/v1/chat/completions", chat("two"))

    def test_waiting_request_survives_an_upgrade_that_is_not_forced(self):
        with Product(draining(one="--tokens 60 --interval 0.05", two="")) as product:
            stream = Request(product, chat("one", stream=True))
            wait_for_serving(product, "one")
            waiting = Request(product, chat("two"))
            wait_for(lambda: product.json("/api/queue")["queue"], 10, "the request in the queue")
            request_upgrade(product)
            self.assertEqual((waiting.wait().status, stream.wait().status), (200, 200))
            wait_for(lambda: product.json("/api/upgrade", timeout=60)["count"] == 1, 30, "the upgrade")


class SignalTests(UpgradeCase):
    def test_reload_signal_during_the_replacement_of_the_program_is_not_lost(self):
        slow = Path(self.mktemp()).resolve()
        slow.mkdir(parents=True)
        (slow / "sitecustomize.py").write_text(
            "import os, time\n"
            "if 'LLAMASWAP_UPGRADE' in os.environ:\n"
            f"    open({str(slow / 'replaced')!r}, 'w').close()\n"
            "    time.sleep(1.5)\n"
        )
        with Product(draining(one=""), env={"PYTHONPATH": f"{slow}:{ROOT}"}) as product:
            (server,) = pids(product, "one")
            request_upgrade(product)
            wait_for((slow / "replaced").exists, 30, "the new program")
            os.kill(product.process.pid, signal.SIGHUP)
            wait_for(lambda: "configuration reloaded" in product.output, 20, "the reload")
            self.assertEqual(pids(product, "one"), [server])
