"""Models in containers, with a real podman: `cmd` runs one, `cmdStop` ends it, nothing is left."""

import json
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.live.product import Product, wait_for
from tests.live.test_service import config

IMAGE = "localhost/llamaswap-test"
# What podman needs on a machine without init, registry and network; harmless elsewhere.
GLOBAL = ["--cgroup-manager=cgroupfs", "--runtime=runc", "--storage-driver=vfs"]
LIMITS = """\
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
"""


class ContainerTests(SynchronousTestCase):
    timeout = 180

    def setUp(self):
        busybox = shutil.which("busybox")
        if shutil.which("podman") is None or shutil.which("runc") is None or busybox is None:
            raise SkipTest("podman, runc and busybox (static) are not all on this machine")
        self.folder = Path(tempfile.mkdtemp(prefix="llamaswap-podman-"))
        (self.folder / "containers.conf").write_text(LIMITS)
        (self.folder / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        self.env = {**os.environ, "CONTAINERS_CONF": str(self.folder / "containers.conf")}
        self.podman = [
            *("podman", *GLOBAL, "--root", str(self.folder / "root"), "--runroot", str(self.folder / "run")),
            *("--tmpdir", str(self.folder / "tmp")),
        ]
        self.addCleanup(self.clean)
        tree = self.folder / "image.tar"
        with tarfile.open(tree, "w") as archive:
            archive.add(busybox, "bin/busybox")
            for folder in ("www", "tmp", "proc", "dev", "sys", "etc"):
                entry = tarfile.TarInfo(folder)
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(entry)
        imported = self.run_podman("import", str(tree), IMAGE)
        if imported.returncode:
            raise SkipTest(f"podman cannot be used here: {imported.stderr[-300:]}")
        probe = self.run_podman("run", "--rm", "--network=host", IMAGE, "/bin/busybox", "true")
        if probe.returncode:
            raise SkipTest(f"podman cannot run a container here: {probe.stderr[-300:]}")

    def run_podman(self, *words):
        return subprocess.run([*self.podman, *words], env=self.env, capture_output=True, text=True, timeout=60)

    def clean(self):
        self.run_podman("rm", "-f", "-t", "0", "-a")
        shutil.rmtree(self.folder, ignore_errors=True)

    def names(self):
        return self.run_podman("ps", "--format", "{{.Names}}").stdout.split()

    def boxed(self):
        """A configuration with a model in a container."""
        podman = " ".join(self.podman)
        serve = "echo ready > /www/health && exec /bin/busybox httpd -f -p 127.0.0.1:${PORT} -h /www"
        model = {
            "cmd": f"{podman} run --rm --network=host --name boxed {IMAGE} /bin/busybox sh -c "
            f"'export PATH=/bin; {serve}'",
            "cmdStop": f"{podman} stop -t 2 boxed",
            "unloadTimeout": 20,
        }
        text = json.loads(config(other="")) | {"healthCheckTimeout": 60}
        text["models"]["boxed"] = model
        return json.dumps(text)

    def test_container_whose_client_was_killed_is_stopped_and_loads_again(self):
        with Product(self.boxed(), env={"CONTAINERS_CONF": self.env["CONTAINERS_CONF"]}) as product:
            self.assertEqual(product.ask("/upstream/boxed/nothing", timeout=90)[0], 404, product.output)
            client = product.json("/api/models/boxed")["pid"]
            os.kill(client, signal.SIGKILL)
            wait_for(lambda: not product.running(), 20, "the model's end")
            self.assertEqual(self.names(), [])
            self.assertEqual(product.ask("/upstream/boxed/nothing", timeout=90)[0], 404, product.output)

    def test_model_in_a_container_is_stopped_by_its_stop_command(self):
        with Product(self.boxed(), env={"CONTAINERS_CONF": self.env["CONTAINERS_CONF"]}) as product:
            status, _, _ = product.ask("/upstream/boxed/nothing", timeout=90)
            self.assertEqual(status, 404, product.output)  # busybox's own: it has no such file
            self.assertEqual(product.running(), {"boxed": "ready"})
            self.assertEqual(self.names(), ["boxed"])
            product.json("/v1/chat/completions", {"model": "other", "messages": []}, timeout=90)
            self.assertEqual(product.running(), {"other": "ready"})
            wait_for(lambda: not self.names(), 10, "the container's end")
