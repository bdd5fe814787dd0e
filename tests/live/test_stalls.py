"""Whatever one client sends, the streams of the others go on: the greatest gap of a ticking stream beside each request.

The limit is far above what is wanted (50 ms), and the best of three tries counts, because a loaded test machine with
two cores delays the stream, its server and the client that measures by 100 ms and more with no request beside it.
What stalls the reactor by itself takes the same time in each of the three tries.
"""

import http.client
import json
import os
import signal
import threading
import time
from urllib.parse import urlsplit

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.web.route_table import ROUTES
from tests.live.product import Product, wait_for
from tests.live.test_service import config

INTERVAL = 0.005
LONGEST_GAP = 0.25
TRIES = 3
MIB = 1 << 20
CHAT = "/v1/chat/completions"
JSON, FORM, YAML = "application/json", "application/x-www-form-urlencoded", "application/yaml"


def filled(head, piece, tail, size):
    """A body of about this size, full of `piece`."""
    return head + piece * ((size - len(head) - len(tail)) // len(piece)) + tail


def models(size):
    """A configuration of about this size."""
    rows = ["models:\n"]
    left, number = size - 200, 0
    while left > 0:
        row = f"  m{number}:\n    cmd: serve --port ${{PORT}} -m /models/{number}.gguf\n    aliases: [alias-{number}]\n"
        rows.append(row)
        left -= len(row)
        number += 1
    return "".join(rows).encode()


class Ticker:
    """A client of a stream with an event each INTERVAL; `worst()` is the greatest gap since the last call."""

    def __init__(self, product):
        address = urlsplit(product.url)
        self.line = http.client.HTTPConnection(address.hostname, address.port, timeout=30)
        self.line.request("GET", f"/upstream/one/drip?n=100000&interval={INTERVAL}")
        self.answer = self.line.getresponse()
        self.last, self.gap, self.ticks, self.ended = time.monotonic(), 0.0, 0, False
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        try:
            while self.answer.read1(65536):
                now = time.monotonic()
                self.gap, self.last = max(self.gap, now - self.last), now
                self.ticks += 1
        except (OSError, ValueError, AttributeError, http.client.HTTPException):
            pass  # closed by the test's end
        self.ended = True

    def worst(self):
        ticks = self.ticks
        wait_for(lambda: self.ticks > ticks or self.ended, 60, "the stream to go on")
        gap, self.gap = self.gap, 0.0
        return gap


class StallTests(SynchronousTestCase):
    timeout = 120

    def beside(self, ticker, name, send):
        """The least of the greatest gaps, of up to three tries; what `send` returned last."""
        best, told = None, None
        for _ in range(TRIES):
            ticker.worst()
            began = time.monotonic()
            told = send()
            took, gap = time.monotonic() - began, ticker.worst()
            best = gap if best is None else min(best, gap)
            if best <= LONGEST_GAP / 2:
                break
        self.assertFalse(ticker.ended, "the stream ended early")
        print(f"\n  {name}: {best * 1000:.0f} ms (answered {told} in {took:.2f} s)", end="")
        if best > LONGEST_GAP:
            self.slow.append(f"{name}: {best * 1000:.0f} ms")
        return told

    def test_no_request_stops_another_clients_stream(self):
        self.slow = []
        given = json.loads(config(one="", two={"filters": {"setParams": {"a.b": 1}}}))
        given["groups"] = {"all": {"swap": False, "members": ["one", "two"]}}
        with Product(json.dumps(given), "--allow-config-edit") as product:
            product.json(CHAT, {"model": "one", "messages": []})
            product.json(CHAT, {"model": "two", "messages": []})
            ticker = Ticker(product)

            def status(path, body, kind=JSON, method="POST", **more):
                return product.ask(path, body, method=method, headers={"Content-Type": kind, **more})[0]

            self.model_routes(ticker, status)
            self.admin_routes(ticker, status)
            self.configurations(ticker, status, product)
            ticker.line.close()
        self.assertEqual(self.slow, [])

    def model_routes(self, ticker, status):
        whole = b',"model":"unknown"}'
        for name, body in (
            ("digits", filled(b'{"x":', b"1", whole, 32 * MIB)),
            ("white space", filled(b'{"x":', b" ", b"1" + whole, 32 * MIB)),
            ("nesting", filled(b'{"x":' + b"[{" * 100, b"[{" * 50 + b"}]" * 50, b"}]" * 100 + whole, 8 * MIB)),
            ("numbers", filled(b'{"x":[', b"1,", b"1]" + whole, 32 * MIB)),
            ("strings", filled(b'{"x":[', b'"",', b"1]" + whole, 16 * MIB)),
            ("escapes", filled(b'{"x":"', b'\\"', b'"' + whole, 32 * MIB)),
            ("long string", filled(b'{"x":"', b"x", b'"' + whole, 32 * MIB)),
            ("keys", filled(b"{", b'"k":1,', b'"x":1' + whole, 8 * MIB)),
        ):
            self.assertEqual(self.beside(ticker, f"JSON of {name}", lambda body=body: status(CHAT, body)), 404)
        for name, expected in (("unknown", 404), ("two", 200)):  # two: its filters edit the body
            body = filled(b'{"x":"', b"x", b'","model":"%s"}' % name.encode(), 192 * MIB)
            answered = self.beside(ticker, f"192 MiB for {name}", lambda body=body: status(CHAT, body))
            self.assertEqual(answered, expected)
        for name, piece in (("ampersands", b"&"), ("fields", b"a=%41&"), ("models", b"model=unknown&")):
            body = filled(b"", piece, b"", MIB)
            self.assertEqual(self.beside(ticker, f"form of {name}", lambda body=body: status(CHAT, body, FORM)), 404)
        large = filled(b"", b"a=b&", b"", 10 * MIB)
        self.assertEqual(self.beside(ticker, "form beyond the limit", lambda: status(CHAT, large, FORM)), 413)

    def admin_routes(self, ticker, status):
        body = filled(b'{"name":', b"1", b"}", 15 * MIB)
        for route in ROUTES:
            methods = {"POST", "PUT"} & set(route.methods)
            if not methods or "<" in route.rule or "config" in route.rule:
                continue
            if not route.rule.startswith("/api/") or "unload" in route.rule or "cancel" in route.rule:
                continue
            method = methods.pop()
            self.beside(ticker, f"{method} {route.rule}", lambda r=route.rule, m=method: status(r, body, method=m))

    def configurations(self, ticker, status, product):
        validate = "/api/config/validate"
        refused = self.beside(ticker, "4 MB to validate", lambda: status(validate, models(4 * MIB), YAML))
        self.assertEqual(refused, 413)
        large = models(MIB)
        self.assertLess(len(large), MIB)
        self.assertEqual(self.beside(ticker, "1 MiB to validate", lambda: status(validate, large, YAML)), 200)
        self.assertEqual(self.beside(ticker, "words to validate", lambda: status(validate, b"a " * MIB, YAML)), 413)
        self.assertEqual(self.beside(ticker, "a long word", lambda: status(validate, b"a" * MIB, YAML)), 200)
        brackets = filled(b"models: ", b"[", b"", MIB)
        self.assertEqual(self.beside(ticker, "brackets", lambda: status(validate, brackets, YAML)), 200)
        text = json.loads(product.config.read_text())
        text["logLevel"] = "warn"
        extra = b"".join(b"# %d\n" % number for number in range(100_000))
        names = {f"m{number}": {"cmd": "serve ${PORT}"} for number in range(4000)}
        text["models"].update(names)

        def reload():
            before = product.json("/api/config/status")
            product.config.write_bytes(extra + json.dumps(text, indent=1).encode())
            text["healthCheckTimeout"] = text["healthCheckTimeout"] + 1
            os.kill(product.process.pid, signal.SIGHUP)
            wait_for(lambda: product.json("/api/config/status") != before, 60, "the reload")
            return product.json("/api/config/status")["result"]

        self.beside(ticker, "reload of 4000 models", reload)
