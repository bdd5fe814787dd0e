"""`lease`: what it asks for, and how it runs a command."""

import json
import os
import signal
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.cli.lease import LeasedCommand, environment, is_local
from tests.cli.doubles import Server, invoke

LEASE = {"id": "train-1", "name": "train", "state": "held", "gpus": [0, 2]}


def server(lease=LEASE):
    found = Server().on("POST /api/leases", (201, lease))
    return found.on("DELETE /api/leases/train-1", (204, b"")).on("GET /api/leases", {"leases": []})


class LeaseTests(SynchronousTestCase):
    def run_lease(self, *words, server=None, **options):
        return invoke(["lease", *words], server, **options)

    def python(self, code):
        return ("--", sys.executable, "-c", code)

    def test_command_runs_with_its_gpus_and_its_exit_status_is_returned(self):
        found = Path(self.mktemp()).absolute()
        code = f"import os; open({str(found)!r}, 'w').write(os.environ['CUDA_VISIBLE_DEVICES']); raise SystemExit(7)"
        asked = server()
        done = self.run_lease("--vram", "12G", "--gpus", "2", "--ram", "500MiB", *self.python(code), server=asked)
        self.assertEqual((done.exit_code, found.read_text()), (7, "0,2"))
        self.assertEqual((asked.asked[0], asked.asked[-1]), ("POST /api/leases", "DELETE /api/leases/train-1"))
        body = asked.bodies[0]
        self.assertEqual((body["vram_mib"], body["ram_mib"], body["gpus"], body["wait"]), (12288, 500, 2, None))
        self.assertEqual((body["pid"], body["name"], body["seconds"]), (os.getpid(), Path(sys.executable).name, 60.0))

    def test_options_of_the_command_are_left_to_it(self):
        done = self.run_lease(
            "--ram", "1G", "--", sys.executable, "-c", "raise SystemExit(5)", "--gpus", server=server()
        )
        self.assertEqual(done.exit_code, 5)

    def test_refusal_is_shown_and_nothing_runs(self):
        refused = Server().on("POST /api/leases", (503, {"error": {"message": "lease:train-1 was not granted"}}))
        done = self.run_lease("--vram", "1G", "--wait", "0", *self.python("print('ran')"), server=refused)
        self.assertEqual(done.exit_code, 1)
        self.assertIn("lease:train-1 was not granted", done.stderr)
        self.assertEqual((refused.bodies[0]["wait"], refused.asked), (0.0, ["POST /api/leases"]))

    def test_lease_is_given_back_if_the_command_cannot_run(self):
        asked = server()
        done = self.run_lease("--ram", "1G", "/no/such/program", server=asked)
        self.assertEqual((done.exit_code, asked.asked[-1]), (127, "DELETE /api/leases/train-1"))
        self.assertIn("/no/such/program: No such file or directory", done.stderr)

    def test_command_is_ended_after_the_timeout(self):
        code = "import time; time.sleep(60)"
        done = self.run_lease("--ram", "1G", "--timeout", "0.2", *self.python(code), server=server())
        self.assertEqual(done.exit_code, 124)

    def test_command_that_a_signal_ends_has_the_status_of_shells(self):
        code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
        self.assertEqual(self.run_lease("--ram", "1G", *self.python(code), server=server()).exit_code, 137)

    def test_signals_are_passed_on(self):
        """The command sends them to its parent, which is this process."""
        code = (
            "import os, signal, sys\n"
            "signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))\n"
            "os.kill(os.getppid(), signal.SIGTERM)\n"
            "signal.pause()"
        )
        before = signal.getsignal(signal.SIGTERM)
        self.assertEqual(LeasedCommand([sys.executable, "-c", code], dict(os.environ)).run(30.0), 9)
        self.assertIs(signal.getsignal(signal.SIGTERM), before)

    def test_renewal_is_sent_three_times_a_term(self):
        asked = server().on("PATCH /api/leases/train-1", LEASE)
        code = "import time; time.sleep(0.5)"
        self.run_lease("--ram", "1G", "--term", "0.3", *self.python(code), server=asked)
        self.assertGreater(asked.asked.count("PATCH /api/leases/train-1"), 1)
        self.assertIn({"seconds": 0.3}, asked.bodies)

    def test_end_of_the_lease_is_mentioned_once_and_the_command_runs_on(self):
        code = "import time; time.sleep(0.5); raise SystemExit(3)"
        done = self.run_lease("--ram", "1G", "--term", "0.3", *self.python(code), server=server())
        self.assertEqual((done.exit_code, done.stderr.count("the lease has ended")), (3, 1))

    def test_json_is_written_to_standard_error(self):
        done = self.run_lease("--ram", "1G", "--json", *self.python("pass"), server=server())
        self.assertEqual((json.loads(done.stderr), done.stdout), (LEASE, ""))

    def test_unusable_options_are_explained(self):
        for words, message in (
            (("--vram", "much"), "expected a size such as 12GiB"),
            (("--ram", "1G", "--wait", "soon"), "expected a duration such as 10m"),
            ((), "say how much memory"),
        ):
            done = self.run_lease(*words, "true", server=server())
            self.assertEqual(done.exit_code, 2)
            self.assertIn(message, done.stderr)

    def test_environment_is_unchanged_without_gpus(self):
        self.assertEqual(environment((), {"CUDA_VISIBLE_DEVICES": "1"}), {"CUDA_VISIBLE_DEVICES": "1"})
        self.assertEqual(environment((1,), {})["CUDA_DEVICE_ORDER"], "PCI_BUS_ID")

    def test_process_is_named_only_to_a_server_of_this_machine(self):
        for url in ("http://localhost:8080", ":8080", "127.0.0.1:80", "unix:/run/x", "https://[::1]:8443"):
            self.assertTrue(is_local(url), url)
        for url in ("http://gpu-box:8080", "192.168.1.2:8080"):
            self.assertFalse(is_local(url), url)
