"""The service under a service manager: notifications, the watchdog keep-alive, and a socket of the manager."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.live.product import ROOT, Product, wait_for
from tests.live.test_service import config


class NotifyTests(SynchronousTestCase):
    timeout = 60

    def setUp(self):
        folder = tempfile.mkdtemp(prefix="llamaswap-notify-")
        self.addCleanup(shutil.rmtree, folder)
        self.path = os.path.join(folder, "notify")
        self.line = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.line.close)
        self.line.bind(self.path)
        self.line.settimeout(0.2)
        self.heard = []
        self.listening = True
        thread = threading.Thread(target=self.listen)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(setattr, self, "listening", False)

    def listen(self):
        while self.listening:
            try:
                self.heard.append(self.line.recv(4096).decode())
            except TimeoutError:
                pass

    def heard_with(self, word):
        return [one for one in self.heard if word in one]

    def test_start_reload_and_end_are_notified(self):
        env = {"NOTIFY_SOCKET": self.path, "WATCHDOG_USEC": "400000"}
        with Product(config(one=""), env=env) as product:
            wait_for(lambda: self.heard_with("READY=1"), 10, "READY")
            wait_for(lambda: len(self.heard_with("WATCHDOG=1")) >= 3, 10, "the watchdog's food")
            product.config.write_text("models: [")
            product.process.send_signal(signal.SIGHUP)
            wait_for(lambda: self.heard_with("rejected"), 10, "the refusal")
            self.assertTrue(self.heard_with("RELOADING=1"))
            product.process.send_signal(signal.SIGTERM)
            wait_for(lambda: self.heard_with("STOPPING=1"), 10, "STOPPING")

    def test_model_servers_do_not_inherit_the_notify_socket(self):
        with Product(config(one=""), env={"NOTIFY_SOCKET": self.path}) as product:
            product.json("/v1/chat/completions", {"model": "one", "messages": []})
            pid = product.json("/upstream/one/pid")["pid"]
            self.assertNotIn(b"NOTIFY_SOCKET", Path(f"/proc/{pid}/environ").read_bytes())


class ActivationTests(SynchronousTestCase):
    timeout = 60

    def test_socket_of_the_manager_is_served(self):
        tool = shutil.which("systemd-socket-activate")
        if tool is None:
            raise SkipTest("systemd-socket-activate is not on this machine")
        folder = Path(tempfile.mkdtemp(prefix="llamaswap-activate-"))
        self.addCleanup(shutil.rmtree, folder)
        (folder / "config.yaml").write_text(config(one=""))
        words = [
            tool,
            "--fdname=http",
            "-l",
            str(folder / "s"),
            f"--setenv=PYTHONPATH={ROOT}",
            sys.executable,
            "-m",
            "llamaswap",
        ]
        process = subprocess.Popen(
            [*words, "-config", str(folder / "config.yaml")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            wait_for((folder / "s").exists, 10, "the socket")
            with socket.socket(socket.AF_UNIX) as line:
                line.settimeout(20)
                line.connect(str(folder / "s"))
                line.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                self.assertTrue(line.recv(100).startswith(b"HTTP/1.1 200"))
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(20)
