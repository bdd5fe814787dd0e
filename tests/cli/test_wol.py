"""`wol`: its log. The proxy is tested in tests/app/test_wake_on_lan.py."""

import io

from twisted.logger import Logger
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.cli.wol import observer


class LogTests(SynchronousTestCase):
    def written(self, level):
        stream = io.StringIO()
        observed = observer(stream, level)
        for namespace in ("llamaswap.app.wake_on_lan", "twisted.web.client"):
            log = Logger(namespace, observer=observed)
            for word in ("debug", "info", "warn"):
                getattr(log, word)(f"{namespace} {word}")
        return [" ".join(line.split()[-2:]) for line in stream.getvalue().splitlines()]

    def test_libraries_log_warnings_only(self):
        told = ["llamaswap.app.wake_on_lan info", "llamaswap.app.wake_on_lan warn", "twisted.web.client warn"]
        self.assertEqual(self.written("info"), told)
        self.assertEqual(self.written("error"), [])

    def test_debug_level_shows_all_events(self):
        self.assertEqual(len(self.written("debug")), 6)
