"""Sources of readings that are other programs: a daemon's socket, a command, promtool."""

import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from llamaswap.observe.amd import Lact
from llamaswap.observe.command_output import run
from tests.observe.test_metrics import busy

MIB = 1024 * 1024


class TestLact(SynchronousTestCase):
    def test_the_lact_daemon_is_asked_over_its_socket(self):
        folder = tempfile.mkdtemp()
        path = os.path.join(folder, "s")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(1)

        def serve():
            connection, _ = listener.accept()
            with connection, connection.makefile("rwb") as stream:
                for answer in ([{"id": "a", "name": "A"}], {"vram": {"total": MIB}}):
                    stream.readline()
                    stream.write(json.dumps({"status": "ok", "data": answer}).encode() + b"\n")
                    stream.flush()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            (reading,) = Lact([path]).read()
        finally:
            thread.join(5)
            listener.close()
            os.unlink(path)
            os.rmdir(folder)
        self.assertEqual((reading.name, reading.mem_total_mb), ("A", 1))
        self.assertRaises(OSError, Lact(["/nonexistent"]).read)


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
