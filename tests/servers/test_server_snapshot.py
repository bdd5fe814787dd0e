"""Taking over children that an earlier program of this process started."""

import os
import signal
import subprocess
import sys

from attrs import evolve
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ProcessProtocol
from twisted.trial.unittest import SynchronousTestCase, TestCase

from llamaswap.config.endpoints import Endpoint
from llamaswap.config.schema.model import SuspendSettings
from llamaswap.servers.server_snapshot import Adopted, descriptors
from llamaswap.servers.spawn import exit_status
from llamaswap.servers.supervisor import end_unwanted
from tests.servers.doubles import TERM, scene


class Recorder(ProcessProtocol):
    def __init__(self):
        self.said = b""
        self.exited, self.closed = Deferred(), Deferred()

    def childDataReceived(self, name, data):
        self.said += data

    def processExited(self, reason):
        self.exited.callback(exit_status(reason))

    def processEnded(self, reason):
        self.closed.callback(None)


class AdoptedTests(TestCase):
    """On real processes: what the reactor does for a process that it started."""

    timeout = 20

    def spawn(self, words, **pipes):
        child = subprocess.Popen(words, **pipes)
        self.addCleanup(lambda: setattr(child, "returncode", 0))  # the adopted process reaps it
        return child

    async def test_adopted_process_reports_output_and_exit(self):
        child = self.spawn(["sh", "-c", "read x; echo heard $x; exit 3"], stdin=-1, stdout=-1)
        recorder = Recorder()
        reading, writing = os.dup(child.stdout.fileno()), os.dup(child.stdin.fileno())
        child.stdin.close()
        child.stdout.close()
        adopted = Adopted(reactor, child.pid, recorder, reading={1: reading}, writing={0: writing})
        adopted.watch()
        self.assertEqual(descriptors(adopted), {0: writing, 1: reading})
        adopted.write(b"you\n")
        self.assertEqual(await recorder.exited, 3)
        await recorder.closed
        self.assertEqual(recorder.said, b"heard you\n")

    async def test_process_that_ended_meanwhile_is_reported_as_ended(self):
        child = self.spawn(["sh", "-c", "kill -9 $$"])
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        recorder = Recorder()
        Adopted(reactor, child.pid, recorder, reading={}, writing={}).watch()
        self.assertEqual(await recorder.exited, -signal.SIGKILL)

    def test_process_that_is_not_a_child_is_refused(self):
        with self.assertRaises(OSError):
            Adopted(reactor, 1 if os.getpid() != 1 else 2**22 - 1, Recorder(), reading={}, writing={})

    def test_inherited_descriptors_are_kept_from_other_children(self):
        child = self.spawn([sys.executable, "-c", ""], stdout=-1)
        descriptor = os.dup(child.stdout.fileno())
        child.stdout.close()
        os.set_inheritable(descriptor, True)
        recorder = Recorder()
        Adopted(reactor, child.pid, recorder, reading={1: descriptor}, writing={}).watch()
        self.assertFalse(os.get_inheritable(descriptor))
        return recorder.closed


class Handover:
    """A server that is up under one supervisor, and a second one in the same world that gets it."""

    def __init__(self, **fields):
        before = scene(**fields)
        ready = before.supervisor.ensure_ready()
        before.wait(0.05)
        assert ready.called
        self.served = before.supervisor.snapshot()
        self.server = before.servers()[0]
        self.after = scene(**fields)
        self.world = self.after.world
        self.server.world = self.world
        self.world.processes.append(self.server)

        def adoption(reactor, pid, protocol, *, reading, writing):
            assert pid == self.server.pid
            self.server.protocol = protocol
            protocol.makeConnection(self.server)
            return self.server

        self.after.supervisor.launcher.adoption = adoption


