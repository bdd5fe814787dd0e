"""Supervision of real processes: what the doubles cannot prove."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

from attrs import evolve
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from llamaswap.config.endpoints import Endpoint
from llamaswap.config.schema.model import Model
from llamaswap.errors import StartFailed
from llamaswap.servers import procfs
from llamaswap.servers.launcher import Launcher
from llamaswap.servers.orphans import sweep
from llamaswap.servers.server_request import SocketRequest
from llamaswap.servers.supervisor import Supervisor
from tests.live.product import within

ENGINE = f"{sys.executable} -I -S {Path(__file__).with_name('engine.py')}"
ROOT = Path(__file__).parents[2]

# A proxy in miniature: starts one model with its guardian and record, says so, and waits to be killed.
PROXY = """
import os, socket, sys
from pathlib import Path
from twisted.internet import reactor
from llamaswap.servers.guardian_client import GuardianClient
from llamaswap.servers.orphans import ChildRecordFile
from llamaswap.servers.launcher import Launcher
guardian = GuardianClient(reactor, dict(os.environ))
record = ChildRecordFile(Path(sys.argv[1]), guardian_pid=lambda: guardian.pid)
if os.environ["HELD_PORT"]:
    listener = socket.create_server(("127.0.0.1", int(os.environ["HELD_PORT"])))
    guardian.hold(listener.fileno())
launcher = Launcher(reactor, reactor, dict(os.environ), sys.argv[2], watchers=[guardian] * int(sys.argv[3]) + [record])
def go():
    stop = os.environ.get("STOP_COMMAND", "").split()
    child = launcher.launch(sys.argv[4], sys.argv[4:], ["NAME=kiwi"], model="kiwi", port=1, stop_words=stop)
    child.attend(lambda data: os.write(1, data))
