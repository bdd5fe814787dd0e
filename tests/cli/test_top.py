"""top."""

import io
import json
import os
import signal
import sys
import termios
import time
from datetime import datetime

from rich.console import Console
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.cli.client import ApiClient, ClientError
from llamaswap.cli.top import devices, requests
from llamaswap.cli.top_screen import TopScreen, keys_of_terminal
from tests.cli.doubles import Server, invoke, news, sse
from tests.cli.test_models import detail, server_with


def rendered(screen, height=24, width=120):
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=False)
    console.print(screen.view(height, width))
    return console.file.getvalue()


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


class ScreenTests(SynchronousTestCase):
    def setUp(self):
        self.server = Server()
        self.screen = TopScreen(ApiClient("http://here", self.server.send), devices, requests)
        rows = [
            detail("owl", active=3, uptime_s=5),
            detail("bad", "stopped", failed="exit status 3", active=0),
            detail("cat", "ready", active=0, uptime_s=90, pinned=True),
        ]
        self.screen.data = {"models": rows, "queue": [], "requests": [REQUEST], "gpus": [], "system": SYSTEM}

    def press(self, *keys):
        return [work for key in keys if (work := self.screen.press(key)) is not None]

    def test_names_and_keys_are_whole_on_a_terminal_of_80_columns(self):
        name = "qwen3-coder-30b-instruct"
        facts = {"uptime_s": 7000, "ttl_s": 600, "pid": 123456, "port": 65000, "memory": "12.5 GiB"}
        self.screen.data["models"] = [detail(name, active=3, waiting=2, pinned=True, **facts)]
        shown = rendered(self.screen, width=80)
        for part in (name, "ready (pinned)", "12.5 GiB", "q quit"):
            self.assertIn(part, shown)
        self.assertIn("123456", rendered(self.screen))

    def test_screen_shows_all_models_their_failures_requests_and_keys(self):
        shown = rendered(self.screen)
        for part in (
            "cpu 20% of 2",
            "owl",
            "cat",
            "ready (pinned)",
            "bad failed: exit status 3",
            "streaming",
            "q quit",
        ):
            self.assertIn(part, shown)

    def test_arrows_choose_a_model_and_stop_at_the_ends(self):
        names = []
        for key in ("up", "down", "j", "down", "k"):
            self.press(key)
            names.append(self.screen.model["id"])
        self.assertEqual(names, ["bad", "cat", "owl", "owl", "cat"])

    def test_keys_load_unload_and_pin_the_chosen_model(self):
        for path in ("load/bad", "unload/bad", "pin/bad"):
            self.server.on(f"POST /api/models/{path}", {})
        self.server.on("DELETE /api/models/pin/cat", {})
        told = [work() for work in self.press("l", "u", "p", "down", "p")]
        self.assertEqual(
            self.server.asked,
            [*(f"POST /api/models/{verb}/bad" for verb in ("load", "unload", "pin")), "DELETE /api/models/pin/cat"],
        )
        self.assertEqual(told[1:], ["bad is unloaded", "bad is pinned", "cat is not pinned"])

    def test_refused_load_is_an_error_with_its_reason(self):
        self.server.on("POST /api/models/load/bad", (409, {"error": {"message": "cannot load bad: cat is pinned"}}))
        (work,) = self.press("l")
        self.assertIn("loading bad", rendered(self.screen))
        self.assertIn("cat is pinned", str(self.assertRaises(ClientError, work)))

    def test_sorting_goes_through_the_orders(self):
        orders = []
        for _ in range(4):
            orders.append([row["id"] for row in self.screen.rows])
            self.press("s")
        self.assertEqual(
            orders,
            [["bad", "cat", "owl"], ["cat", "owl", "bad"], ["owl", "bad", "cat"], ["cat", "bad", "owl"]],
        )

    def test_log_of_the_chosen_model_is_shown_and_left(self):
        stream = sse(news("logData", {"source": "bad", "data": "one\ntwo\n"}))
        self.server.on("GET /api/events?topics=logs:bad", stream)
        self.assertEqual(self.screen.log_of_chosen(), [])
        self.press("enter")
        self.screen.log = self.screen.log_of_chosen()
        self.assertIn("log of bad", rendered(self.screen))
        self.assertIn("two", rendered(self.screen, 3))
        self.assertNotIn("one", rendered(self.screen, 3))
        self.press("q")
        self.assertEqual((self.screen.page, self.screen.ended), ("models", False))

    def test_log_lines_have_the_times_at_which_they_were_written(self):
        at = 1_750_000_000.0
        lines = "old\none\n2026-02-03T04:05:06Z own\nlast"
        message = {"source": "bad", "data": lines, "times": [[1, at * 1000], [3, at * 1000 + 9000]]}
        self.server.on("GET /api/events?topics=logs:bad", sse(news("logData", message)))
        self.press("enter")
        stamp = lambda when: datetime.fromtimestamp(when).strftime("%m-%d %H:%M:%S  ")
        expected = [" " * 16 + "old", f"{stamp(at)}one", "2026-02-03T04:05:06Z own", f"{stamp(at + 9)}last"]
        self.assertEqual(self.screen.log_of_chosen(), expected)

    def test_help_is_shown_and_q_leaves(self):
        self.press("?")
        self.assertIn("p pin", rendered(self.screen))
        self.press("esc", "q")
        self.assertTrue(self.screen.ended)

    def test_chosen_model_stays_visible_among_more_than_fit(self):
        self.screen.data["models"] = [detail(f"m{number:02}") for number in range(50)]
        for number in (0, 25, 49):
            self.screen.chosen = f"m{number:02}"
            shown = rendered(self.screen, 12)
            self.assertIn(f"m{number:02}", shown)
            self.assertLessEqual(len(shown.splitlines()), 12, shown)

    def test_server_without_models_can_be_watched(self):
        self.screen.data["models"] = []
        self.assertEqual(self.press("up", "l", "enter", "p"), [])
        self.assertIn("q quit", rendered(self.screen))


class TerminalTests(SynchronousTestCase):
    def setUp(self):
        self.keyboard, number = os.openpty()
        self.addCleanup(os.close, self.keyboard)
        stdin = os.fdopen(number)
        self.addCleanup(stdin.close)
        self.patch(sys, "stdin", stdin)
        self.before = termios.tcgetattr(number)

    def attributes(self):
        return termios.tcgetattr(sys.stdin.fileno())

    def test_keys_are_read_without_echo_and_the_terminal_is_restored_after_a_crash(self):
        with self.assertRaises(ZeroDivisionError), keys_of_terminal() as read:
            self.assertNotEqual(self.attributes(), self.before)
            os.write(self.keyboard, b"l\x1b[A")
            self.assertEqual(read(5.0), ["l", "up"])
            self.assertEqual(read(0.0), [])
            1 / 0
        self.assertEqual(self.attributes(), self.before)

    def test_sigterm_restores_the_terminal_and_exits_with_its_status(self):
        earlier = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a failing test must not end the test run
        self.addCleanup(signal.signal, signal.SIGTERM, earlier)
        with self.assertRaises(SystemExit) as ended, keys_of_terminal():
            signal.raise_signal(signal.SIGTERM)
        self.assertEqual(ended.exception.code, 128 + signal.SIGTERM)
        self.assertEqual(self.attributes(), self.before)
        self.assertIs(signal.getsignal(signal.SIGTERM), signal.SIG_IGN)