class SupervisorTests(SynchronousTestCase):
    def make(self, **fields):
        return Handover(**fields)

    def test_server_that_is_no_longer_configured_is_stopped_by_its_stop_command(self):
        made = self.make(cmd_stop="halt ${PID}")
        after = made.after.supervisor
        ended = end_unwanted(made.served, after.launcher, after.ask, made.after.said.append)
        made.after.wait(0.01)
        self.assertEqual([one.argv for one in made.world.commands()][1:], [("halt", str(made.server.pid))])
        self.assertNoResult(ended)
        made.server.die(0)
        made.after.wait(6.0)
        self.successResultOf(ended)

    def test_lost_server_that_is_no_longer_configured_has_ended(self):
        made = self.make()
        after = made.after.supervisor

        def no_child(*args, **pipes):
            raise ChildProcessError(10, "No child processes")

        after.launcher.adoption = no_child
        self.successResultOf(end_unwanted(made.served, after.launcher, after.ask, made.after.said.append))

    def test_server_that_is_not_ready_has_no_snapshot(self):
        self.assertIsNone(scene().supervisor.snapshot())
        starting = scene(answer=503)
        starting.supervisor.ensure_ready()
        starting.wait(0.1)
        self.assertIsNone(starting.supervisor.snapshot())

    def test_adopted_server_is_ready_with_its_old_times_and_is_not_started_again(self):
        made = self.make()
        served = evolve(made.served, started_at=-20.0, ready_at=-10.0, load_seconds=(10.0,))
        self.assertTrue(made.after.supervisor.adopt(served))
        status = made.after.supervisor.status()
        self.assertEqual((status.state, status.pid, status.load_seconds), ("ready", made.server.pid, (10.0,)))
        self.assertEqual((status.started_at, status.ready_at), (-20.0, -10.0))
        ready = made.after.supervisor.ensure_ready()
        made.after.wait(0.05)
        self.assertEqual(self.successResultOf(ready), Endpoint("http", "127.0.0.1", 5800))
        self.assertEqual(made.after.servers(), [made.server])

    def test_suspended_server_is_adopted_suspended_and_resumed_for_the_next_request(self):
        made = self.make(sleep=SuspendSettings(("POST /sleep",), ("POST /wake_up",)))
        self.assertTrue(made.after.supervisor.adopt(evolve(made.served, asleep=True, idle_since=-5.0)))
        status = made.after.supervisor.status()
        self.assertEqual((status.state, status.asleep_since, status.pid), ("stopped", -5.0, made.server.pid))
        ready = made.after.supervisor.ensure_ready()
        made.after.wait(0.05)
        self.successResultOf(ready)
        self.assertEqual(made.after.asked.requests, ["POST /wake_up"])
        self.assertEqual(made.after.servers(), [made.server])

    def test_suspended_server_that_cannot_be_resumed_any_more_is_outdated(self):
        made = self.make()
        self.assertFalse(made.after.supervisor.adopt(evolve(made.served, asleep=True)))

    def test_adopted_server_continues_its_output_and_can_be_stopped(self):
        made = self.make()
        made.after.supervisor.adopt(made.served)
        made.server.say(b"still here\n")
        self.assertEqual(made.after.said, [b"still here\n"])
        stop = made.after.supervisor.stop()
        made.after.wait(0.4)
        self.successResultOf(stop)
        self.assertEqual(made.server.signals, [TERM])

    def test_crash_of_an_adopted_server_is_noticed(self):
        made = self.make()
        made.after.supervisor.adopt(made.served)
        made.server.die(-11)
        made.after.wait(0.4)
        self.assertEqual(made.after.supervisor.state, "stopped")
        self.assertEqual(made.after.heard.exits, [(-11, False)])

    def test_adopted_server_of_another_command_is_outdated(self):
        made = self.make()
        old = evolve(made.served, argv=("other", "words"), cmd_stop="stopper")
        self.assertFalse(made.after.supervisor.adopt(old))
        self.assertEqual(made.after.supervisor.status().cmd, ("other", "words"))
        made.after.supervisor.stop()
        made.after.wait(0.01)
        self.assertEqual(made.world.commands()[-1].argv, ("stopper",))

    def test_adopted_server_of_another_environment_is_outdated(self):
        made = self.make()
        self.assertFalse(made.after.supervisor.adopt(evolve(made.served, env=("A=1",))))

    def test_model_stays_stopped_if_the_adopted_child_does_not_exist(self):
        made = self.make()

        def refuse(*args, **rest):
            raise ChildProcessError(10, "No child processes")

        made.after.supervisor.launcher.adoption = refuse
        self.assertRaises(OSError, made.after.supervisor.adopt, made.served)
        self.assertEqual(made.after.supervisor.state, "stopped")
        ready = made.after.supervisor.ensure_ready()
        made.after.wait(0.1)
        self.successResultOf(ready)

    def test_adopted_server_keeps_its_exchanged_port(self):
        made = self.make(port=5800)
        moved = evolve(
            made.served,
            port=40001,
            argv=("server", "--port", "40001"),
            proxy="http://127.0.0.1:40001",
            endpoint=Endpoint("http", "127.0.0.1", 40001),
        )
        self.assertTrue(made.after.supervisor.adopt(moved))
        self.assertEqual(made.after.supervisor.status().port, 40001)
