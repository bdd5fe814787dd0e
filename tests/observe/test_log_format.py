"""Our own log lines."""

import threading
from datetime import datetime, timedelta, timezone

from twisted.internet.task import Clock
from twisted.logger import Logger, LogLevel, LogPublisher
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.observe import log_format
from llamaswap.observe.log_format import MAX_GATHERED, TIME_FORMATS, WRITE_DELAY, LogFormatter

CET = timezone(timedelta(hours=1), "CET")
MOMENT = datetime(2026, 2, 3, 4, 5, 6, 70809, CET)

RENDERED = {
    "ansic": "Tue Feb  3 04:05:06 2026",
    "unixdate": "Tue Feb  3 04:05:06 CET 2026",
    "rubydate": "Tue Feb 03 04:05:06 +0100 2026",
    "rfc822": "03 Feb 26 04:05 CET",
    "rfc822z": "03 Feb 26 04:05 +0100",
    "rfc850": "Tuesday, 03-Feb-26 04:05:06 CET",
    "rfc1123": "Tue, 03 Feb 2026 04:05:06 CET",
    "rfc1123z": "Tue, 03 Feb 2026 04:05:06 +0100",
    "rfc3339": "2026-02-03T04:05:06+01:00",
    "rfc3339nano": "2026-02-03T04:05:06.070809+01:00",
    "kitchen": "4:05AM",
    "stamp": "Feb  3 04:05:06",
    "stampmilli": "Feb  3 04:05:06.070",
    "stampmicro": "Feb  3 04:05:06.070809",
    "stampnano": "Feb  3 04:05:06.070809000",
}


class TimeFormatsTests(SynchronousTestCase):
    def test_every_time_format_is_rendered_as_in_go(self):
        self.assertEqual({name: form(MOMENT) for name, form in TIME_FORMATS.items()}, RENDERED)

    def test_rfc3339_writes_utc_as_z_and_cuts_trailing_zeros(self):
        utc = datetime(2026, 2, 3, 4, 5, 6, 70000, timezone.utc)
        self.assertEqual(TIME_FORMATS["rfc3339nano"](utc), "2026-02-03T04:05:06.07Z")
        self.assertEqual(TIME_FORMATS["rfc3339nano"](utc.replace(microsecond=0)), "2026-02-03T04:05:06Z")

    def test_kitchen_format_writes_noon_and_midnight_as_twelve(self):
        self.assertEqual(TIME_FORMATS["kitchen"](MOMENT.replace(hour=12)), "12:05PM")
        self.assertEqual(TIME_FORMATS["kitchen"](MOMENT.replace(hour=0)), "12:05AM")

    def test_zone_without_abbreviation_is_written_as_its_offset(self):
        nameless = MOMENT.replace(tzinfo=timezone(timedelta(hours=-3, minutes=-30)))
        self.assertEqual(TIME_FORMATS["rfc1123"](nameless), "Tue, 03 Feb 2026 04:05:06 -0330")
        self.assertEqual(TIME_FORMATS["rfc3339"](nameless), "2026-02-03T04:05:06-03:30")


class CollectingThreads:
    """Collects the calls of other threads until `call`."""

    def __init__(self):
        self.calls = []

    def callFromThread(self, function, *args):
        self.calls.append((function, args))

    def call(self):
        for function, args in self.calls:
            function(*args)


class LogLinesTests(SynchronousTestCase):
    def make(self, level="info", time_format=""):
        self.out = []
        self.clock, self.threads = Clock(), CollectingThreads()
        self.patch(log_format, "local_time", lambda seconds: MOMENT)
        lines = LogFormatter(self.out.append, self.clock, self.threads, wall=lambda: 0.0)
        lines.retune(level, time_format)
        return lines, Logger(namespace="llamaswap.routing.router", observer=LogPublisher(lines))

    def test_gathered_lines_are_written_together_and_in_order(self):
        lines, _ = self.make()
        clock = self.clock
        lines.line("info", "one")
        lines.line("debug", "never")
        lines.line("info", "two")
        self.assertEqual(self.out, [])
        clock.advance(WRITE_DELAY)
        self.assertEqual(self.out, [b"[INFO] one\n[INFO] two\n"])
        lines.line("info", "three")
        lines({"log_namespace": "llamaswap", "log_format": "now", "log_level": LogLevel.info, "log_time": 0.0})
        self.assertEqual(self.out[1:], [b"[INFO] three\n[INFO] now\n"])
        for _ in range(MAX_GATHERED):
            lines.line("info", "many")
        self.assertEqual(len(self.out), 3)
        lines.line("info", "last")
        clock.advance(WRITE_DELAY)
        self.assertEqual(self.out[3:], [b"[INFO] many\n" + b"[INFO] last\n"])
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_default_line_has_level_and_text(self):
        _, log = self.make()
        log.info("ready {model}", model="owl")
        self.assertEqual(self.out, [b"[INFO] ready owl\n"])

    def test_time_comes_first_in_a_line(self):
        _, log = self.make(time_format=" RFC3339 ")
        log.warn("x")
        self.assertEqual(self.out, [b"2026-02-03T04:05:06+01:00 [WARN] x\n"])

    def test_lines_below_the_level_are_dropped(self):
        lines, log = self.make(level="warn")
        log.debug("d")
        log.info("i")
        log.warn("w")
        log.error("e")
        log.critical("c")
        lines.line("info", "access")
        self.assertEqual(self.out, [b"[WARN] w\n", b"[ERROR] e\n", b"[ERROR] c\n"])

    def test_a_reload_changes_level_and_time(self):
        lines, log = self.make(level="error")
        lines.retune("debug", "kitchen")
        log.debug("now")
        lines.retune("nonsense", "nonsense")
        log.debug("hidden")
        log.info("shown")
        self.assertEqual(self.out, [b"4:05AM [DEBUG] now\n", b"[INFO] shown\n"])

    def test_events_of_other_namespaces_are_ignored(self):
        lines, _ = self.make()
        for namespace in ("twisted.web", "llamaswapper", ""):
            Logger(namespace=namespace, observer=LogPublisher(lines)).error("no")
        self.assertEqual(self.out, [])

    def test_logged_failure_has_its_traceback(self):
        _, log = self.make()
        try:
            raise ValueError("why")
        except ValueError:
            log.failure("store failed")
        self.assertTrue(self.out[0].startswith(b"[ERROR] store failed\nTraceback"))
        self.assertIn(b"ValueError: why", self.out[0])

    def test_line_of_another_thread_is_passed_to_the_reactors(self):
        lines, _ = self.make()
        thread = threading.Thread(target=lines.line, args=("info", "there"))
        thread.start()
        thread.join()
        lines.line("info", "here")
        self.assertEqual(self.out, [])
        self.threads.call()
        self.assertEqual(self.out, [b"[INFO] here\n[INFO] there\n"])
