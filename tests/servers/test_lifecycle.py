"""Every pair of state and input, and the drawing."""

from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config.endpoints import Endpoint
from llamaswap.errors import ModelUnloaded, StartFailed
from llamaswap.servers import lifecycle
from llamaswap.servers.lifecycle_interfaces import LifecycleWaiters, StateTask

HERE = Endpoint("http", "127.0.0.1", 5800)
STATES = ("Stopped", "Starting", "Ready", "Suspending", "Suspended", "Resuming", "Stopping")
INPUTS = ("want_ready", "want_stopped", "want_suspended", "suspended", "suspend_failed", "resume_failed",
          "probe_passed", "start_failed", "port_lost", "exited", "drained", "adopted", "adopted_suspended",
          "suspended_and_wanted", "drained_and_wanted")  # fmt: skip

# (state, input) -> (next state, what was done). "" in the second place: nothing at all.
TABLE = {
    ("Stopped", "want_ready"): ("Starting", "start show:starting"),
    ("Stopped", "want_stopped"): ("Stopped", "told:None"),
    ("Stopped", "want_cleaned"): ("Stopping", "stop:0.0"),
    ("Stopped", "adopted"): ("Ready", "show:ready"),
    ("Stopped", "want_suspended"): ("Stopped", "told:None"),
    ("Stopped", "adopted_suspended"): ("Suspended", "show:asleep"),
    ("Starting", "want_suspended"): ("Stopping", "abandon stop:5.0"),
    ("Starting", "want_ready"): ("Starting", ""),
    ("Starting", "want_stopped"): ("Stopping", "abandon stop:5.0"),
    ("Starting", "probe_passed"): ("Ready", "abandon show:ready"),
    ("Starting", "start_failed"): ("Stopping", "abandon stop:5.0"),
    ("Starting", "port_lost"): ("Stopping", "abandon stop:0.0"),
    ("Starting", "exited"): ("Stopping", "abandon stop:0.0"),
    ("Ready", "want_ready"): ("Ready", f"told:{HERE}"),
    ("Ready", "want_stopped"): ("Stopping", "show:stopping stop:7.0"),
    ("Ready", "exited"): ("Stopping", "show:stopping stop:0.0"),
    ("Ready", "want_suspended"): ("Suspending", "suspend:7.0 show:stopping"),
    ("Suspending", "want_ready"): ("Suspending", ""),
    ("Suspending", "want_suspended"): ("Suspending", ""),
    ("Suspending", "want_stopped"): ("Stopping", "leave stop:7.0"),
    ("Suspending", "suspended"): ("Suspended", "show:asleep"),
    ("Suspending", "suspended_and_wanted"): ("Resuming", "resume show:asleep show:starting"),
    ("Suspending", "suspend_failed"): ("Stopping", "leave stop:7.0"),
    ("Suspending", "exited"): ("Stopping", "leave stop:0.0"),
    ("Suspended", "want_ready"): ("Resuming", "resume show:starting"),
    ("Suspended", "want_suspended"): ("Suspended", "told:None"),
    ("Suspended", "want_stopped"): ("Stopping", "stop:7.0"),
    ("Suspended", "exited"): ("Stopping", "stop:0.0"),
    ("Resuming", "want_ready"): ("Resuming", ""),
    ("Resuming", "want_suspended"): ("Suspending", "suspend:7.0 abandon show:stopping"),
    ("Resuming", "want_stopped"): ("Stopping", "abandon stop:5.0"),
    ("Resuming", "resume_failed"): ("Stopping", "abandon stop:5.0"),
    ("Resuming", "probe_passed"): ("Ready", "abandon show:ready"),
    ("Resuming", "exited"): ("Stopping", "abandon stop:0.0"),
    ("Stopping", "want_ready"): ("Stopping", ""),
    ("Stopping", "want_suspended"): ("Stopping", "shorten:7.0"),
    ("Stopping", "want_stopped"): ("Stopping", "shorten:7.0"),
    ("Stopping", "exited"): ("Stopping", "proceed"),
    ("Stopping", "drained"): ("Stopped", "show:stopped"),
    ("Stopping", "drained_and_wanted"): ("Starting", "start show:stopped show:starting"),
}

ROADS = {
    "Stopped": (),
    "Starting": ("want_ready",),
    "Ready": ("want_ready", "probe_passed"),
    "Suspending": ("want_ready", "probe_passed", "want_suspended"),
    "Suspended": ("want_ready", "probe_passed", "want_suspended", "suspended"),
    "Resuming": ("want_ready", "probe_passed", "want_suspended", "suspended", "want_ready"),
    "Stopping": ("want_ready", "probe_passed", "want_stopped"),
}


class RecordingStop:
    """A stop that remembers what it was asked."""

    def __init__(self, done):
        self.done = done

    def begin(self, grace):
        self.done.append(f"stop:{grace}")

    def shorten_grace(self, grace):
        self.done.append(f"shorten:{grace}")

    def proceed(self):
        self.done.append("proceed")


class RecordingActions:
    """Does nothing and remembers everything."""

    def __init__(self):
        self.clock = Clock()
        self.waiters = LifecycleWaiters(self.clock, "kiwi")
        self.done = []
        self.termination = None

    def begin_start(self):
        self.done.append("start")
        self.termination = None
        return StateTask(lambda: self.done.append("abandon"), 5.0)

    def endpoint(self):
        return HERE

    def begin_suspend(self, grace):
        self.done.append(f"suspend:{grace}")
        return StateTask(lambda: self.done.append("leave"), failure_grace=grace)

    def begin_resume(self):
        self.done.append("resume")
        return StateTask(lambda: self.done.append("abandon"), 5.0, 5.0)

    def terminate(self):
        if self.termination is None:
            self.termination = RecordingStop(self.done)
        return self.termination

    def show(self, state):
        self.done.append(f"show:{state}")


