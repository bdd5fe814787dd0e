"""The record of children, its sweep, and the proxy's side of the guardian."""

import errno
import json
import os
from pathlib import Path

from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.servers.guardian import CHILDREN, ChildTable
from llamaswap.servers.guardian_client import REPLACEMENTS, GuardianClient
from llamaswap.servers.orphans import GUARDIAN_LIMIT, PAGE, ChildRecordFile, read_record, sweep
from llamaswap.servers.spawn import ChildRecord
from tests.servers.doubles import KILL, TERM, World


class RecordTests(SynchronousTestCase):
    def setUp(self):
        self.world = World()
        self.path = Path(self.mktemp()) / "children.json"

    def left_behind(self, **fields):
        """A server of an earlier run, with its line in the record."""
        server = self.world.new(mark="old.1", **fields)
        self.write([ChildRecord(server.pid, server.start, "old.1", "kiwi", 5800)])
        return server

    def write(self, children, pid=999999, start=1, boot="boot"):
        file = ChildRecordFile(self.path, self.world, boot)
        for record in children:
            file.started(record)
        document = json.loads(self.path.read_text())
        self.path.write_text(json.dumps({**document, "pid": pid, "start": start}))

    def sweep(self, boot="boot", lost=0):
        swept = sweep(self.path, self.world.clock, boot=boot, kernel=self.world, lost=lost)
        for _ in range(500):
            self.world.clock.advance(0.02)
        return self.successResultOf(swept)

    def test_record_lists_the_running_children(self):
        record = ChildRecordFile(self.path, self.world, "boot")
        one, two = ChildRecord(7, 70, "m.1", "kiwi", 5800), ChildRecord(8, 80, "m.2", "plum", None)
        record.started(one)
        record.started(two)
        record.ended(one)
        self.assertEqual(list(read_record(self.path, "boot", self.world).children), [two])
        self.assertEqual(self.path.parent.stat().st_mode & 0o777, 0o700)
        self.assertEqual(os.listdir(self.path.parent), ["children.json"])

    def test_an_end_delays_no_start_because_it_is_written_later(self):
        later, listed = [], lambda: list(read_record(self.path, "boot", self.world).children)
        record = ChildRecordFile(self.path, self.world, "boot", later=later.append)
        one, two = ChildRecord(7, 70, "m.1", "kiwi", 5800), ChildRecord(8, 80, "m.2", "plum", None)
        record.started(one)
        record.ended(one)
        self.assertEqual(listed(), [one])
        later.pop()()
        self.assertEqual(listed(), [])
        record.started(one)
        record.ended(one)
        record.started(two)  # this write has the end too
        self.assertEqual(listed(), [two])
        self.path.unlink()
        later.pop()()
        self.assertFalse(self.path.exists(), "written again without a change")
        record.ended(two)
        record.flush()
        self.assertEqual(listed(), [])

    def record(self):
        record = ChildRecordFile(self.path, self.world, "boot")
        self.addCleanup(record.close)
        return record

    def listed(self):
        return list(read_record(self.path, "boot", self.world).children)

    def test_start_makes_no_new_file_if_there_is_one(self):
        record = self.record()
        one, two = ChildRecord(7, 70, "m.1", "kiwi", 5800), ChildRecord(8, 80, "m.2", "plum", None)
        record.started(one)
        before = self.path.stat().st_ino
        record.started(two)
        record.ended(one)
        self.assertEqual((self.path.stat().st_ino, self.listed()), (before, [two]))

    def test_file_that_was_deleted_or_replaced_is_written_again(self):
        record = self.record()
        one, two = ChildRecord(7, 70, "m.1", "kiwi", 5800), ChildRecord(8, 80, "m.2", "plum", None)
        record.started(one)
        self.path.unlink()
        record.started(two)
        self.assertEqual(self.listed(), [one, two])
        other = self.path.with_name("other")
        other.write_text("{}")
        other.replace(self.path)
        record.ended(one)
        self.assertEqual(self.listed(), [two])

    def test_record_of_many_servers_is_replaced_in_one_step_and_shrinks_again(self):
        record = self.record()
        many = [ChildRecord(pid, 70, f"m.{pid}", "kiwi" * 20, 5800) for pid in range(7, 57)]
        for number, one in enumerate(many, 1):
            record.started(one)
            self.assertEqual(self.listed(), many[:number])
        self.assertGreater(self.path.stat().st_size, PAGE)
        before = self.path.stat().st_ino
        record.started(many[0])
        self.assertNotEqual(self.path.stat().st_ino, before)
        for number, one in enumerate(many, 1):
            record.ended(one)
            self.assertEqual(self.listed(), many[number:])
        self.assertEqual(self.path.stat().st_size, PAGE)
        self.assertEqual(os.listdir(self.path.parent), ["children.json"])

    def test_file_that_cannot_be_overwritten_is_replaced(self):
        record = self.record()
        one, two = ChildRecord(7, 70, "m.1", "kiwi", 5800), ChildRecord(8, 80, "m.2", "plum", None)
        record.started(one)

        def failing(descriptor, content, offset):
            raise OSError(errno.EIO, "input/output error")

        self.patch(os, "pwrite", failing)
        record.started(two)
        self.assertEqual(self.listed(), [one, two])

    def test_failing_disk_does_not_fail_a_start(self):
        blocked = Path(self.mktemp())
        blocked.write_text("a file")
        ChildRecordFile(blocked / "children.json", self.world, "boot").started(ChildRecord(7, 70, "m.1", "kiwi", 5800))

    def test_orphan_gets_sigterm_first(self):
        server = self.left_behind(term_after=0.5)
        (swept,) = self.sweep()
        self.assertEqual((swept.record.model, swept.gone, server.signals), ("kiwi", True, [TERM]))

    def test_orphan_that_ignores_sigterm_is_killed(self):
        server = self.left_behind(term_after=None)
        self.assertTrue(self.sweep()[0].gone)
        self.assertEqual(server.signals, [TERM, KILL])

    def test_orphan_that_survives_sigkill_is_reported(self):
        self.left_behind(term_after=None, kill_after=None)
        self.assertFalse(self.sweep()[0].gone)

    def test_descendants_of_a_dead_leader_are_swept_by_their_mark(self):
        server = self.left_behind()
        worker = self.world.orphan(server, term_after=None)
        server.alive = False
        self.assertTrue(self.sweep()[0].gone)
        self.assertFalse(worker.alive)

    def test_other_process_with_the_same_pid_is_not_touched(self):
        server = self.left_behind()
        server.alive = False
        stranger = self.world.new(pid=server.pid, group=server.pid, start=server.start + 5)
        member = self.world.orphan(stranger)
        self.assertEqual(self.sweep(), [])
        self.assertEqual((stranger.signals, member.signals), ([], []))

    def test_record_of_another_run_of_the_kernel_is_not_used(self):
        server = self.left_behind()
        self.assertEqual(self.sweep(boot="another"), [])
        self.assertTrue(server.alive)

    def test_children_of_a_living_proxy_are_not_swept(self):
        proxy = self.world.new()
        server = self.world.new(mark="old.1")
        self.write([ChildRecord(server.pid, server.start, "old.1", "kiwi", 5800)], proxy.pid, proxy.start)
        self.assertEqual(self.sweep(), [])
        self.assertTrue(server.alive)

    def test_children_that_this_process_lost_are_swept(self):
        """A process that became another program, and the state it should have got could not be read."""
        proxy = self.world.new()
        server = self.world.new(mark="old.1")
        self.write([ChildRecord(server.pid, server.start, "old.1", "kiwi", 5800)], proxy.pid, proxy.start)
        self.assertTrue(self.sweep(lost=proxy.pid)[0].gone)
        self.assertFalse(server.alive)

    def refused(self, server):
        """A sweep refuses the record: no process is signalled, and the log says what is wrong."""
        with capturedLogs() as events:
            self.assertEqual(self.sweep(), [])
        self.assertTrue(server.alive)
        self.assertEqual(server.signals, [])
        [event] = events
        return formatEvent(event)

    def test_process_named_in_a_state_folder_that_others_may_write_to_is_not_ended(self):
        server = self.left_behind()
        self.path.parent.chmod(0o777)
        self.assertIn(f"{self.path.parent} can be written by other users", self.refused(server))

    def test_process_named_in_a_record_that_others_may_write_to_is_not_ended(self):
        server = self.left_behind()
        self.path.chmod(0o666)
        self.assertIn("chmod go-w", self.refused(server))

    def test_process_named_in_a_record_behind_a_link_is_not_ended(self):
        server = self.left_behind()
        elsewhere = Path(self.mktemp())
        self.path.rename(elsewhere)
        self.path.symlink_to(elsewhere.resolve())
        self.assertIn("is a link; delete it", self.refused(server))

    def test_file_behind_a_link_where_the_record_goes_is_not_overwritten(self):
        victim = Path(self.mktemp())
        victim.write_text("precious")
        self.path.parent.mkdir(mode=0o700)
        for name in (self.path.name, f"{self.path.name}.{os.getpid()}", f"{self.path.name}.{os.getpid()}.new"):
            (self.path.parent / name).symlink_to(victim.resolve())
        ChildRecordFile(self.path, self.world, "boot").started(ChildRecord(7, 70, "m.1", "kiwi", 5800))
        self.assertEqual(victim.read_text(), "precious")
        self.assertFalse(self.path.is_symlink())
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o600)

    def test_record_is_not_written_to_a_state_folder_that_others_may_write_to(self):
        self.path.parent.mkdir()
        self.path.parent.chmod(0o777)
        with capturedLogs() as events:
            ChildRecordFile(self.path, self.world, "boot").started(ChildRecord(7, 70, "m.1", "kiwi", 5800))
        self.assertEqual(os.listdir(self.path.parent), [])
        self.assertIn("remove their right with chmod go-w, or delete it", formatEvent(events[0]))

    def test_broken_or_missing_record_names_no_orphans(self):
        self.assertEqual(self.sweep(), [])
        self.path.parent.mkdir(mode=0o700)
        for text in ("", "{}", "[1]", '{"children": [{}]}', "\x00"):
            self.path.write_text(text)
            self.assertEqual(self.sweep(), [])

    def test_record_has_no_stop_command_and_no_environment(self):
        file = ChildRecordFile(self.path, self.world, "boot")
        file.started(ChildRecord(7, 70, "m.1", "kiwi", 5800, ("docker", "stop", "kiwi"), ("TOKEN=secret",)))
        text = self.path.read_text()
        self.assertNotIn("secret", text)
        self.assertNotIn("docker", text)

    def sweep_beside_guardian(self):
        """A sweep while the guardian of the killed proxy runs: (its Deferred, the server, the guardian)."""
        server, guardian = self.world.new(mark="old.1"), self.world.new()
        file = ChildRecordFile(self.path, self.world, "boot", guardian_pid=lambda: guardian.pid)
        file.started(ChildRecord(server.pid, server.start, "old.1", "kiwi", 5800))
        document = json.loads(self.path.read_text())
        self.path.write_text(json.dumps({**document, "pid": 999999, "start": 1}))
        swept = sweep(self.path, self.world.clock, boot="boot", kernel=self.world)
        self.world.clock.advance(5.0)
        self.assertNoResult(swept)
        self.assertEqual(server.signals, [])
        return swept, server, guardian

    def test_sweep_waits_for_the_guardian_of_the_killed_proxy(self):
        swept, server, guardian = self.sweep_beside_guardian()
        guardian.die()
        self.world.clock.pump([0.02] * 3)
        self.assertEqual(server.signals, [TERM])
        self.assertTrue(self.successResultOf(swept)[0].gone)

    def test_sweep_does_not_wait_for_the_guardian_of_this_process(self):
        server, guardian, proxy = self.world.new(mark="old.1"), self.world.new(), self.world.new()
        file = ChildRecordFile(self.path, self.world, "boot", guardian_pid=lambda: guardian.pid)
        file.started(ChildRecord(server.pid, server.start, "old.1", "kiwi", 5800))
        document = json.loads(self.path.read_text())
        self.path.write_text(json.dumps({**document, "pid": proxy.pid, "start": proxy.start}))
        swept = sweep(self.path, self.world.clock, boot="boot", kernel=self.world, lost=proxy.pid)
        self.world.clock.pump([0.02] * 3)
        self.assertTrue(self.successResultOf(swept)[0].gone)

    def test_sweep_does_not_wait_for_a_guardian_that_does_not_end(self):
        swept, server, _ = self.sweep_beside_guardian()
        self.world.clock.advance(GUARDIAN_LIMIT)
        self.world.clock.pump([0.02] * 3)
        self.assertEqual(server.signals, [TERM])
        self.assertTrue(self.successResultOf(swept)[0].gone)


