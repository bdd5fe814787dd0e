"""The service as a whole, in a process of its own: how it ends."""

import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).parent.parent


class EndTests(SynchronousTestCase):
    def test_a_driver_or_a_disk_that_hangs_does_not_keep_the_process_from_ending(self):
        program = """
import threading
from llamaswap import service
from llamaswap.tap import Options, makeService
from twisted.internet import reactor
service.SHUTDOWN = service.LAST_WORK = 0.2
options = Options()
options.parseOptions(["--demo", "--listen", "127.0.0.1:0"])
made = makeService(options)
made.startService()
for worker in (made.watcher, made.reader, made.recorder):
    worker(threading.Event().wait)
reactor.callLater(0.2, lambda: made.stopService().addBoth(lambda _: reactor.stop()))
reactor.run()
"""
        words = [sys.executable, "-c", program]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("ending without what a disk or a driver still does", done.stdout + done.stderr)
