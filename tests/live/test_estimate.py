"""An estimate made before a real llama.cpp server was started, compared with what the server then uses."""

import importlib.util
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config.schema.memory import NO_CHOICE
from llamaswap.memory.estimate import Estimator
from llamaswap.scheduling.memory import RAM, Device
from tests.live.product import wait_for

MISSING = [name for name in ("xllamacpp", "gguf", "numpy") if importlib.util.find_spec(name) is None]
LIVE = Path(__file__).parent
PROMPT = b'{"prompt": "%s", "n_predict": 4}' % (b"hello there " * 150)


class EstimateTests(SynchronousTestCase):
    if MISSING:
        skip = f"not installed: {', '.join(MISSING)} (extra: live)"

    timeout = 180

    def measured(self, command):
        """MiB that the server cannot give back, after it has worked."""
        with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
            try:
                address = server.stdout.readline().split()[-1].decode()
                wait_for(lambda: urllib.request.urlopen(f"{address}/health", timeout=5).status == 200, 60, "the server")
                request = urllib.request.Request(f"{address}/completion", PROMPT, {"Content-Type": "application/json"})
                urllib.request.urlopen(request, timeout=120).read()
                lines = Path(f"/proc/{server.pid}/status").read_text().splitlines()
            finally:
                server.kill()
        return int(next(line for line in lines if line.startswith("RssAnon:")).split()[1]) / 1024

    def test_estimate_is_close_to_what_the_server_uses(self):
        with tempfile.TemporaryDirectory(prefix="llamaswap-models-") as folder:
            model = f"{folder}/model.gguf"
            make = [sys.executable, f"{LIVE}/tiny_gguf.py", "chat", model, "--size-mb", "100"]
            subprocess.run(make, check=True, timeout=60)
            for flags in ([], ["--no-mmap"]):
                command = [f"{LIVE}/llama_server.py", "-m", model, "-c", "8192", "-np", "1", "-t", "1", "--port", "0"]
                devices = {RAM: Device(1 << 20)}
                need = Estimator().estimate(["python", *command, *flags], {}, devices, NO_CHOICE).need
                used = self.measured([*command, *flags])
                self.assertApproximates(need.ram / used, 1.0, 0.15, f"estimated {need.ram} MiB, used {used:.0f} MiB")
