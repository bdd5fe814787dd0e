"""`python -m tests.ui [-jN] [name ...]`: every browser check, or those whose name contains one of the words.

With -jN in N processes. The checks that share a real server stay together, so that it is started once.
"""

from __future__ import annotations

import faulthandler
import os
import queue
import re
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from tests.ui import charts, chats, defects, feedback, harness, looks, newcomer, settings, wizard, works

SLOWEST = 8  # checks whose time is printed
LONGEST = 150.0  # seconds for a check: it hangs if it takes longer
GRACE = 30.0  # seconds for it to fail when its browser is gone


def each(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    """The checks of a suite of suites."""
    for one in suite:
        if isinstance(one, unittest.TestSuite):
            yield from each(one)
        else:
            yield one


def checks(words: list[str]) -> list[unittest.TestCase]:
    """Those whose name contains one of the words, all where there are none."""
    loader = unittest.TestLoader()
    if words:
        loader.testNamePatterns = [f"*{word}*" for word in words]
    modules = (looks, works, defects, chats, settings, feedback, charts, wizard, newcomer)
    return [one for module in modules for one in each(loader.loadTestsFromModule(module))]


def shares(found: list[unittest.TestCase], processes: int) -> list[list[unittest.TestCase]]:
    """The checks for each process, about as many for one as for another."""
    groups: dict[object, list[unittest.TestCase]] = {}
    for one in found:
        together = type(one) if isinstance(one, harness.RealCase) else one
        groups.setdefault(together, []).append(one)
    parts: list[list[unittest.TestCase]] = [[] for _ in range(processes)]
    for group in sorted(groups.values(), key=len, reverse=True):
        min(parts, key=len).extend(group)
    return parts


class Watchdog(threading.Thread):
    """Bounds each check, and what is between them and after the last.

    Playwright awaits a page's script without a bound. When the browser is gone such a check fails and says where it
    was; whatever else hangs ends with this process, which says where each thread is.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.progress: queue.Queue[None] = queue.Queue()

    def run(self) -> None:
        while self.progressed(LONGEST) or self.progressed_without_browser():
            pass
        faulthandler.dump_traceback()
        for server in list(harness.RealServer.running):
            server.stop()
        os._exit(1)

    def progressed_without_browser(self) -> bool:
        print(f"it did not end within {LONGEST:.0f} s", file=sys.stderr)
        harness.kill_browser()
        return self.progressed(GRACE)

    def progressed(self, seconds: float) -> bool:
        """Whether a check began or ended within this time."""
        try:
            self.progress.get(timeout=seconds)
        except queue.Empty:
            return False
        return True


class Timed(unittest.TextTestResult):
    """Knows how long each check took, and bounds it."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.took: list[tuple[float, str]] = []
        self.watchdog = Watchdog()
        self.watchdog.start()

    def startTest(self, test: unittest.TestCase) -> None:
        self.watchdog.progress.put(None)
        self.began = time.monotonic()
        super().startTest(test)

    def stopTest(self, test: unittest.TestCase) -> None:
        self.watchdog.progress.put(None)
        self.took.append((time.monotonic() - self.began, test.id().removeprefix("tests.ui.")))
        super().stopTest(test)


def run(found: list[unittest.TestCase]) -> int:
    """Run them here, one after another, and once more those that failed. What passes only then is named: it is a fault
    of the check or of the page, but not one to hold everything up for."""
    first = once(found)
    bad = [test for test, _ in first.failures + first.errors]
    results = [first, once([test for test in bad if test in found])] if bad else [first]
    for seconds, name in sorted((one for result in results for one in result.took), reverse=True)[:SLOWEST]:
        print(f"{seconds:6.1f} s {name}")
    still = [test for test in bad if test not in found]  # of a class that could not be set up
    still += [test for test, _ in results[-1].failures + results[-1].errors] if bad else []
    for test in bad:
        if test not in still:
            print(f"FLAKY, passed only when it was repeated: {test.id()}")
    skipped = len(first.skipped)
    print(f"{len(found) - skipped - len(still)} passed, {len(still)} failed")
    return 1 if still else 0


def once(found: list[unittest.TestCase]) -> Timed:
    """One run of these checks."""
    return unittest.TextTestRunner(verbosity=2, resultclass=Timed).run(unittest.TestSuite(found))


def share_out(processes: int, words: list[str]) -> int:
    """Run them in several processes and add up what these say."""
    command = [sys.executable, "-m", "tests.ui"]
    with ExitStack() as files:
        outputs = [files.enter_context(tempfile.TemporaryFile("w+")) for _ in range(processes)]
        started = [
            subprocess.Popen([*command, f"--share={number}/{processes}", *words], stdout=output, stderr=output)
            for number, output in enumerate(outputs)
        ]
        for process in started:
            process.wait()
        texts = [output.seek(0) or output.read() for output in outputs]
    print("\n".join(texts))
    print("".join(f"{line}\n" for text in texts for line in text.splitlines() if line.startswith("FLAKY")), end="")
    counts = [re.findall(r"^(\d+) passed, (\d+) failed$", text, re.MULTILINE) for text in texts]
    # A process that came to no end has failed, whatever it was about.
    passed = sum(int(count[-1][0]) for count in counts if count)
    failed = sum(int(count[-1][1]) if count else 1 for count in counts)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or any(process.returncode for process in started) else 0


def main(words: list[str]) -> int:
    """0 when all went well, or nothing could be checked and it was said why."""
    reason = harness.why_not()
    if reason:
        print(f"the web interface was not checked in a browser: {reason}")
        return 0
    first = words[0] if words else ""
    if match := re.fullmatch(r"-j(\d+)", first):
        return share_out(int(match[1]), words[1:])
    if match := re.fullmatch(r"--share=(\d+)/(\d+)", first):
        return run(shares(checks(words[1:]), int(match[2]))[int(match[1])])
    return run(checks(words))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
