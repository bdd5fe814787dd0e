"""Memory for a program that llamaswap does not run: a model leaves for it, waits for its end, and a dead client holds
nothing for longer than its term."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.live.product import ROOT, Product, free_range, wait_for
from tests.live.test_memory_measure import SERVER, SIZE

CONFIG = """
startPort: {port}
routing: {{memory: {{mode: {mode}, budget: {{ram: 400MiB}}, hold: 0s}}}}
models:
  owl:
    memory: {{ram: 200MiB}}
    cmd: {python} {program} ${{PORT}}
"""
# Takes memory, says so, and runs until its input ends. A signal gives it another exit status.
COMMAND = f"""
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(23))
held = bytearray({SIZE} * 1024 * 1024)
held[::4096] = b"x" * len(held[::4096])
print("runs", flush=True)
sys.stdin.read()
sys.exit(7)
"""


class TestLease(SynchronousTestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="llamaswap-lease-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        (self.folder / "server.py").write_text(SERVER)

    def product(self, mode="'on'", env=None):
        program = self.folder / "server.py"
        return Product(CONFIG.format(mode=mode, port=free_range(), python=sys.executable, program=program), env=env)

    def lease(self, product, *words, code=COMMAND):
        """The command line with a program that runs until its input is closed."""
        command = ("--", sys.executable, "-c", code)
        process = subprocess.Popen(
            [sys.executable, "-m", "llamaswap", "lease", "--url", product.url, *words, *command],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=self.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.addCleanup(self.end, process)
        return process

    def end(self, process):
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait(10)

    def ready(self, product):
        """The machine is measured, and owl is loaded."""
        wait_for(lambda: product.json("/api/memory")["devices"], 15, "the devices")
        self.assertEqual(product.ask("/upstream/owl/x")[0], 200)
        self.assertEqual(product.running(), {"owl": "ready"})

    def ask_owl(self, product):
        """The status of a request for owl, in a list that is empty until it is answered."""
        statuses = []
        thread = threading.Thread(target=lambda: statuses.append(product.ask("/upstream/owl/x", timeout=60)[0]))
        thread.start()
        self.addCleanup(thread.join, 30)
        return statuses

    def test_idle_model_leaves_for_a_lease_and_its_next_request_waits_for_the_end(self):
        with self.product() as product:
            self.ready(product)
            process = self.lease(product, "--ram", "300MiB")
            self.assertEqual(process.stdout.readline(), "runs\n")
            self.assertEqual(product.running(), {})
            [lease] = product.json("/api/leases")["leases"]
            self.assertEqual((lease["state"], lease["pid"], lease["mib"]), ("held", process.pid, {"ram": 300}))
            self.assertNotIn(lease["id"], str(product.json("/v1/models")))
            name = f"lease:{lease['id']}"
            ram = product.json("/api/memory")["devices"][0]
            self.assertEqual(ram["models"], [{"model": name, "mib": 300, "source": "lease", "squeezed": False}])
            product.ask("/unload")
            answered = self.ask_owl(product)
            wait_for(lambda: product.json("/api/queue")["queue"], 10, "the waiting request")
            self.assertIn(name, product.json("/api/plan?model=owl")["waits_for"])
            time.sleep(2.5)  # the program is measured meanwhile
            self.assertEqual(answered, [])
            process.stdin.close()
            self.assertEqual(process.wait(15), 7)
            wait_for(lambda: answered, 15, "the answer of owl")
            self.assertEqual((answered, product.running()), ([200], {"owl": "ready"}))
            self.assertEqual(product.json("/api/leases"), {"leases": []})

    def test_killed_client_holds_no_memory_for_longer_than_its_term(self):
        with self.product() as product:
            self.ready(product)
            process = self.lease(product, "--ram", "300MiB", "--term", "3s")
            self.assertEqual(process.stdout.readline(), "runs\n")
            time.sleep(4)
            self.assertEqual(len(product.json("/api/leases")["leases"]), 1, "it is renewed")
            process.kill()
            answered = self.ask_owl(product)
            began = time.monotonic()
            wait_for(lambda: answered, 10, "the answer of owl")
            self.assertEqual(answered, [200])
            self.assertLess(time.monotonic() - began, 6)

    def test_signals_and_exit_status_are_those_of_the_command(self):
        with self.product() as product:
            self.ready(product)
            process = self.lease(product, "--ram", "100MiB")
            self.assertEqual(process.stdout.readline(), "runs\n")
            self.assertEqual(product.running(), {"owl": "ready"}, "both fit")
            process.send_signal(signal.SIGTERM)
            self.assertEqual(process.wait(15), 23)
            self.assertEqual(product.json("/api/leases"), {"leases": []})

    def test_program_runs_on_the_gpu_that_it_was_given_and_its_use_is_not_counted_twice(self):
        boards = self.folder / "boards"
        for gpu, others in ((0, 3000), (1, 500)):
            (boards / str(gpu)).mkdir(parents=True)
            (boards / str(gpu) / "total").write_text("8000")
            (boards / str(gpu) / "1").write_text(str(others))
        file = f"{boards}/' + os.environ['CUDA_VISIBLE_DEVICES'] + '/' + str(os.getpid())"
        uses = f"import os; open('{file}, 'w').write('5000')"
        with self.product(env={"LLAMASWAP_FAKE_BOARDS": str(boards)}) as product:
            self.ready(product)
            process = self.lease(product, "--vram", "6000MiB", code=f"{uses}\n{COMMAND}")
            self.assertEqual(process.stdout.readline(), "runs\n")
            gpu = lambda: product.json("/api/memory")["devices"][2]
            wait_for(lambda: gpu()["free_mib"] < 3000, 10, "a measurement")
            self.assertEqual((gpu()["device"], gpu()["foreign_mib"]), ("gpu1", 500))
            self.assertEqual([(row["mib"], row["source"]) for row in gpu()["models"]], [(6000, "lease")])
            self.assertEqual(product.running(), {"owl": "ready"})

    def test_refusal_names_its_reason(self):
        with self.product() as product:
            self.ready(product)
            first = self.lease(product, "--ram", "300MiB", "--name", "first")
            self.assertEqual(first.stdout.readline(), "runs\n")
            second = self.lease(product, "--ram", "300MiB", "--wait", "0")
            self.assertEqual(second.wait(15), 1)
            self.assertRegex(second.stderr.read(), r"lease:\S+ was not granted: waiting for lease:first-\w+ to finish")
        with self.product("advise") as product:
            refused = self.lease(product, "--ram", "300MiB")
            self.assertEqual(refused.wait(15), 1)
            self.assertIn("llamaswap memory enable", refused.stderr.read())

    def test_lease_is_held_by_the_next_program_of_an_upgrade(self):
        with self.product() as product:
            self.ready(product)
            process = self.lease(product, "--ram", "300MiB", "--term", "6s")
            self.assertEqual(process.stdout.readline(), "runs\n")
            before = product.json("/api/leases")["leases"][0]["id"]
            product.process.send_signal(signal.SIGUSR2)
            wait_for(lambda: "upgraded in place" in product.output, 30, "the upgrade")
            time.sleep(4)
            self.assertEqual([one["id"] for one in product.json("/api/leases")["leases"]], [before])
            answered = self.ask_owl(product)
            time.sleep(1)
            self.assertEqual(answered, [])
            process.stdin.close()
            self.assertEqual(process.wait(15), 7)
            wait_for(lambda: answered, 15, "the answer of owl")
