"""A model with two replicas, in the whole product: two servers at once, one name for clients."""

import sys
import threading
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.live.product import Product, alive, free_range, wait_for

ENGINE = f"{sys.executable} -I -S {Path(__file__).with_name('engine.py')}"
CONFIG = """
startPort: {start}
models:
  owl:
    cmd: {engine} --port ${{PORT}} --name ${{MODEL_ID}} --one-slot --tokens 10 --interval 0.3
    replicas: 2
    aliases: [bird]
  hen:
    cmd: {engine} --port ${{PORT}}
"""


class ReplicaTests(SynchronousTestCase):
    timeout = 60

    def test_two_requests_at_once_are_served_by_two_servers_under_one_name(self):
        with Product(CONFIG.format(start=free_range(), engine=ENGINE)) as product:
            answers = []

            def chat():
                body = {"model": "bird", "messages": [{"role": "user", "content": "hi"}], "stream": True}
                answers.append(product.ask("/v1/chat/completions", body)[0])

            first, second = (threading.Thread(target=chat) for _ in range(2))
            first.start()
            wait_for(lambda: product.running() == {"owl": "ready"}, what="the first server")
            second.start()
            wait_for(lambda: product.running() == {"owl": "ready", "owl.r2": "ready"}, what="the second server")
            self.assertTrue(first.is_alive() and second.is_alive(), "both are served at the same time")
            self.assertEqual(product.json("/api/models/owl")["active"], 2)
            self.assertEqual(product.json("/api/models/owl.r2")["active"], 1)
            for thread in (first, second):
                thread.join(20)
            self.assertEqual(answers, [200, 200])
            self.assertEqual([row["id"] for row in product.json("/v1/models")["data"]], ["hen", "owl"])
            rows = product.json("/api/metrics/activity")["data"]
            self.assertEqual([row["model"] for row in rows], ["owl", "owl"])
            pids = [product.json(f"/api/models/{name}")["pid"] for name in ("owl", "owl.r2")]
            self.assertTrue(all(map(alive, pids)))
            product.ask("/api/models/unload/owl", b"", method="POST")
            self.assertEqual((product.running(), [alive(pid) for pid in pids]), ({}, [False, False]))

    def test_load_of_the_model_loads_all_servers_and_another_model_evicts_them(self):
        with Product(CONFIG.format(start=free_range(), engine=ENGINE)) as product:
            product.json("/api/models/load/owl?wait=1", b"", method="POST")
            self.assertEqual(product.running(), {"owl": "ready", "owl.r2": "ready"})
            plan = product.json("/api/plan?model=hen")
            self.assertEqual([each["model"] for each in plan["evicts"]], ["owl", "owl.r2"])
            product.json("/api/models/load/hen?wait=1", b"", method="POST")
            self.assertEqual(product.running(), {"hen": "ready"})

    def test_servers_of_one_model_are_placed_on_gpus_of_their_own(self):
        boards = Path(self.mktemp()).absolute()
        for board in range(2):
            (boards / str(board)).mkdir(parents=True)
            (boards / str(board) / "total").write_text("24576")
        model = "memory: {gpu: 16GiB}, gpus: 1, replicas: 2"
        command = f"{ENGINE} --port ${{PORT}} --env CUDA_VISIBLE_DEVICES --say gpus=${{GPUS}}"
        text = f"startPort: {free_range()}\nrouting: {{memory: on}}\nlogToStdout: both\nmodels:\n"
        text += f'  owl: {{cmd: "{command}", {model}}}\n'
        with Product(text, env={"LLAMASWAP_FAKE_BOARDS": str(boards)}) as product:
            wait_for(lambda: len(product.json("/api/memory")["devices"]) == 3, 10, "the devices")
            product.json("/api/models/load/owl?wait=1", b"", method="POST")
            self.assertEqual(product.running(), {"owl": "ready", "owl.r2": "ready"})
            for words in ("CUDA_VISIBLE_DEVICES=%d\n", "gpus=%d\n"):
                for number in range(2):
                    wait_for(lambda line=words % number: line in product.output, 5, words % number)
