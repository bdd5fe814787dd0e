"""Random wishes and events: a model has one server at most, each caller gets an answer, and nothing is left behind."""

import random

from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config.schema.model import SuspendSettings
from llamaswap.errors import ModelUnloaded, ShuttingDown, StartFailed
from tests.servers.doubles import REFUSED, scene

WALKS = 200
STEPS = 40
REFUSALS = (ModelUnloaded, ShuttingDown, StartFailed)
ENTER, WAKE = "POST /sleep", "POST /wake"


class Walk:
    """One walk; `callers` are the Deferreds of all that asked for something."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.callers = []
        self.answer = 200
        self.made = scene(
            answer=lambda endpoint: self.answer,
            on_become=self.shape,
            port=5800,
            unload_timeout=2.0,
            health_check_timeout=3.0,
            cmd_stop=self.random.choice(("", "", "halt", "halt ${PID}")),
            sleep=SuspendSettings(sleep=(ENTER,), wake=(WAKE,), timeout=3.0),
        )
        self.made.asked.asked_for = self.answer_step

    def answer_step(self, step):
        status = self.random.choice((200, 200, 200, 500))
        return deferLater(self.made.clock, self.random.choice((0.0, 0.2, 5.0)), lambda: status)

    def shape(self, process):
        process.term_after = self.random.choice((0.0, 0.0, 0.3, None))
        if process.argv[0] == "halt":
            process.world.clock.callLater(0.1, process.die, self.random.choice((0, 1)))

    @property
    def living(self):
        return [server for server in self.made.servers() if server.alive]

    def step(self):
        supervisor, choose = self.made.supervisor, self.random.choice
        kind = choose(("ready", "ready", "stop", "suspend", "clean", "crash", "port", "answer", "wait"))
        if kind == "ready":
            self.callers.append(supervisor.ensure_ready())
        elif kind == "stop":
            self.callers.append(supervisor.stop(choose((None, 0.0, 1.0))))
        elif kind == "suspend":
            self.callers.append(supervisor.suspend())
        elif kind == "clean":
            self.callers.append(supervisor.clean_up())
        elif kind == "crash" and self.living:
            self.living[-1].die(choose((0, 1, -9)))
        elif kind == "port":
            self.made.world.foreign ^= {5800}
        elif kind == "answer":
            self.answer = choose((200, 200, 503, REFUSED, None))
        self.made.wait(choose((0.0, 0.0, 0.005, 0.02, 0.1, 0.5)))


class WalkTests(SynchronousTestCase):
    def test_any_order_of_wishes_and_events_leaves_one_server_at_most_and_none_at_the_end(self):
        for seed in range(WALKS):
            walk = Walk(seed)
            for _ in range(STEPS):
                walk.step()
                self.assertLessEqual(len(walk.living), 1, seed)
            made = walk.made
            walk.answer = 200
            made.wait(10.0)
            self.assertEqual([one for one in walk.callers if not one.called], [], seed)
            walk.callers += [made.supervisor.ensure_ready() for _ in range(seed % 2)]
            walk.callers += [made.supervisor.close(), made.supervisor.ensure_ready()]
            made.wait(5.0)
            self.assertEqual([one for one in walk.callers if not one.called], [], seed)
            failures = [one.result for one in walk.callers if isinstance(one.result, Failure)]
            self.assertEqual([failure for failure in failures if not failure.check(*REFUSALS)], [], seed)
            for one in walk.callers:
                one.addErrback(lambda failure: None)
            self.assertEqual((walk.living, made.supervisor.state), ([], "shutdown"), seed)
            left = [call for call in made.clock.getDelayedCalls() if "Launcher" not in str(call)]
            self.assertEqual(left, [], seed)
