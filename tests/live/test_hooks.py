"""Hooks of a running service: real commands around real servers."""

import json
import os
import sys
import uuid

from twisted.internet import reactor
from twisted.internet.process import ProcessReader
from twisted.internet.task import deferLater
from twisted.logger import LogLevel, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase

from llamaswap.config.schema import HookSettings
from llamaswap.servers import procfs
from llamaswap.servers.hooks import HookRunner
from llamaswap.servers.launcher import Launcher
from tests.live.product import Product, wait_for
from tests.live.test_service import chat, config


class HooksTests(SynchronousTestCase):
    timeout = 60

    def test_hooks_of_a_model_run_in_order(self):
        code = "import os, sys; open(sys.argv[1], 'a').write(os.environ['LLAMASWAP_EVENT'] + chr(10))"
        told = self.mktemp() + ".log"
        with open(told, "w"):
            pass
        note = f'{sys.executable} -I -S -c "{code}" {os.path.abspath(told)}'
        events = ("before_load", "after_ready", "before_unload", "after_unload", "on_failure")
        text = json.loads(config(one="", bad={"cmd": f"{sys.executable} -c 'raise SystemExit(3)' --port ${{PORT}}"}))
        text["hooks"] = {event: [note] for event in events}
        with Product(json.dumps(text)) as product:
            product.json("/v1/chat/completions", chat("one"))
            product.ask("/api/models/unload", b"", method="POST")
            self.assertGreaterEqual(product.ask("/v1/chat/completions", chat("bad"))[0], 500)

            def lines():
                with open(told) as file:
                    return file.read().split()

            wait_for(lambda: "on_failure" in lines(), 10, "on_failure")
            self.assertEqual([event for event in lines() if event.startswith("before")][:2], list(events[0:3:2]))
            self.assertEqual(set(lines()), set(events))

    def test_after_unload_runs_at_shutdown_too(self):
        code = "import sys, time; time.sleep(1); print(1, flush=True); open(sys.argv[1], 'w')"
        told = os.path.abspath(self.mktemp())
        text = json.loads(config(one=""))
        text["hooks"] = {"after_unload": [f'{sys.executable} -I -S -c "{code}" {told}']}
        with Product(json.dumps(text)) as product:
            product.json("/v1/chat/completions", chat("one"))
            product.process.terminate()
            product.process.wait(20)
            self.assertTrue(os.path.exists(told))


class CommandTests(TestCase):
    timeout = 30

    def run_hook(self, command, timeout=10.0):
        launcher = Launcher(reactor, reactor, {"PATH": "/usr/bin:/bin"}, uuid.uuid4().hex)
        self.addCleanup(launcher.close)
        hooks = HookSettings(before_load=(command,), timeout=timeout)
        return HookRunner(reactor, lambda: hooks, launcher, None).run("before_load", "owl")

    def setUp(self):
        self.events = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    async def tearDown(self):
        """A command that was killed is reaped a moment after its hook is over."""
        for _ in range(500):
            if not any(isinstance(reader, ProcessReader) for reader in reactor.getReaders()):
                break
            await deferLater(reactor, 0.01)

    def faults(self):
        """What the log says of hooks that failed."""
        found = [event for event in self.events if event["log_namespace"] == "llamaswap.servers.hooks"]
        return [formatEvent(event) for event in found if event["log_level"] is LogLevel.error]

    async def test_hook_command_has_event_and_model_in_its_environment(self):
        path = self.mktemp()
        code = f"import os; open({path!r}, 'w').write(os.environ['LLAMASWAP_EVENT'] + os.environ['LLAMASWAP_MODEL'])"
        await self.run_hook(f'{sys.executable} -c "{code}"')
        with open(path) as file:
            self.assertEqual(file.read(), "before_loadowl")

    async def test_hook_command_that_fails_or_is_missing_ends_the_hook(self):
        await self.run_hook("false")
        await self.run_hook("/no/such/program")
        await self.run_hook("# nothing")

    async def test_hook_command_has_an_empty_input(self):
        """ssh and docker do; a hook has nothing to say to them."""
        path = self.mktemp()
        code = f"import sys; open({path!r}, 'w').write('read' + sys.stdin.read())"
        await self.run_hook(f'{sys.executable} -c "{code}"', timeout=5.0)
        with open(path) as file:
            self.assertEqual(file.read(), "read")

    async def test_hook_ends_with_its_command_whatever_that_left_running(self):
        """What runs on in the background may hold the command's output for ever."""
        began = reactor.seconds()
        await self.run_hook("sh -c 'sleep 9 & echo $!'")
        self.assertLess(reactor.seconds() - began, 5)
        self.assertEqual(self.faults(), [])

    async def test_hook_command_that_takes_too_long_is_killed(self):
        began = reactor.seconds()
        await self.run_hook("sleep 20", timeout=0.2)
        self.assertLess(reactor.seconds() - began, 10)
        self.assertEqual(self.faults(), ["hook before_load for owl failed: it took too long"])

    async def test_children_of_a_hook_command_that_takes_too_long_are_killed(self):
        path = self.mktemp()
        await self.run_hook(f"sh -c 'sleep 97 & echo $! > {path}; wait'", timeout=2.0)
        with open(path) as file:
            child = int(file.read())
        for _ in range(500):
            if (left := procfs.stat(child)) is None or left.dead:
                return
            await deferLater(reactor, 0.01)
        self.fail("it runs on")
