"""top."""

import json
import time

from twisted.trial.unittest import SynchronousTestCase

from tests.cli.doubles import invoke, news, sse
from tests.cli.test_models import detail, server_with

REQUEST = {"id": "9", "model": "owl", "phase": "streaming", "elapsed_ms": 2000, "ttft_ms": 250, "tps": 41.5}
GPU = {"id": 0, "name": "H1", "gpu_util_pct": 50, "mem_used_mb": 1024, "mem_total_mb": 2048, "temp_c": 60}
SYSTEM = {"cpu_util_per_core": [10, 30], "load_avg_1": 0.5, "mem_used_mb": 1024, "mem_total_mb": 4096}


def picture(performance=None):
    server = server_with(detail("owl")).on("GET /v1/models", {"data": [{"id": "owl"}]})
    server.on("GET /api/events?topics=inflight", sse(news("inflight", {"requests": [REQUEST]})))
    machine = {"gpu_stats": [{**GPU, "power_draw_w": 99}], "sys_stats": [SYSTEM]}
    return server.on("GET /api/performance?max_points=1", performance or machine)


class TopTests(SynchronousTestCase):
    def test_view_shows_models_requests_and_gpus(self):
        done = invoke(["top", "--once"], picture())
        self.assertEqual(done.exit_code, 0, done.output)
        for part in ("owl", "H1", "99 W", "streaming", "41.5", "cpu 20% of 2"):
            self.assertIn(part, done.stdout)

    def test_waiting_request_has_its_reason(self):
        late = {
            "id": "10",
            "model": "late",
            "phase": "queued",
            "elapsed_ms": 1500,
            "reason": "waiting for owl to finish",
        }
        server = picture().on("GET /api/events?topics=inflight", sse(news("inflight", {"requests": [REQUEST, late]})))
        self.assertIn("waiting 1.5s for late: waiting for owl to finish", invoke(["top", "--once"], server).stdout)

    def test_top_without_a_terminal_prints_view_after_view(self):
        server = picture()
        looks = []

        def machine(_):
            looks.append(1)
            return KeyboardInterrupt() if len(looks) > 3 else (503, {}) if len(looks) != 2 else OSError(111, "Refused")

        self.patch(time, "sleep", lambda _: None)
        done = invoke(["top"], server.on("GET /api/performance?max_points=1", machine))
        self.assertEqual(done.stdout.count("owl    ready"), 2, done.stdout)
        self.assertEqual(done.stdout.count("Refused"), 1, done.stdout)  # a restart meanwhile ends nothing

    def test_stopped_models_are_listed_without_a_request_for_each(self):
        server = picture().on("GET /v1/models", {"data": [{"id": name} for name in ("owl", "cat", "dog")]})
        done = invoke(["top", "--once"], server)
        self.assertIn("not loaded: cat, dog", done.stdout)
        self.assertEqual([what for what in server.asked if "/api/models/" in what], ["GET /api/models/owl"])

    def test_top_json_is_one_line(self):
        found = json.loads(invoke(["top", "--once", "--json"], picture()).stdout)
        self.assertEqual(found["requests"][0]["id"], "9")

    def test_view_without_machine_readings_shows_the_rest(self):
        done = invoke(["top", "--once"], picture((503, {"enabled": False})))
        self.assertIn("owl", done.stdout)