def drawing():
    """The machine in reStructuredText, for Graphviz and as a table; without the events that change nothing."""
    moves = sorted(
        (old.name, name, new.name)
        for old, name, new, outputs in lifecycle.machine.__automat_automaton__.allTransitions()
        if outputs[-1].name != "returns(None)"
    )
    arrows = {}
    for old, name, new in moves:
        arrows.setdefault((old, new), []).append(name)
    lines = [".. graphviz::", "", "   digraph lifecycle {"]
    lines += [f'      {old} -> {new} [label="{", ".join(names)}"];' for (old, new), names in arrows.items()]
    lines += ["   }", "", ".. list-table::", "   :header-rows: 1", ""]
    for row in (("in state", "upon", "goes to"), *moves):
        lines += [f"   * - {row[0]}", f"     - {row[1]}", f"     - {row[2]}"]
    return "\n".join(lines) + "\n"


class Drive:
    """A machine brought to a state."""

    def __init__(self, *road):
        self.actions = RecordingActions()
        self.machine = lifecycle.machine(self.actions)
        self.state = "Stopped"
        self.machine.__automat_transitioner__.setTrace(self.trace)
        for name in road:
            self.put(name)
        self.actions.clock.advance(0)
        del self.actions.done[:]

    def trace(self, old, name, new):
        self.state = new.name

    def put(self, name, waiter=None):
        waiter = waiter or Deferred()
        arguments = {
            "want_ready": (waiter,),
            "want_stopped": (waiter, 7.0),
            "want_suspended": (waiter, 7.0),
            "want_cleaned": (waiter,),
            "start_failed": (lambda: StartFailed("kiwi", "too slow"),),
            "exited": (lambda: StartFailed("kiwi", "it went"),),
            "port_lost": (lambda: StartFailed("kiwi", "it went"),),
        }.get(name, ())
        if name == "drained" and self.actions.waiters.wanted:
            name = "drained_and_wanted"
        getattr(self.machine, name)(*arguments)
        waiter.addErrback(lambda failure: failure.value)
        return waiter

    def tell(self):
        self.actions.clock.advance(0)


class PairTests(SynchronousTestCase):
    def test_each_state_and_input_lead_to_the_state_and_actions_of_the_table(self):
        for state in STATES:
            for name in INPUTS:
                drive = Drive(*ROADS[state])
                self.assertEqual(drive.state, state)
                waiter = drive.put(name)
                expected, deeds = TABLE.get((state, name), (state, ""))
                self.assertFalse(waiter.called, "waiters are called on a later turn")
                drive.tell()
                told = []
                if waiter.called and "told" in deeds:
                    result = waiter.result
                    told = [f"told:{type(result).__name__ if isinstance(result, Exception) else result}"]
                done = " ".join(drive.actions.done + told)
                self.assertEqual((drive.state, done), (expected, deeds), f"{name} in {state}")

    def test_drawing_in_the_documentation_is_current(self):
        page = Path(__file__).parents[2] / "docs" / "lifecycle.rst"
        text = drawing()
        self.assertIn(text, page.read_text(encoding="utf-8"), f"put this into docs/lifecycle.rst:\n{text}")


class WaiterTests(SynchronousTestCase):
    def test_waiters_of_a_failed_start_get_the_same_error_when_the_process_has_ended(self):
        """core V40"""
        drive = Drive()
        waiters = [drive.put("want_ready") for _ in range(3)]
        drive.put("start_failed")
        drive.tell()
        self.assertFalse(any(waiter.called for waiter in waiters))
        drive.put("drained")
        drive.tell()
        self.assertEqual([repr(waiter.result) for waiter in waiters], [repr(StartFailed("kiwi", "too slow"))] * 3)

    def test_stop_during_the_start_fails_the_starter_as_unloaded(self):
        drive = Drive()
        starter, stopper = drive.put("want_ready"), drive.put("want_stopped")
        drive.put("drained")
        drive.tell()
        self.assertIsInstance(starter.result, ModelUnloaded)
        self.assertIsNone(stopper.result)
        self.assertTrue(stopper.called)

    def test_request_during_a_stop_is_served_by_the_next_start(self):
        """core V33"""
        drive = Drive(*ROADS["Stopping"])
        waiter = drive.put("want_ready")
        drive.put("drained")
        drive.put("probe_passed")
        drive.tell()
        self.assertEqual(waiter.result, HERE)

    def test_request_after_a_failed_start_is_served_by_the_next_start(self):
        drive = Drive()
        first = drive.put("want_ready")
        drive.put("start_failed")
        second = drive.put("want_ready")
        drive.put("drained")
        drive.put("probe_passed")
        drive.tell()
        self.assertIsInstance(first.result, StartFailed)
        self.assertEqual(second.result, HERE)

    def test_cancelled_waiter_is_not_called(self):
        drive = Drive()
        waiter = Deferred()
        drive.put("want_ready", waiter)
        waiter.cancel()
        drive.put("probe_passed")
        drive.tell()
        self.assertEqual(drive.state, "Ready")

    def test_waiter_may_call_an_input_from_its_callback(self):
        drive = Drive()
        waiter = Deferred()
        waiter.addCallback(lambda _: drive.put("want_stopped"))
        drive.put("want_ready", waiter)
        drive.put("probe_passed")
        drive.tell()
        self.assertEqual(drive.state, "Stopping")
