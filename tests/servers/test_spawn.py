"""Children and how they are launched."""

import os
import signal

from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.servers.launcher import SPARE_DELAY, Launcher
from llamaswap.servers.spawn import OUTPUT_WINDOW, WINDOW_BYTES, exit_status, say_status
from tests.servers.doubles import KILL, TERM, World, which


def make():
    world = World()
    return world, Launcher(world, world.clock, {"PATH": "/bin", "A": "1"}, "run", kernel=world, which=which)


class LaunchTests(SynchronousTestCase):
    def test_spare_session_leader_is_used_and_replaced_later(self):
        world, launcher = make()
        launcher.warm()
        world.clock.advance(0)
        spare = world.processes[0]
        child = launcher.launch("/bin/a", ["a"], [])
        self.assertEqual(child.pid, spare.pid)
        self.assertEqual(len(world.processes), 1)
        world.clock.advance(SPARE_DELAY)
        self.assertEqual(len(world.processes), 2)

    def test_dead_spare_is_not_used(self):
        world, launcher = make()
        launcher.warm()
        world.clock.advance(0)
        world.processes[0].die(-9)
        self.assertNotEqual(launcher.launch("/bin/a", ["a"], []).pid, world.processes[0].pid)

    def test_closing_ends_the_spare(self):
        world, launcher = make()
        launcher.warm()
        world.clock.advance(0)
        launcher.launch("/bin/a", ["a"], [])
        launcher.close()
        self.assertEqual(world.clock.getDelayedCalls(), [])
        world, launcher = make()
        launcher.warm()
        world.clock.advance(0)
        launcher.close()
        self.assertFalse(world.processes[0].alive)

    def test_every_child_has_its_mark_whatever_the_model_sets(self):
        world, launcher = make()
        children = [launcher.launch("/bin/a", ["a"], ["LLAMASWAP_CHILD=x", "B=2", "no-pair"]) for _ in range(2)]
        first, second = world.commands()
        self.assertEqual([one.environ["LLAMASWAP_CHILD"] for one in (first, second)], ["run.1", "run.2"])
        self.assertEqual([child.mark for child in children], ["run.1", "run.2"])
        self.assertEqual((first.environ["A"], first.environ["B"]), ("1", "2"))
        self.assertNotIn("no-pair", first.environ)

    def test_variable_that_holds_a_key_of_ours_does_not_reach_the_server(self):
        world = World()
        environ = {"PATH": "/bin", "OUR_KEY": "k-secret", "HF_TOKEN": "t"}
        secrets = ["k-secret"]
        launcher = Launcher(world, world.clock, environ, "run", kernel=world, which=which, secrets=lambda: secrets)
        launcher.launch("/bin/a", ["a"], [])
        launcher.launch("/bin/a", ["a"], ["OUR_KEY=k-secret"])
        secrets.clear()  # a reload took the key back
        launcher.launch("/bin/a", ["a"], [])
        self.assertEqual(
            [one.environ.get("OUR_KEY") for one in world.commands()],
            [None, "k-secret", "k-secret"],
        )
        self.assertEqual(world.commands()[0].environ["HF_TOKEN"], "t")

    def test_clean_policy_passes_only_the_variables_of_the_list_and_those_of_the_model(self):
        world = World()
        environ = {"PATH": "/bin", "LC_ALL": "C", "CUDA_VISIBLE_DEVICES": "1", "AWS_SECRET": "s", "PATHS": "x"}
        launcher = Launcher(world, world.clock, environ, "run", kernel=world, which=which)
        launcher.launch("/bin/a", ["a"], ["MINE=1"], policy="clean")
        [command] = world.commands()
        names = {"PATH", "LC_ALL", "CUDA_VISIBLE_DEVICES", "MINE", "LLAMASWAP_CHILD"}
        self.assertEqual(set(command.environ), names)

    def test_command_words_keep_their_bytes(self):
        world, launcher = make()
        word = os.fsdecode(b"\xff\xfe caf\xc3\xa9")
        launcher.launch("/bin/a", ["a", word, ""], [])
        payload = world.processes[0].written
        self.assertIn(b"\xff\xfe caf\xc3\xa9\0\0", payload)

    def test_argument_with_a_nul_is_an_error(self):
        """A NUL ends a word on its way: what follows it would be read as the next one."""
        for argv, env in ((["a", "x\0y"], []), (["a"], ["A=1\0B=2"]), (["a", "\ud800"], [])):
            world, launcher = make()
            self.assertRaises(OSError, launcher.launch, "/bin/a", argv, env, model="kiwi")
            self.assertEqual(world.processes[0].written, b"")
            self.assertFalse(world.processes[0].alive, "its leader is let go")

    def test_watchers_hear_of_a_server_before_it_becomes_the_command(self):
        world, launcher = make()
        launcher.watchers = (book := Book(world),)
        launcher.launch("/bin/a", ["a"], [], model="kiwi")
        self.assertEqual(book.told_before, [b""])


