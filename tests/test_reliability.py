"""The table of what must not happen, held against the tests it names; and what has no better place."""

import re
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "reliability.rst").read_text(encoding="utf-8")


def rows():
    """{number: the third cell} of both tables."""
    found = re.findall(r"^   \* - ([RW]\d+)\n     - .+\n     - (.+(?:\n       .+)*)", TEXT, re.MULTILINE)
    return dict(found)


def written():
    """The names of all tests there are."""
    names = set()
    for path in (ROOT / "tests").rglob("*.py"):
        names.update(re.findall(r"^    def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE))
        names.update(re.findall(r"^    async def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE))
    return names


class TableTests(SynchronousTestCase):
    def test_every_number_has_its_line(self):
        expected = {f"R{number}" for number in range(1, 49)} | {f"W{number}" for number in range(1, 33)}
        self.assertEqual(set(rows()), expected)

    def test_every_line_names_tests_that_exist_or_says_why_there_is_none(self):
        there = written()
        for number, cell in rows().items():
            named = re.findall(r"``(test_\w+)``", cell)
            self.assertEqual([name for name in named if name not in there], [], number)
            if not named:
                self.assertIn(cell.split(":")[0], {"Cannot happen", "Not ours to decide"}, number)

    def test_the_limits_are_what_the_code_has(self):
        from llamaswap.config.schema import Config
        from llamaswap.config.schema.model import HangDetection
        from llamaswap.config.schema.routing import FifoSettings
        from llamaswap.proxy import server_factory
        from llamaswap.scheduling.state import MINIMUM_STAY_LOADS
        from llamaswap.servers import readiness, termination

        fifo, stall, config = FifoSettings(), HangDetection(), Config()
        lines = {line[:43].strip(): line[44:75].strip() for line in TEXT.splitlines()}
        said = {
            "a server to become ready": f"{config.health_check_timeout:g} s",
            "one readiness probe": f"{readiness.FIRST_LIMIT:g} s, growing to {readiness.LAST_LIMIT:g} s",
            "a server to stop after SIGTERM": f"{config.unload_timeout:g} s",
            "a server to end after SIGKILL": f"{termination.LOST_AFTER:g} s, then it is given up",
            "a place in the queue": f"{fifo.max_wait / 3600:g} h",
            "other requests to be served first": f"{fifo.patience:g} s",
            "a loaded model to serve before it drains": f"{MINIMUM_STAY_LOADS:g} times its load time",
            "a client that reads nothing of its": f"{fifo.stalled_reader:g} s, then its response is cut",
            "a failing model's next start": f"{fifo.backoff:g} s, doubling to {fifo.backoff_max:g} s",
            "GPU memory of a stopped server": f"{fifo.reclaim:g} s",
            "a silent stream's next byte": f"{stall.after:g} s, then it is watched",
            "a request's head": f"{server_factory.HEAD_TIMEOUT:g} s",
            "the next piece of a request's body": f"{server_factory.BODY_TIMEOUT:g} s",
            "a client's next request": f"{server_factory.IDLE_TIMEOUT:g} s",
            "requests in progress when the service ends": f"{config.drain_timeout:g} s",
        }
        self.assertEqual({name: lines.get(name) for name in said}, said)


class ClockTests(SynchronousTestCase):
    def test_time_is_measured_by_a_clock_that_does_not_jump(self):
        """reliability R22: timers of a real service, while the wall clock goes an hour ahead and an hour back"""
        program = """
import time
from llamaswap.tap import Options, makeService
from twisted.internet import reactor
options = Options()
options.parseOptions(["--demo", "--listen", "127.0.0.1:0"])
makeService(options)
wall, fired = time.time, []
reactor.callLater(0.1, lambda: (setattr(time, "time", lambda: wall() - 3600), reactor.callLater(0.1, fired.append, 1)))
reactor.callLater(0.4, lambda: (setattr(time, "time", lambda: wall() + 3600), reactor.callLater(5, fired.append, 2)))
reactor.callLater(0.8, reactor.stop)
reactor.run()
assert fired == [1], fired
assert reactor.seconds is time.monotonic
"""
        words = [sys.executable, "-c", program]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
