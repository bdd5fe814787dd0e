"""Other programs: commands that are run, and promtool."""

import shutil
import subprocess

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from llamaswap.observe.command_output import run
from tests.observe.test_metrics import busy


class TestCommands(SynchronousTestCase):
    def test_every_failure_is_an_os_error(self):
        self.assertEqual(run(["echo", "x"], 5).strip(), "x")
        self.assertRaises(OSError, run, ["false"], 5)
        self.assertRaises(OSError, run, ["/nonexistent"], 5)


class TestPromtool(SynchronousTestCase):
    def test_the_page_passes_promtool(self):
        promtool = shutil.which("promtool")
        if promtool is None:
            raise SkipTest("promtool is not installed")
        checked = subprocess.run([promtool, "check", "metrics"], input=busy().render(), capture_output=True, timeout=30)
        self.assertEqual((checked.returncode, checked.stderr.decode()), (0, ""))
