"""The memory of real servers: measured, learned, kept over a restart, and carried over a changed command."""

import shlex
import sys
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.live.product import Product, free_range, wait_for

SIZE = 150  # MiB of anonymous memory

# A server that takes its memory when it is asked for its health, and holds it.
SERVER = f"""
import http.server, sys
held = bytearray({SIZE} * 1024 * 1024)
held[::4096] = b"x" * len(held[::4096])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
    do_POST = do_GET
    def log_message(self, *_):
        pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


class TestMeasuring(SynchronousTestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="llamaswap-memory-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.program = self.folder / "server.py"
        self.program.write_text(SERVER)

    def config(self, *words, memory="advise"):
        # A shell between llamaswap and the server: descendants count too.
        inner = shlex.join([sys.executable, str(self.program)]) + " ${PORT} " + shlex.join(words)
        command = f"sh -c {shlex.quote(inner + '; true')}"
        return (
            f"startPort: {free_range()}\n"
            f"store: {{path: {self.folder}/activity.db}}\n"
            f"routing: {{memory: {memory}}}\n"
            f"models:\n  owl:\n    cmd: {command}\n"
        )

    def three(self, memory):
        """A configuration with three models."""
        lines = self.config(memory=memory).splitlines()
        return "\n".join([*lines[:-2], *(f"  {name}:\n{lines[-1]}" for name in ("owl", "crow", "wren"))])

    def document(self, product):
        return product.json("/api/memory")

    def use(self, product):
        """MiB of RAM that owl is shown to use; None if it is not measured."""
        for device in self.document(product)["devices"]:
            for row in device["models"]:
                if device["device"] == "ram" and row["source"] == "measured":
                    return row["mib"]
        return None

    def need(self, product):
        return self.document(product)["needs"].get("owl", {"source": "unknown"})

    def run_owl(self, product):
        product.ask("/upstream/owl/x")
        wait_for(lambda: (self.need(product).get("samples") or 0) >= 2, 15, "two measurements")

    def test_server_is_measured_and_learned_over_a_restart_and_a_changed_flag(self):
        with Product(self.config()) as product:
            self.run_owl(product)
            used, need = self.use(product), self.need(product)
            # The interpreter itself takes a few MiB.
            self.assertTrue(SIZE <= used <= SIZE * 1.05 + 8, used)
            self.assertEqual(need["source"], "learned")
            self.assertTrue(used <= need["ram_mib"] <= used * 1.05, (used, need))
            metrics = product.ask("/metrics")[2].decode()
            self.assertIn('llamaswap_model_memory_bytes{model="owl",device="ram",source="process"}', metrics)
            ram = self.document(product)["devices"][0]
            self.assertGreater(ram["total_mib"], ram["free_mib"])
            product.ask("/unload")
            wait_for(lambda: self.use(product) is None, 10, "the end of the use")
            self.assertEqual(self.need(product)["source"], "learned")
        with Product(self.config()) as product:
            wait_for(lambda: self.need(product)["source"] == "learned", 10, "the learned need")
            self.assertEqual(self.need(product)["ram_mib"], need["ram_mib"])
        with Product(self.config("--ctx-size", "4096")) as product:
            wait_for(lambda: self.need(product)["source"] == "carried", 10, "the carried need")
            self.run_owl(product)
            self.assertEqual(self.need(product)["source"], "learned")

    def test_nothing_is_measured_if_memory_is_off(self):
        with Product(self.config(memory="off")) as product:
            product.ask("/upstream/owl/x")
            self.assertEqual(self.document(product), {"mode": "off", "devices": [], "needs": {}, "advice": []})
        self.assertFalse((self.folder / "footprints.db").exists())

    def boards(self):
        """The environment of a machine with a GPU, of which another program uses 500 MiB and owl will use 3000."""
        boards = self.folder / "boards"
        (boards / "0").mkdir(parents=True)
        (boards / "0" / "total").write_text("8000")
        (boards / "0" / "1").write_text("500")
        self.program.write_text(f"import os\nopen('{boards}/0/%d' % os.getpid(), 'w').write('3000')\n" + SERVER)
        return {"LLAMASWAP_FAKE_BOARDS": str(boards)}

    def test_fake_board_is_a_gpu(self):
        with Product(self.config(), env=self.boards()) as product:
            self.run_owl(product)
            found = self.document(product)
            board = next(device for device in found["devices"] if device["device"] == "gpu0")
            self.assertEqual([row["mib"] for row in board["models"]], [3000])
            self.assertEqual((board["total_mib"], board["foreign_mib"], board["free_mib"]), (8000, 500, 4500))
            self.assertIn("(pid 1)", board["foreign_by"])
            self.assertEqual(self.need(product)["gpus"], [[3060]])

    def test_gpus_are_read_where_memory_decides_and_nothing_is_monitored(self):
        environment = self.boards()
        for mode, devices in (("on", ["ram", "gpu0"]), ("advise", ["ram"])):
            config = self.config(memory=f"'{mode}'") + "performance: {disabled: true}\n"
            with Product(config, env=environment) as product:
                wait_for(lambda product=product: self.document(product)["devices"], 10, "the devices")
                self.assertEqual([device["device"] for device in self.document(product)["devices"]], devices)

    def test_request_is_served_after_another_program_has_ended_while_nothing_ran(self):
        environment = self.boards()
        other = self.folder / "boards" / "0" / "1"
        other.write_text("7000")
        config = self.config(memory="'on'") + "    memory: {gpu0: 3000}\n"
        with Product(config, env=environment) as product:
            wait_for(lambda: len(self.document(product)["devices"]) == 2, 10, "the devices")
            other.unlink()
            status, _, data = product.ask("/upstream/owl/x")
            self.assertEqual(status, 200, data)

    def test_learned_models_stay_loaded_together_as_far_as_they_fit(self):
        """Two of three servers fit into the budget; each is loaded alone until its size is known."""
        with Product(self.three("{mode: 'on', budget: {ram: 400MiB}, hold: 0s}")) as product:

            def load(name):
                status, _, data = product.ask(f"/upstream/{name}/x")
                self.assertEqual(status, 200, data)
                needs = lambda: self.document(product)["needs"].get(name, {"samples": 0})
                wait_for(lambda: needs()["samples"] >= 1, 15, f"the size of {name}")

            for name in ("owl", "crow", "wren"):
                load(name)
            load("owl")
            load("crow")
            self.assertEqual(sorted(product.running()), ["crow", "owl"])
            load("wren")
            self.assertEqual(sorted(product.running()), ["crow", "wren"])

    def test_preloaded_models_that_fit_stay_loaded_together(self):
        preload = "hooks: {on_startup: {preload: [owl, crow]}}\n"
        sized = "    memory: {ram: 160}\n    cmd:"
        config = self.three("{mode: 'on', budget: {ram: 400MiB}}").replace("    cmd:", sized)
        with Product(preload + config) as product:
            both = {"owl": "ready", "crow": "ready"}
            wait_for(lambda: product.running() == both, 20, "the preload of both")
            self.assertEqual(sum("evicts nothing" in line for line in product.lines), 2, product.output)
