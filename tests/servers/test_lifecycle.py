"""Every pair of state and input, and the drawing."""

from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config.endpoints import Endpoint
from llamaswap.errors import ModelUnloaded, ShuttingDown, StartFailed
from llamaswap.servers import lifecycle
from llamaswap.servers.lifecycle import LifecycleWaiters, Serving, StartInProgress, StopInProgress, SuspendInProgress

HERE = Endpoint("http", "127.0.0.1", 5800)
STATES = ("Stopped", "Starting", "Ready", "Suspending", "SuspendingThenResume", "Suspended", "Resuming", "Stopping",
          "Restarting", "Closing", "Closed")  # fmt: skip
INPUTS = ("want_ready", "want_stopped", "want_asleep", "fell_asleep", "sleep_failed", "wake_failed", "probe_passed",
          "start_failed", "port_lost", "exited", "drained", "closing", "adopted", "adopted_asleep")  # fmt: skip

# (state, input) -> (next state, what was done). "" in the second place: nothing at all.
TABLE = {
    ("Stopped", "want_ready"): ("Starting", "begin show:starting"),
    ("Stopped", "want_stopped"): ("Stopped", "told:None"),
    ("Stopped", "want_cleaned"): ("Stopping", "go:0.0"),
    ("Stopped", "closing"): ("Closed", "show:shutdown told:None"),
    ("Stopped", "adopted"): ("Ready", "show:ready"),
    ("Stopped", "want_asleep"): ("Stopped", "told:None"),
    ("Stopped", "adopted_asleep"): ("Suspended", "show:asleep"),
    ("Starting", "want_asleep"): ("Stopping", "abandon go:5.0"),
    ("Starting", "want_ready"): ("Starting", ""),
    ("Starting", "want_stopped"): ("Stopping", "abandon go:5.0"),
    ("Starting", "probe_passed"): ("Ready", "abandon show:ready"),
    ("Starting", "start_failed"): ("Stopping", "abandon go:5.0"),
    ("Starting", "port_lost"): ("Restarting", "abandon go:0.0"),
    ("Starting", "exited"): ("Stopping", "abandon go:0.0"),
    ("Starting", "closing"): ("Closing", "abandon show:shutdown go:5.0"),
    ("Ready", "want_ready"): ("Ready", f"told:{HERE}"),
    ("Ready", "want_stopped"): ("Stopping", "show:stopping go:7.0"),
    ("Ready", "exited"): ("Stopping", "show:stopping go:0.0"),
    ("Ready", "closing"): ("Closing", "show:shutdown go:7.0"),
    ("Ready", "want_asleep"): ("Suspending", "doze:7.0 show:stopping"),
    ("Suspending", "want_ready"): ("SuspendingThenResume", ""),
    ("Suspending", "want_asleep"): ("Suspending", ""),
    ("Suspending", "want_stopped"): ("Stopping", "leave go:7.0"),
    ("Suspending", "fell_asleep"): ("Suspended", "show:asleep"),
    ("Suspending", "sleep_failed"): ("Stopping", "go:7.0"),
    ("Suspending", "exited"): ("Stopping", "leave go:0.0"),
    ("Suspending", "closing"): ("Closing", "leave show:shutdown go:7.0"),
    ("SuspendingThenResume", "want_ready"): ("SuspendingThenResume", ""),
    ("SuspendingThenResume", "want_asleep"): ("Suspending", ""),
    ("SuspendingThenResume", "want_stopped"): ("Stopping", "leave go:7.0"),
    ("SuspendingThenResume", "fell_asleep"): ("Resuming", "wake show:asleep show:starting"),
    ("SuspendingThenResume", "sleep_failed"): ("Restarting", "go:7.0"),
    ("SuspendingThenResume", "exited"): ("Restarting", "leave go:0.0"),
    ("SuspendingThenResume", "closing"): ("Closing", "leave show:shutdown go:7.0"),
    ("Suspended", "want_ready"): ("Resuming", "wake show:starting"),
    ("Suspended", "want_asleep"): ("Suspended", "told:None"),
    ("Suspended", "want_stopped"): ("Stopping", "go:7.0"),
    ("Suspended", "exited"): ("Stopping", "go:0.0"),
    ("Suspended", "closing"): ("Closing", "show:shutdown go:7.0"),
    ("Resuming", "want_ready"): ("Resuming", ""),
    ("Resuming", "want_asleep"): ("Suspending", "doze:7.0 abandon show:stopping"),
    ("Resuming", "want_stopped"): ("Stopping", "abandon go:5.0"),
    ("Resuming", "wake_failed"): ("Restarting", "abandon go:5.0"),
    ("Resuming", "probe_passed"): ("Ready", "abandon show:ready"),
    ("Resuming", "exited"): ("Restarting", "abandon go:0.0"),
    ("Resuming", "closing"): ("Closing", "abandon show:shutdown go:5.0"),
    ("Stopping", "want_ready"): ("Restarting", ""),
    ("Stopping", "want_asleep"): ("Stopping", "hasten:7.0"),
    ("Restarting", "want_asleep"): ("Stopping", "hasten:7.0"),
    ("Closing", "want_asleep"): ("Closing", "hasten:7.0"),
    ("Closed", "want_asleep"): ("Closed", "told:None"),
    ("Stopping", "want_stopped"): ("Stopping", "hasten:7.0"),
    ("Stopping", "exited"): ("Stopping", "leader_gone"),
    ("Stopping", "drained"): ("Stopped", "show:stopped"),
    ("Stopping", "closing"): ("Closing", "show:shutdown hasten:7.0"),
    ("Restarting", "want_ready"): ("Restarting", ""),
    ("Restarting", "want_stopped"): ("Stopping", "hasten:7.0"),
    ("Restarting", "exited"): ("Restarting", "leader_gone"),
    ("Restarting", "drained"): ("Starting", "begin show:stopped show:starting"),
    ("Restarting", "closing"): ("Closing", "show:shutdown hasten:7.0"),
    ("Closing", "want_ready"): ("Closing", "told:ShuttingDown"),
    ("Closing", "want_stopped"): ("Closing", "hasten:7.0"),
    ("Closing", "exited"): ("Closing", "leader_gone"),
    ("Closing", "drained"): ("Closed", ""),
    ("Closing", "closing"): ("Closing", "hasten:7.0"),
    ("Closed", "want_ready"): ("Closed", "told:ShuttingDown"),
    ("Closed", "want_stopped"): ("Closed", "told:None"),
    ("Closed", "closing"): ("Closed", "told:None"),
}

