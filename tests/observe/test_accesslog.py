"""The access log."""

import tracemalloc

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.observe.accesslog import AccessLog
from llamaswap.observe.log_format import LogFormatter


class AccessLogTests(SynchronousTestCase):
    def line(self, path=b"/v1/models", agent=b"curl/8", level="info", method=b"GET", status=200):
        out = []
        access = AccessLog(lines := LogFormatter(out.append, clock := Clock(), clock, wall=lambda: 0.0))
        lines.retune(level, "")
        access.served("10.0.0.1", method, path, "HTTP/1.1", status, 12, agent, 0.00123)
        clock.advance(1.0)
        return b"".join(out).decode()

    def test_long_paths_agents_and_addresses_are_not_cached(self):
        """They may be as long as a head, and each another."""
        access = AccessLog(LogFormatter(lambda data: None, clock := Clock(), clock, wall=lambda: 0.0))
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        for number in range(200):
            long = b"/%d" % number + b"x" * 10_000
            access.served("10.0.0.1", b"GET", long, "HTTP/1.1", 200, 12, long, 0.1)
            access.served(long.decode(), b"GET", b"/", "HTTP/1.1", 200, 12, b"curl", 0.1)
        self.assertLess(tracemalloc.get_traced_memory()[0], 500_000)

    def test_line_has_address_request_status_size_agent_and_time(self):
        self.assertEqual(self.line(), '[INFO] Request 10.0.0.1 "GET /v1/models HTTP/1.1" 200 12 "curl/8" 1.23ms\n')

    def test_polled_paths_are_not_logged(self):
        for path in (b"/wol-health", b"/api/performance", b"/metrics"):
            self.assertEqual(self.line(path=path), "")

    def test_requests_of_the_page_and_of_monitors_do_not_fill_the_log(self):
        for path in (b"/ui/", b"/ui/assets/app.js", b"/api/models/alpha", b"/health", b"/readyz", b"/favicon.ico"):
            self.assertEqual(self.line(path=path), "")
            self.assertEqual(self.line(path=path, method=b"HEAD"), "")
            self.assertEqual(self.line(path=path, level="debug")[:8], "[DEBUG] ")
        self.assertIn("[INFO]", self.line(path=b"/api/models/load/alpha", method=b"POST"))
        self.assertIn("[INFO]", self.line(path=b"/api/config", status=401))

    def test_no_line_when_info_is_filtered(self):
        self.assertEqual(self.line(level="warn"), "")

    def test_header_cannot_forge_a_line(self):
        line = self.line(agent=b"x\n[INFO] forged\x1b[0m")
        self.assertIn('"x\\n[INFO] forged\\x1b[0m"', line)
        self.assertEqual(line.count("\n"), 1)
