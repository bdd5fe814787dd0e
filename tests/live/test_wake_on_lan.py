"""The proxy in front of a sleeping machine; the machine is a product that is started late."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request

from twisted.trial.unittest import SynchronousTestCase

from tests.live.product import ROOT, Product
from tests.live.test_service import chat, config


def ask(url, body=None, timeout=30):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


class WolTests(SynchronousTestCase):
    timeout = 90

    def setUp(self):
        self.packets = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(self.packets.close)
        self.packets.bind(("127.0.0.1", 0))
        self.packets.settimeout(10)
        with socket.socket() as probe:  # where the machine will listen once it is awake
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]

    def front(self, patience):
        port = self.packets.getsockname()[1]
        code = (
            "import sys; from llamaswap.app import wake_on_lan; real = wake_on_lan.broadcaster;"
            f"wake_on_lan.broadcaster = lambda mac, address: real(mac, '127.0.0.1', {port});"
            "from llamaswap.cli import main; main(sys.argv[1:])"
        )
        words = ["wol", "-mac", "01:23:45:67:89:ab", "-upstream", f"http://127.0.0.1:{self.port}"]
        process = subprocess.Popen(
            [sys.executable, "-c", code, *words, "-listen", "127.0.0.1:0", "-timeout", str(patience)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )

        def end():
            process.send_signal(signal.SIGTERM)
            process.wait(10)
            process.stderr.close()

        self.addCleanup(end)
        late = threading.Timer(20, process.kill)
        late.start()
        self.addCleanup(late.cancel)
        for line in process.stderr:
            found = re.search(r"listening on [\d.]+:(\d+)", line)
            if found:
                late.cancel()
                threading.Thread(target=process.stderr.read, daemon=True).start()
                return f"http://127.0.0.1:{found[1]}"
        raise AssertionError("it never listened")

    def test_request_wakes_the_machine_and_is_forwarded_when_it_is_up(self):
        front = self.front(60)
        results = []
        asking = threading.Thread(target=lambda: results.append(ask(front + "/v1/chat/completions", chat("one"), 60)))
        asking.start()
        packet = self.packets.recv(200)
        self.assertEqual((packet[:6], len(packet)), (b"\xff" * 6, 102))
        with Product(config(one=""), "--listen", f"127.0.0.1:{self.port}") as product:
            asking.join(30)
            self.assertEqual(results[0][0], 200, results)
            self.assertEqual(product.running(), {"one": "ready"})
            self.assertIn(b"ready", ask(front + "/status")[1])
            self.assertEqual(ask(front + "/ui/")[0], 200)
        # It sleeps again: an answer counts for a short time, and monitors do not wake it.
        self.packets.settimeout(1)
        self.assertEqual(ask(front + "/api/events")[0] in (204, 502), True)

    def test_monitors_do_not_wake_the_machine_and_a_page_does(self):
        """core V116"""
        front = self.front(1)
        self.assertEqual(ask(front + "/api/events")[0], 204)
        self.assertEqual(ask(front + "/health")[0], 503)
        self.packets.settimeout(0.5)
        self.assertRaises(TimeoutError, self.packets.recv, 200)
        status, page = ask(front + "/ui/")
        self.assertEqual((status, b"waking" in page), (200, True))
        self.packets.settimeout(5)
        self.assertEqual(len(self.packets.recv(200)), 102)
        self.assertEqual(ask(front + "/v1/chat/completions", chat("one"))[0], 408)
