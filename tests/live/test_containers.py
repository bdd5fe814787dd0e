"""Models in containers, with a real podman: `cmd` runs one, `cmdStop` ends it, nothing is left."""

import json
import os
import signal

from twisted.trial.unittest import SynchronousTestCase

from tests.live.podman import IMAGE, Podman
from tests.live.product import Product, wait_for
from tests.live.test_service import config


class ContainerTests(SynchronousTestCase):
    timeout = 180

    def setUp(self):
        self.podman = Podman()
        self.addCleanup(self.podman.clean)

    def boxed(self, before=""):
        """A configuration with a model in a container, which runs the command `before` first."""
        podman = " ".join(self.podman.command)
        serve = f"{before}echo ready > /www/health && exec /bin/busybox httpd -f -p 127.0.0.1:${{PORT}} -h /www"
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
        with Product(self.boxed(), env=self.podman.env) as product:
            self.assertEqual(product.ask("/upstream/boxed/nothing", timeout=90)[0], 404, product.output)
            client = product.json("/api/models/boxed")["pid"]
            os.kill(client, signal.SIGKILL)
            wait_for(lambda: not product.running(), 20, "the model's end")
            self.assertEqual(self.podman.names(), [])
            self.assertEqual(product.ask("/upstream/boxed/nothing", timeout=90)[0], 404, product.output)

    def test_model_in_a_container_is_stopped_by_its_stop_command(self):
        with Product(self.boxed(), env=self.podman.env) as product:
            status, _, _ = product.ask("/upstream/boxed/nothing", timeout=90)
            self.assertEqual(status, 404, product.output)  # busybox's own: it has no such file
            self.assertEqual(product.running(), {"boxed": "ready"})
            self.assertEqual(self.podman.names(), ["boxed"])
            product.json("/v1/chat/completions", {"model": "other", "messages": []}, timeout=90)
            self.assertEqual(product.running(), {"other": "ready"})
            wait_for(lambda: not self.podman.names(), 10, "the container's end")

    def test_memory_of_a_container_is_that_of_its_control_group(self):
        """Its processes are not descendants of the command. 40 MiB are in a file system in memory."""
        fill = "/bin/busybox dd if=/dev/zero of=/dev/shm/x bs=1048576 count=40 && "
        with Product(self.boxed(fill), env=self.podman.env) as product:
            self.assertEqual(product.ask("/upstream/boxed/nothing", timeout=90)[0], 404, product.output)

            def shown():
                lines = product.ask("/metrics")[2].decode().splitlines()
                return [line for line in lines if line.startswith("llamaswap_model_memory_bytes") and "cgroup" in line]

            wait_for(shown, 15, "the measurement")
            self.assertGreater(int(shown()[0].rpartition(" ")[2]), 40 * 1024 * 1024)