ROADS = {
    "Stopped": (),
    "Starting": ("want_ready",),
    "Ready": ("want_ready", "probe_passed"),
    "Suspending": ("want_ready", "probe_passed", "want_asleep"),
    "SuspendingThenResume": ("want_ready", "probe_passed", "want_asleep", "want_ready"),
    "Suspended": ("want_ready", "probe_passed", "want_asleep", "fell_asleep"),
    "Resuming": ("want_ready", "probe_passed", "want_asleep", "fell_asleep", "want_ready"),
    "Stopping": ("want_ready", "probe_passed", "want_stopped"),
    "Restarting": ("want_ready", "probe_passed", "want_stopped", "want_ready"),
    "Closing": ("want_ready", "probe_passed", "closing"),
    "Closed": ("closing",),
}


class RecordingHands:
    """Does nothing and remembers everything."""

    def __init__(self):
        self.clock = Clock()
        self.waiters = LifecycleWaiters(self.clock, "kiwi")
        self.done = []
        self.descent = self.dozing = None

    def begin(self):
        self.done.append("begin")
        self.descent = None
        return StartInProgress(lambda: self.done.append("abandon"))

    def serve(self):
        return Serving(HERE)

    def doze(self, grace):
        if self.dozing is None:
            self.done.append(f"doze:{grace}")
            self.dozing = SuspendInProgress(lambda: self.done.append("leave"), grace)
        return self.dozing

    def wake(self):
        self.done.append("wake")
        self.dozing = None
        return StartInProgress(lambda: self.done.append("abandon"))

    def descend(self):
        if self.descent is None:
            self.descent = StopInProgress(
                lambda grace: self.done.append(f"go:{grace}"),
                lambda grace: self.done.append(f"hasten:{grace}"),
                lambda: self.done.append("leader_gone"),
            )
        return self.descent

    def show(self, word):
        self.done.append(f"show:{word}")


_check: type[lifecycle.Actions] = RecordingHands


class Drive:
    """A machine brought to a state."""

    def __init__(self, *road):
        self.hands = RecordingHands()
        self.machine = lifecycle.machine(self.hands)
        for name in road:
            self.put(name)
        self.hands.clock.advance(0)
        del self.hands.done[:]

    @property
    def state(self):
        return self.machine.__automat_transitioner__._state.name

    def put(self, name, waiter=None):
        waiter = waiter or Deferred()
        arguments = {
            "want_ready": (waiter,),
            "want_stopped": (waiter, 7.0),
            "want_asleep": (waiter, 7.0),
            "want_cleaned": (waiter,),
            "closing": (waiter, 7.0),
            "start_failed": (lambda: StartFailed("kiwi", "too slow"),),
            "exited": (lambda: StartFailed("kiwi", "it went"),),
        }.get(name, ())
        getattr(self.machine, name)(*arguments)
        waiter.addErrback(lambda failure: failure.value)
        return waiter

    def tell(self):
        self.hands.clock.advance(0)


