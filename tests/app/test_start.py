"""What a plain start imports: nothing of what is off, or is needed by other requests than those for models."""

import subprocess
import sys
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).parent.parent.parent

CONFIG = """\
models:
  plain: {cmd: "server --port ${PORT}"}
"""

PROGRAM = """
import sys
from llamaswap.tap import Options, makeService
options = Options()
options.parseOptions(sys.argv[1:])
makeService(options)
print(*sys.modules)
"""

# Each with what would need it.
LATER = {
    "klein": "the admin site",
    "llamaswap.app.admin_wiring": "the admin site",
    "llamaswap.cli": "commands",
    "llamaswap.cluster": "other hosts",
    "llamaswap.demo.server": "the demo",
    "llamaswap.discover.config_writer": "looking for models",
    "llamaswap.memory.estimate": "estimates of memory",
    "llamaswap.web.admin_request": "the admin site",
    "llamaswap.web.openapi": "the admin site",
    "llamaswap.web.ui": "the admin site",
    "OpenSSL": "encryption",
    "psutil": "the monitor of the machine, which starts after listening",
    "pynvml": "GPUs of NVIDIA",
    "treq": "requests to peers and hooks",
    "twisted.web.client": "requests to peers and hooks",
    "twisted.web.server": "the admin site",
    "werkzeug": "the admin site",
}


class PlainStartTests(SynchronousTestCase):
    def imported(self):
        with tempfile.TemporaryDirectory() as folder:
            config = Path(folder, "config.yaml")
            config.write_text(CONFIG)
            words = ["--config", config, "--listen", "localhost:0"]
            done = subprocess.run(
                [sys.executable, "-c", PROGRAM, *map(str, words)], capture_output=True, cwd=ROOT, timeout=60
            )
        self.assertEqual((done.returncode, done.stderr.decode()), (0, ""))
        return set(done.stdout.decode().split())

    def test_modules_that_nothing_needs_yet_are_not_imported(self):
        imported = self.imported()
        self.assertIn("llamaswap.app.service", imported)
        wrong = [
            f"{name}, which {LATER[module]} would need"
            for name in imported
            for module in LATER
            if name == module or name.startswith(f"{module}.")
        ]
        self.assertEqual(sorted(wrong), [])