class Pipe:
    def __init__(self, descriptor):
        self.fileno = lambda: descriptor


class GuardianTests(SynchronousTestCase):
    def setUp(self):
        self.world = World()
        self.guardian = GuardianClient(self.world, {})

    def direct(self, process, room=1 << 16):
        """What writes to the pipe itself, as long as there is room."""

        def write(descriptor, data):
            nonlocal room
            if not room:
                raise BlockingIOError
            taken = data[:room]
            room -= len(taken)
            process.written += taken
            return len(taken)

        return write

    def children(self, process):
        book = ChildTable()
        book.read(process.environ[CHILDREN].encode())
        book.read(process.written)
        return {pid: (start, mark) for pid, (start, mark, _) in book.children.items()}

    def test_guardian_starts_with_the_first_child_and_knows_the_living_ones(self):
        self.assertEqual(self.world.processes, [])
        one, two = ChildRecord(7, 70, "m.1", "kiwi", 5800), ChildRecord(8, 80, "m.2", "plum", None)
        self.guardian.started(one)
        self.guardian.started(two)
        self.guardian.ended(one)
        self.assertEqual(len(self.world.processes), 1)
        self.assertEqual(self.children(self.world.processes[0]), {8: (80, "m.2")})

    def test_guardian_of_an_agent_has_its_listening_socket_before_the_first_child(self):
        """So a connection is refused only when the agent and all of its servers have ended."""
        self.guardian.hold(12)
        self.assertEqual([process.given["childFDs"] for process in self.world.processes], [{0: "w", 3: 12}])
        self.guardian.started(ChildRecord(7, 70, "m.1", "kiwi", 5800))
        self.world.processes[-1].die(-9)
        self.world.clock.advance(0.1)
        self.assertEqual([process.given["childFDs"] for process in self.world.processes], [{0: "w", 3: 12}] * 2)

    def test_killed_guardian_is_replaced_a_bounded_number_of_times(self):
        self.guardian.started(ChildRecord(7, 70, "m.1", "kiwi", 5800))
        for _ in range(REPLACEMENTS + 3):
            last = self.world.processes[-1]
            last.die(-9)
            self.world.clock.advance(0.1)
        self.assertEqual(len(self.world.processes), REPLACEMENTS + 1)
        self.assertEqual(self.children(self.world.processes[-1]), {7: (70, "m.1")})

    def test_new_guardian_knows_every_child_from_its_first_moment(self):
        """Killed before we could write a line to it, we must have left it all there is to know."""
        self.guardian.started(ChildRecord(7, 70, "m.1", "kiwi", 5800))
        self.guardian.started(ChildRecord(8, 80, "m.2", "plum", None))
        self.world.processes[-1].die(-9)
        self.world.clock.advance(0.1)
        self.assertEqual(len(self.world.processes), 2)
        self.assertEqual(self.children(self.world.processes[-1]), {7: (70, "m.1"), 8: (80, "m.2")})
        self.assertEqual(self.world.processes[-1].written, b"")

    def test_inherited_guardian_hears_of_every_child_and_is_not_started_again(self):
        self.guardian.started(ChildRecord(7, 70, "m.1", "kiwi", 5800))
        process = self.world.processes[0]
        process.pipes = {0: Pipe(33)}
        self.assertEqual(self.guardian.handover(), (process.pid, 33))
        adopted = []

        def adoption(reactor, pid, protocol, *, reading, writing):
            adopted.append((pid, reading, writing))
            protocol.makeConnection(process)
            return process

        later = GuardianClient(self.world, {}, adoption, self.direct(process))
        self.assertIsNone(later.handover())
        later.adopt(process.pid, 33)
        later.started(ChildRecord(7, 70, "m.1", "kiwi", 5800))
        later.started(ChildRecord(8, 80, "m.2", "plum", None))
        self.assertEqual(adopted, [(process.pid, {}, {0: 33})])
        self.assertEqual((len(self.world.processes), later.pid), (1, process.pid))
        self.assertEqual(self.children(process), {7: (70, "m.1"), 8: (80, "m.2")})

    def piped(self):
        """A guardian whose pipe is at hand, and its process."""
        self.guardian.started(ChildRecord(7, 70, "m.1", "kiwi", 5800))
        process = self.world.processes[0]
        process.pipes = {0: Pipe(33)}

        def adoption(reactor, pid, protocol, *, reading, writing):
            protocol.makeConnection(process)
            return process

        guardian = GuardianClient(self.world, {}, adoption)
        guardian.adopt(process.pid, 33)
        return guardian, process

    def test_guardian_hears_of_a_child_without_a_turn_of_the_reactor(self):
        """Killed in the moment after a start, we must not take the news with us in a buffer."""
        guardian, process = self.piped()
        told, write = [], self.direct(process)
        guardian.write = lambda pipe, data: told.append((pipe, write(pipe, data))) or told[-1][1]
        guardian.started(ChildRecord(8, 80, "m.2", "plum", None))
        self.assertEqual(self.children(process), {7: (70, "m.1"), 8: (80, "m.2")})
        self.assertEqual(told, [(33, len("+ 8 80 m.2 -\n"))])

    def test_full_pipe_to_the_guardian_keeps_the_order(self):
        guardian, process = self.piped()
        guardian.write = self.direct(process, room=4)
        guardian.started(ChildRecord(8, 80, "m.2", "plum", None))
        guardian.write = lambda *_: self.fail("overtook what waits")
        guardian.ended(ChildRecord(8, 80, "m.2", "plum", None))
        self.assertEqual(self.children(process), {7: (70, "m.1")})

    def test_guardian_gets_the_stop_command_with_the_environment_and_not_as_an_argument(self):
        self.guardian.started(ChildRecord(7, 70, "m.1", "kiwi", 5800, ("docker", "stop", "k w"), ("TOKEN=a b",)))
        [process] = self.world.processes
        table = ChildTable()
        table.read(process.environ[CHILDREN].encode())
        stop = table.children[7][2]
        self.assertEqual(bytes.fromhex(stop).split(b"\0"), [b"3", b"docker", b"stop", b"k w", b"TOKEN=a b"])
        self.assertNotIn(stop, " ".join(process.words))

    def test_closing_ends_the_guardian_and_it_is_not_replaced(self):
        self.guardian.started(ChildRecord(7, 70, "m.1", "kiwi", 5800))
        self.guardian.close()
        process = self.world.processes[0]
        self.assertTrue(process.stdin_closed)
        process.die(0)
        self.world.clock.advance(0.1)
        self.assertEqual(len(self.world.processes), 1)

    def test_guardian_reads_lines_that_come_in_pieces(self):
        book = ChildTable()
        for piece in (b"+ 7 7", b"0 m.1 -\n+ 8 80", b" m.2 -\n- 7\n+ 9"):
            book.read(piece)
        self.assertEqual(book.children, {8: (80, "m.2", "-")})