class ChildTests(SynchronousTestCase):
    def test_output_flood_is_read_no_faster_than_its_allowance(self):
        world, launcher = make()
        child = launcher.launch("/bin/a", ["a"], [])
        got = []
        child.attend(got.append)
        process = world.commands()[0]
        while not process.paused:
            process.say(b"x" * 8192)
        self.assertLessEqual(sum(map(len, got)), WINDOW_BYTES + 8192)
        world.clock.advance(OUTPUT_WINDOW)
        self.assertFalse(process.paused)

    def test_exit_of_a_flooding_child_is_reported(self):
        world, launcher = make()
        child = launcher.launch("/bin/a", ["a"], [])
        exits = []
        child.attend(lambda data: None, exits.append)
        process = world.commands()[0]
        while not process.paused:
            process.say(b"x" * 65536)
        process.die(3)
        self.assertFalse(process.paused)
        launcher.close()
        world.clock.advance(1)
        self.assertEqual((exits, world.clock.getDelayedCalls()), ([3], []))

    def test_leader_without_a_group_is_signalled_alone(self):
        world, launcher = make()
        child = launcher.launch("/bin/a", ["a"], [])
        world.commands()[0].group = 1
        child.signal(TERM)
        self.assertEqual(world.commands()[0].signals, [TERM])

    def test_child_that_was_alone_when_its_stop_began_is_gone_without_a_walk_through_all_processes(self):
        world, launcher = make()
        child = launcher.launch("/bin/a", ["a"], [], model="kiwi")
        child.signal(TERM)
        world.clock.advance(0)
        world.members = lambda *record: self.fail("a request waits meanwhile")
        self.assertTrue(child.emptied())

    def test_child_that_ended_by_itself_is_gone_when_no_process_has_its_mark(self):
        world, launcher = make()
        child = launcher.launch("/bin/a", ["a"], [])
        stray = world.new(mark=child.mark)
        world.commands()[0].die(0)
        self.assertFalse(child.emptied())
        stray.die()
        self.assertTrue(child.emptied())

    def test_stop_waits_for_marked_processes_and_descendants_that_left_the_group(self):
        world, launcher = make()
        child = launcher.launch("/bin/a", ["a"], [])
        daemon = world.new(mark=child.mark)
        worker = world.new(mark="", parent=child.pid)
        child.signal(TERM)
        world.clock.advance(0)
        worker.mark = child.mark  # so that the walk through all processes sees it too
        for stray in (daemon, worker):
            self.assertFalse(child.emptied())
            stray.die()
        self.assertTrue(child.emptied())

    def test_stop_finds_marked_processes_if_the_kernel_lists_no_children(self):
        world, launcher = make()
        child = launcher.launch("/bin/a", ["a"], [])
        daemon = world.new(mark=child.mark)
        world.descendants = lambda pid: None
        child.signal(TERM)
        world.clock.advance(0)
        self.assertFalse(child.emptied())
        daemon.die()
        self.assertTrue(child.emptied())

    def test_family_lists_the_likeliest_pid_first_and_each_once(self):
        world, launcher = make()
        child = launcher.launch("/bin/a", ["a"], [])
        worker = world.new(mark=child.mark, parent=child.pid)
        other = world.new(mark=child.mark)
        self.assertEqual(list(child.family()), [child.pid, worker.pid, other.pid])
        world.members = lambda *record: self.fail("not asked for")
        asked = child.family()
        self.assertEqual([next(asked), next(asked)], [child.pid, worker.pid])

    def test_reaped_leader_is_never_signalled(self):
        world, launcher = make()
        child = launcher.launch("/bin/a", ["a"], [])
        world.commands()[0].die(0)
        world.commands()[0].alive = True  # another process has the number now
        child.signal(KILL)
        self.assertEqual(world.commands()[0].signals, [])

    def test_exit_status_as_number_and_words(self):
        self.assertEqual(exit_status(Failure(ProcessDone(0))), 0)
        self.assertEqual(exit_status(Failure(ProcessTerminated(7, None, 0))), 7)
        self.assertEqual(exit_status(Failure(ProcessTerminated(None, signal.SIGSEGV, 0))), -11)
        self.assertEqual([say_status(one) for one in (7, -9, -200)], ["exit status 7", "signal SIGKILL", "signal 200"])


class Book:
    """A watcher that notes what a child had been told when it heard of it."""

    def __init__(self, world):
        self.told_before, self.world = [], world

    def started(self, record):
        self.told_before.append(self.world.processes[-1].written)
