"""Several hosts, live: where models appear, and what happens when nodes, heads, fronts and networks fail."""

import atexit
import functools
import os
import signal
import subprocess
import sys
import time

from twisted.trial.unittest import TestCase

from tests.hosts.cluster import ENGINE, START, Cluster, below, kill
from tests.live.product import alive, wait_for

MODELS = f"""
  small: {{cmd: "{ENGINE}", memory: {{gpu: 4GiB}}, place: [alpha, beta]}}
  large: {{cmd: "{ENGINE}", memory: {{gpu: 20GiB}}, place: {{gpus: 1}}}}
  labelled: {{cmd: "{ENGINE}", memory: {{gpu: 1GiB}}, place: {{labels: {{kind: beta}}}}}}
  local: {{cmd: "{ENGINE}", memory: {{ram: 64MiB}}, place: here}}
  absent: {{cmd: "/nonexistent/server --port ${{PORT}}", memory: {{gpu: 1GiB}}, place: [alpha]}}
  stream: {{cmd: "{ENGINE} --one-slot --tokens 600 --interval 0.05", memory: {{gpu: 2GiB}}, place: [beta, alpha]}}
  single: {{cmd: "{ENGINE}", memory: {{gpu: 2GiB}}, place: [beta, alpha]}}
"""


@functools.cache
def one_cluster():
    """The cluster of all tests; it ends with the process."""
    cluster = Cluster(MODELS)
    cluster.__enter__()
    atexit.register(cluster.__exit__)
    return cluster