class PairTests(SynchronousTestCase):
    def test_every_pair_goes_where_the_table_says_and_does_what_it_says(self):
        for state in STATES:
            for name in INPUTS:
                drive = Drive(*ROADS[state])
                self.assertEqual(drive.state, state)
                waiter = drive.put(name)
                expected, deeds = TABLE.get((state, name), (state, ""))
                self.assertFalse(waiter.called, "waiters are told on a later turn")
                drive.tell()
                told = []
                if waiter.called and "told" in deeds:
                    result = waiter.result
                    told = [f"told:{type(result).__name__ if isinstance(result, Exception) else result}"]
                done = " ".join(drive.hands.done + told)
                self.assertEqual((drive.state, done), (expected, deeds), f"{name} in {state}")

    def test_the_drawing_in_the_documentation_is_current(self):
        page = Path(__file__).parents[2] / "docs" / "lifecycle.rst"
        self.assertIn(
            lifecycle.describe(), page.read_text(encoding="utf-8"), "regenerate the drawing in docs/lifecycle.rst"
        )


class WaiterTests(SynchronousTestCase):
    def test_joined_waiters_of_a_failed_start_get_the_same_error_once_the_process_is_gone(self):
        """core V40"""
        drive = Drive()
        waiters = [drive.put("want_ready") for _ in range(3)]
        drive.put("start_failed")
        drive.tell()
        self.assertFalse(any(waiter.called for waiter in waiters))
        drive.put("drained")
        drive.tell()
        self.assertEqual([repr(waiter.result) for waiter in waiters], [repr(StartFailed("kiwi", "too slow"))] * 3)

    def test_a_stop_during_the_start_tells_the_starter_unloaded_and_the_stopper_done(self):
        drive = Drive()
        starter, stopper = drive.put("want_ready"), drive.put("want_stopped")
        drive.put("drained")
        drive.tell()
        self.assertIsInstance(starter.result, ModelUnloaded)
        self.assertIsNone(stopper.result)
        self.assertTrue(stopper.called)

    def test_who_asks_during_a_stop_is_served_by_the_next_start(self):
        """core V33"""
        drive = Drive(*ROADS["Stopping"])
        waiter = drive.put("want_ready")
        drive.put("drained")
        drive.put("probe_passed")
        drive.tell()
        self.assertEqual(waiter.result, HERE)

    def test_a_failed_start_does_not_doom_those_who_asked_after_it(self):
        drive = Drive()
        first = drive.put("want_ready")
        drive.put("start_failed")
        second = drive.put("want_ready")
        drive.put("drained")
        drive.put("probe_passed")
        drive.tell()
        self.assertIsInstance(first.result, StartFailed)
        self.assertEqual(second.result, HERE)

    def test_closing_answers_everybody(self):
        for state in STATES:
            drive = Drive(*ROADS[state])
            waiters = [drive.put("want_ready"), drive.put("want_stopped"), drive.put("closing")]
            drive.put("drained")
            drive.tell()
            self.assertEqual(drive.state, "Closed", state)
            self.assertTrue(all(waiter.called for waiter in waiters), state)
            self.assertIsInstance(drive.put("want_ready") and waiters[0].result, Exception | Endpoint)

    def test_a_closed_server_is_never_started_again(self):
        drive = Drive("closing")
        waiter = drive.put("want_ready")
        drive.tell()
        self.assertEqual(repr(waiter.result), repr(ShuttingDown("kiwi")))

    def test_a_waiter_that_gave_up_is_not_told_twice(self):
        drive = Drive()
        waiter = Deferred()
        drive.put("want_ready", waiter)
        waiter.cancel()
        drive.put("probe_passed")
        drive.tell()
        self.assertEqual(drive.state, "Ready")

    def test_a_waiter_may_call_an_input_when_told(self):
        drive = Drive()
        waiter = Deferred()
        waiter.addCallback(lambda _: drive.put("want_stopped"))
        drive.put("want_ready", waiter)
        drive.put("probe_passed")
        drive.tell()
        self.assertEqual(drive.state, "Stopping")