reactor.callWhenRunning(go)
reactor.run()
"""


class Heard:
    def __init__(self):
        self.news = []

    def state_changed(self, model, old, new):
        self.news.append((time.monotonic(), new))

    def exited(self, model, exit_status, expected):
        self.news.append((time.monotonic(), exit_status))

    def when(self, what):
        return next(at for at, news in reversed(self.news) if news == what)


def spare_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def marked(token):
    """Living processes of a launcher, wherever they hid."""
    found = []
    for one in procfs.everyone():
        mark = procfs.mark_of(one.pid)
        if mark is not None and mark.startswith(token + ".") and not one.dead:
            found.append(one.pid)
    return found


def end(pids):
    for pid in pids:
        procfs.signal_one(pid, signal.SIGKILL)


async def sleep(seconds):
    await deferLater(reactor, seconds)


class LiveCase(TestCase):
    timeout = 30

    def setUp(self):
        if not procfs.available():
            self.skipTest("needs /proc")
        self.token = f"live{os.getpid()}-{time.monotonic_ns()}"
        self.launcher = Launcher(reactor, reactor, dict(os.environ), self.token)
        self.heard = Heard()
        self.output = []
        self.supervisors = []
        self.addCleanup(lambda: Deferred.fromCoroutine(self.clean()))

    async def clean(self):
        for supervisor in self.supervisors:
            await supervisor.close(0.2)
        self.launcher.close()
        left = marked(self.token)
        end(left)
        await sleep(0.35)  # the spare leaves, cut pipes close
        self.assertEqual(left, [])

    def supervise(self, flags="", cmd=None, **fields):
        port = spare_port()
        endpoint = Endpoint("http", "127.0.0.1", port)
        cmd = (cmd or "ENGINE --port PORT " + flags).replace("ENGINE", ENGINE).replace("PORT", str(port))
        model = Model(id="kiwi", cmd=cmd, proxy=str(endpoint), endpoint=endpoint, **fields)
        made = Supervisor(
            evolve(model, health_check_timeout=fields.get("health_check_timeout", 15.0)),
            launcher=self.launcher,
            ask=SocketRequest(reactor),
            log=self.output.append,
            listener=self.heard,
        )
        self.supervisors.append(made)
        return made


class SupervisorTests(LiveCase):
    async def test_start_and_stop_leave_no_process(self):
        made = self.supervise("--ready-after 0.2")
        for stopped in within(0.5):
            await made.ensure_ready()
            began = time.monotonic()
            await made.stop()
            stopped(time.monotonic() - began)
            self.assertEqual(marked(self.token), [])

    async def test_server_whose_health_check_takes_longer_than_any_short_limit_becomes_ready(self):
        code = (
            "import sys, time\n"
            "from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer\n"
            "class Handler(BaseHTTPRequestHandler):\n"
            "    def do_GET(self):\n"
            "        time.sleep(5.5)\n"
            "        self.send_response(200)\n"
            "        self.end_headers()\n"
            "ThreadingHTTPServer(('127.0.0.1', int(sys.argv[1])), Handler).serve_forever()\n"
        )
        path = os.path.abspath(self.mktemp())
        with open(path, "w") as file:
            file.write(code)
        made = self.supervise(cmd=f"{sys.executable} -I {path} PORT")
        await made.ensure_ready()
        self.assertLess(made.status().load_seconds[0], 9.0)

    async def test_child_pid_is_the_servers_and_leads_its_session(self):
        made = self.supervise("--env MODE --env HOME", env=("MODE=1", "MODE=2"))
        await made.ensure_ready()
        found = procfs.stat(made.status().pid)
        self.assertEqual((found.group, found.session), (found.pid, found.pid))
        self.assertIn(b"MODE=2\n", b"".join(self.output))

    async def test_server_and_child_that_ignore_sigterm_end_with_the_grace(self):
        made = self.supervise("--ignore-term --grandchild-ignores")
        await made.ensure_ready()
        began = time.monotonic()
        await made.stop(0.5)
        self.assertLess(time.monotonic() - began, 1.5)
        self.assertEqual(marked(self.token), [])

    async def test_process_that_left_the_session_is_found_by_its_mark(self):
        made = self.supervise("--double-fork --ignore-term")
        await made.ensure_ready()
        self.assertEqual(len(marked(self.token)), 2)
        await made.stop(0.3)
        self.assertEqual(marked(self.token), [])

    async def test_wrapper_that_leaves_a_child_on_the_pipe_fails_at_once(self):
        """core V37 (fix)"""
        made = self.supervise("--grandchild-ignores --leave")
        began = time.monotonic()
        await self.assertFailure(made.ensure_ready(), StartFailed)
        self.assertLess(time.monotonic() - began, 2.0)
        self.assertEqual(marked(self.token), [])

    async def test_crash_is_noticed_within_fifty_milliseconds(self):
        made = self.supervise("--grandchild")
        for noticed in within(0.05):
            await made.ensure_ready()
            killed = time.monotonic()
            os.kill(made.status().pid, signal.SIGKILL)
            while made.state != "stopped":
                await sleep(0.005)
            noticed(self.heard.when(-9) - killed)
        self.assertEqual(marked(self.token), [])

    async def test_failed_start_shows_the_last_output(self):
        made = self.supervise("--exit-at-once")
        error = await self.assertFailure(made.ensure_ready(), StartFailed)
        self.assertEqual((error.exit_status, error.log_tail), (7, "error: invalid argument: --no-mmap"))

    async def test_file_that_cannot_be_executed_fails_the_start_with_the_reason(self):
        script = Path(self.mktemp())
        script.write_bytes(b"\x7fnot a program")
        script.chmod(0o755)
        made = self.supervise(cmd=str(script.resolve()))
        error = await self.assertFailure(made.ensure_ready(), StartFailed)
        self.assertIn("failed to start command", error.cause)
        self.assertEqual(error.exit_status, 127)

    async def test_stop_command_gets_the_pid_of_the_server(self):
        """core V25"""
        made = self.supervise(cmd_stop="kill -KILL ${PID}")
        await made.ensure_ready()
        await made.stop()
        self.assertNotIn(b"SIGTERM", b"".join(self.output))

    async def test_older_server_on_the_port_is_not_taken_for_the_new_one(self):
        made = self.supervise()
        with socket.socket() as squatter:
            squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            squatter.bind(("127.0.0.1", made.model.endpoint.port))
            squatter.listen()
            error = await self.assertFailure(made.ensure_ready(), StartFailed)
        self.assertIn(f"already in use by pid {os.getpid()}", error.cause)

    async def test_restart_ignores_closed_connections_on_the_port(self):
        made = self.supervise("--no-keepalive")
        for _ in range(3):
            endpoint = await made.ensure_ready()
            self.assertEqual(endpoint, made.model.endpoint)
            await made.stop()

    async def test_output_flood_leaves_time_for_other_work(self):
        made = self.supervise("--flood 0")
        await made.ensure_ready()
        turns, until = 0, time.monotonic() + 0.5
        while time.monotonic() < until:
            await sleep(0.001)
            turns += 1
        self.assertGreater(turns, 50)
        self.assertLess(sum(map(len, self.output)), 20_000_000)
        await made.stop(1.0)


class KilledProxyTests(LiveCase):
    """What a proxy killed with SIGKILL leaves behind."""

    def start(self, guardian, flags, stop_command="", held_port=""):
        self.path = Path(self.mktemp()).resolve() / "children.json"
        words = [sys.executable, "-c", textwrap.dedent(PROXY), str(self.path), self.token, str(guardian)]
        proxy = subprocess.Popen(
            [*words, *ENGINE.split(), "--port", "0", *flags],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "STOP_COMMAND": stop_command, "HELD_PORT": held_port},
        )
        self.addCleanup(proxy.stdout.close)
        self.addCleanup(proxy.wait)
        self.addCleanup(proxy.kill)
        while b"listening" not in proxy.stdout.readline():
            self.assertIsNone(proxy.poll())
        return proxy

    async def until_gone(self, limit):
        began = time.monotonic()
        while marked(self.token):
            self.assertLess(time.monotonic() - began, limit, f"still there: {marked(self.token)}")
            await sleep(0.01)
        return time.monotonic() - began

    async def test_no_process_survives_the_death_of_the_proxy(self):
        proxy = self.start(1, ["--grandchild", "--double-fork"])
        self.assertGreaterEqual(len(marked(self.token)), 2)
        proxy.kill()
        seconds = await self.until_gone(3.0)
        print(f"gone {seconds * 1000:.0f} ms after kill -9")

    async def test_processes_that_ignore_sigterm_do_not_survive_the_death_of_the_proxy(self):
        proxy = self.start(1, ["--grandchild-ignores", "--ignore-term"])
        proxy.kill()
        seconds = await self.until_gone(6.0)
        print(f"gone {seconds * 1000:.0f} ms after kill -9, SIGTERM ignored")

    async def test_held_port_of_a_killed_proxy_refuses_connections_only_when_no_process_is_left(self):
        """That is how a front knows that a model may be loaded on another host."""
        port = spare_port()
        proxy = self.start(1, ["--ignore-term"], held_port=str(port))
        self.assertEqual(len(marked(self.token)), 1)
        proxy.kill()
        proxy.wait()
        accepted, began = 0, time.monotonic()
        while True:
            self.assertLess(time.monotonic() - began, 6.0)
            try:
                socket.create_connection(("127.0.0.1", port), 1.0).close()
            except ConnectionRefusedError:
                break
            accepted += 1
            await sleep(0.02)
        self.assertEqual(marked(self.token), [])
        self.assertGreater(accepted, 10)

    async def test_stop_command_runs_with_the_environment_of_the_model_after_the_proxy_was_killed(self):
        """The container of a model lives on when its client ends."""
        folder = Path(self.mktemp()).resolve()
        folder.mkdir()
        script = folder / "stop.sh"
        script.write_text(f'#!/bin/sh\necho "$1 $NAME" > {folder}/stopped\n')
        script.chmod(0o700)
        proxy = self.start(1, [], stop_command=f"{script} container")
        secrets = [self.path.read_text(), Path(f"/proc/{self.guardian_of(proxy)}/cmdline").read_text()]
        self.assertNotIn("NAME", "".join(secrets), "the environment of a model may contain keys")
        proxy.kill()
        await self.until_gone(3.0)
        while not (folder / "stopped").exists():
            await sleep(0.02)
        self.assertEqual((folder / "stopped").read_text(), "container kiwi\n")

    async def test_sweep_waits_for_the_stop_commands_of_the_killed_proxy(self):
        """A stop command that runs late could stop the container of the next start."""
        folder = Path(self.mktemp()).resolve()
        folder.mkdir()
        script = folder / "stop.sh"
        script.write_text(f"#!/bin/sh\nsleep 1\necho done > {folder}/stopped\n")
        script.chmod(0o700)
        proxy = self.start(1, [], stop_command=str(script))
        proxy.kill()
        proxy.wait()
        await sweep(self.path, reactor)
        self.assertTrue((folder / "stopped").exists())

    def guardian_of(self, proxy):
        return json.loads(self.path.read_text())["guardian"]

    async def test_orphan_without_a_guardian_is_swept_by_the_next_start(self):
        proxy = self.start(0, ["--ignore-term"])
        proxy.kill()
        proxy.wait()
        self.assertEqual(len(json.loads(self.path.read_text())["children"]), 1)
        self.assertEqual(len(marked(self.token)), 1)
        (swept,) = await sweep(self.path, reactor)
        self.assertTrue(swept.gone)
        self.assertEqual(marked(self.token), [])