class HostsTests(TestCase):
    """One cluster for all; each test leaves all hosts online."""

    timeout = 300

    def setUp(self):
        self.cluster = one_cluster()
        wait_for(lambda: len(self.cluster.measured()) == 3, START, "three hosts")

    def test_a_models_appear_on_the_hosts_where_they_fit_and_may_run(self):
        cluster = self.cluster
        for model, host in (("small", "alpha"), ("large", "gamma"), ("labelled", "beta"), ("local", "here")):
            status, pid = cluster.chat(model)
            self.assertEqual(status, 200, pid)
            self.assertEqual(cluster.host_of(model), host)
        cluster.product.ask("/unload", timeout=60)
        self.assertFalse(alive(pid))

    def test_b_program_that_a_host_lacks_is_named(self):
        status, data = self.cluster.chat("absent")
        self.assertEqual(status, 503, data)
        self.assertIn(b"no such executable file", data)

    def test_c_drained_host_gets_nothing_and_its_models_are_loaded_elsewhere(self):
        cluster = self.cluster
        self.assertEqual(cluster.chat("single")[0], 200)
        self.assertEqual(cluster.host_of("single"), "beta")
        status, text = cluster.command("hosts", "drain", "beta", "--url", cluster.product.url)
        self.assertEqual(status, 0, text)
        self.assertEqual(cluster.chat("single")[0], 200)
        self.assertEqual(cluster.host_of("single"), "alpha")
        cluster.command("hosts", "drain", "beta", "--undo", "--url", cluster.product.url)
        cluster.product.ask("/unload", timeout=60)

    def test_d_killed_node_ends_its_streams_and_answers_the_other_requests_elsewhere(self):
        cluster = self.cluster
        cut = cluster.stream("stream")
        wait_for(lambda: cut.data, 30, "the first bytes")
        self.assertEqual(cluster.host_of("stream"), "beta")
        waiting = cluster.stream("stream")  # the engine serves one request at a time: it gets no byte
        time.sleep(1.0)
        engine = [pid for pid in cluster.node("beta") if b"--one-slot" in _command(pid)]
        began = time.monotonic()
        kill(pid for pid in cluster.node("beta") if b"raylet/raylet" in _command(pid))
        self.assertTrue(cut.ended.wait(10), "the stream has no end")
        wait_for(lambda: waiting.data or waiting.ended.is_set(), 20, "an answer elsewhere")
        taken = time.monotonic() - began
        self.assertEqual((waiting.status, waiting.error), (200, None))
        self.assertEqual(cluster.host_of("stream"), "alpha")
        self.assertTrue(cut.error is not None or b"error" in cut.data, "the stream ended as if it were complete")
        wait_for(lambda: not any(map(alive, engine)), 10, "the end of the engine")
        self.assertLess(taken, 10)  # 2 s on an idle machine
        cluster.product.ask("/unload", timeout=60)

    def test_e_returning_host_keeps_no_model_that_was_loaded_elsewhere_meanwhile(self):
        cluster = self.cluster
        _, first = cluster.chat("single")
        self.assertEqual(cluster.host_of("single"), "beta")
        stream = cluster.stream("stream")
        wait_for(lambda: stream.data, 30, "the first bytes")
        self.assertEqual(cluster.host_of("stream"), "beta")
        agent = cluster.agent("beta")
        os.kill(agent, signal.SIGSTOP)
        try:
            self.assertTrue(stream.ended.wait(20), "the stream of a silent host has no end")
            self.assertTrue(stream.error is not None or b"offline" in stream.data, stream.data[-500:])
            wait_for(lambda: "beta" not in cluster.online(), 20, "the silence of beta")
            status, second = cluster.chat("single")
            self.assertEqual(status, 200)
            self.assertEqual(cluster.host_of("single"), "alpha")
            self.assertTrue(alive(first))
        finally:
            os.kill(agent, signal.SIGCONT)
        wait_for(lambda: not alive(first), 20, "the end of the older process")
        self.assertEqual(cluster.chat("single"), (200, second))
        cluster.product.ask("/unload", timeout=60)

    def test_f_host_that_was_silent_is_adopted_with_the_model_that_still_runs(self):
        cluster = self.cluster
        _, first = cluster.chat("labelled")
        agents = [cluster.agent(host) for host in ("alpha", "beta", "gamma")]
        kill(agents, signal.SIGSTOP)
        try:
            wait_for(lambda: not cluster.online(), 20, "the silence of three")
            missed = cluster.product.json("/api/hosts").get("missed")
            self.assertEqual(missed, ["alpha", "beta", "gamma"])
        finally:
            kill(agents, signal.SIGCONT)
        wait_for(lambda: cluster.host_of("labelled") == "beta", 20, "the adoption")
        self.assertEqual(cluster.chat("labelled"), (200, first))
        cluster.product.ask("/unload", timeout=60)

    def test_g_head_that_dies_leaves_models_running_and_is_restarted(self):
        cluster = self.cluster
        _, first = cluster.chat("small")
        kill(pid for pid in below(cluster.product.process.pid) if b"gcs/gcs_server" in _command(pid))
        wait_for(lambda: cluster.product.json("/readyz").get("hosts"), 20, "the word of /readyz")
        self.assertEqual(cluster.chat("small"), (200, first))
        wait_for(lambda: not cluster.product.json("/readyz").get("hosts"), START, "the new head")
        self.assertEqual(cluster.chat("small"), (200, first))
        self.assertEqual(cluster.chat("large")[0], 200)
        cluster.product.ask("/unload", timeout=60)

    def test_h_front_that_dies_finds_its_models_again(self):
        cluster = self.cluster
        _, first = cluster.chat("small")
        os.kill(cluster.product.process.pid, signal.SIGKILL)
        cluster.product.__exit__()
        cluster.product = cluster.front()
        cluster.product.__enter__()
        wait_for(lambda: cluster.host_of("small") == "alpha", START, "the adoption")
        self.assertEqual(cluster.chat("small"), (200, first))
        cluster.product.ask("/unload", timeout=60)

    def test_i_agent_that_is_killed_is_restarted_and_leaves_no_server(self):
        cluster = self.cluster
        _, first = cluster.chat("labelled")
        os.kill(cluster.agent("beta"), signal.SIGKILL)
        wait_for(lambda: not alive(first), 10, "the end of the engine")
        wait_for(lambda: "beta" in cluster.online(), START, "beta")
        wait_for(lambda: cluster.chat("labelled")[0] == 200, 60, "the model")
        cluster.product.ask("/unload", timeout=60)

    def test_j_wrong_token_is_refused_at_once(self):
        cluster = self.cluster
        began = time.monotonic()
        status, text = cluster.command(
            "hosts", "join", f"127.0.0.1:{cluster.ports + 1}", "--name", "delta", "--token", "wrong" * 8,
            "--address", "127.0.0.1", "--state", str(cluster.home / "delta"),
        )  # fmt: skip
        self.assertEqual(status, 1)
        self.assertIn("refuses the token", text)
        self.assertLess(time.monotonic() - began, 10)  # 2 s on an idle machine

    def test_z_ray_stop_leaves_no_server(self):
        cluster = self.cluster
        _, first = cluster.chat("small")
        # It ends every process of Ray that this user runs.
        subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", "stop", "--force"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=60,
        )
        wait_for(lambda: not alive(first), 20, "the end of the engine")


def _command(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""
