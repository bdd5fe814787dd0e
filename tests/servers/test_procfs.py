"""Questions to the kernel about this process and its ports."""

import os
import socket
import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.servers import procfs


class ProcessTests(SynchronousTestCase):
    def setUp(self):
        if not procfs.available():
            self.skipTest("needs /proc")

    def test_own_process_is_known(self):
        me = procfs.stat(os.getpid())
        self.assertEqual(
            (me.pid, me.parent, me.group, me.session), (os.getpid(), os.getppid(), os.getpgrp(), os.getsid(0))
        )
        self.assertFalse(me.dead)
        self.assertIn(me.pid, [one.pid for one in procfs.everyone()])

    def test_process_that_does_not_exist_is_none(self):
        self.assertIsNone(procfs.stat(2**22 + 1))
        self.assertIsNone(procfs.mark_of(2**22 + 1))
        self.assertIsNone(procfs.sockets(2**22 + 1))

    def test_group_whose_number_was_reused_has_no_members(self):
        # A new group: the leader of the group of this test may have ended, if a shell started it.
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True
        )
        self.addCleanup(child.communicate)
        leader = procfs.stat(child.pid)
        self.assertIn(child.pid, [one.pid for one in procfs.members(child.pid, leader.start, "no-such-mark")])
        self.assertEqual(procfs.members(child.pid, leader.start - 1, "no-such-mark"), [])

    def test_marked_process_is_a_member_after_it_left_the_session_and_its_parents_ended(self):
        inner = "import os, sys; print(os.getpid(), flush=True); sys.stdin.read()"
        outer = f"import subprocess, sys; subprocess.Popen([sys.executable, '-I', '-S', '-c', {inner!r}])"
        leader_code = (
            f"import subprocess, sys; subprocess.run([sys.executable, '-I', '-c', {outer!r}], start_new_session=True)"
        )
        child = subprocess.Popen(
            [sys.executable, "-I", "-c", leader_code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={procfs.MARK: "mark.7"},
            start_new_session=True,
        )
        self.addCleanup(child.communicate)
        start = procfs.stat(child.pid).start
        stray = int(child.stdout.readline())
        child.wait()
        self.assertIsNone(procfs.stat(os.getsid(stray)), "the leader of its session has ended")
        self.assertEqual([one.pid for one in procfs.members(child.pid, start, "mark.7")], [stray])

    def test_processes_of_older_sessions_are_not_read_to_find_members(self):
        older = procfs.stat(os.getsid(0))
        if older is None:
            self.skipTest("the leader of this session has ended")
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True
        )
        self.addCleanup(child.communicate)
        start, read, stat = procfs.stat(child.pid).start, [], procfs.stat
        self.patch(procfs, "stat", lambda pid: read.append(pid) or stat(pid))
        self.assertIn(child.pid, [one.pid for one in procfs.started_since(start)])
        self.assertNotIn(os.getpid(), set(read) - {older.pid})

    def test_descendants_are_found_through_their_living_parents(self):
        code = (
            "import subprocess, sys\n"
            "inner = subprocess.Popen([sys.executable, '-I', '-S', '-c', 'import sys; sys.stdin.read()'])\n"
            "print(inner.pid, flush=True)\n"
            "inner.wait()\n"
        )
        child = subprocess.Popen([sys.executable, "-I", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.addCleanup(child.communicate)
        inner = int(child.stdout.readline())
        found = procfs.descendants(child.pid)
        if found is None:
            self.skipTest("a kernel that does not tell of children")
        self.assertEqual([one.pid for one in found], [inner])
        self.assertEqual([one.parent for one in found], [child.pid])
        self.assertEqual(procfs.descendants(2**22 + 1), [])

    def test_work_of_a_process_grows_with_what_it_reads_and_holds_in_memory(self):
        code = (
            "import sys\n"
            "sys.stdin.readline()\n"
            "held = bytearray(b'x') * (32 << 20)\n"
            "open('/dev/zero', 'rb').read(16 << 20)\n"
            "print(1, flush=True)\n"
            "sys.stdin.readline()\n"
        )
        child = subprocess.Popen([sys.executable, "-I", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.addCleanup(child.communicate)
        before = procfs.work_of(child.pid)
        child.stdin.write(b"\n")
        child.stdin.flush()
        child.stdout.readline()
        after = procfs.work_of(child.pid)
        self.assertGreater(after[0] - before[0], 30 << 20)
        self.assertGreater(after[1] - before[1], 15 << 20)
        self.assertEqual(procfs.work_of(2**22 + 1), (0, 0))

    def test_listener_is_known_by_the_sockets_it_holds(self):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            port = listener.getsockname()[1]
            self.assertTrue(procfs.listening(port) & procfs.sockets(os.getpid()))
            self.assertEqual(procfs.holder(port).pid, os.getpid())
            self.assertIn(port, procfs.ports_of({os.getpid()}))
        self.assertIsNone(procfs.holder(port))

    def test_netlink_and_proc_list_the_same_listeners(self):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            mine = [one for one in procfs.listeners() if one[0] == listener.getsockname()[1]]
            self.assertEqual(len(mine), 1)
            self.assertIn(mine[0], procfs.listeners_in_proc())


class PortTests(SynchronousTestCase):
    def bound(self, *options):
        made = socket.socket()
        self.addCleanup(made.close)
        for option in options:
            made.setsockopt(socket.SOL_SOCKET, option, 1)
        made.bind(("127.0.0.1", 0))
        return made, made.getsockname()[1]

    def test_free_port_is_free(self):
        self.assertFalse(procfs.taken("127.0.0.1", procfs.free_port("127.0.0.1")))

    def test_port_of_a_listener_that_would_share_it_is_taken(self):
        made, port = self.bound(socket.SO_REUSEPORT, socket.SO_REUSEADDR)
        made.listen()
        self.assertTrue(procfs.taken("127.0.0.1", port))

    def test_port_that_is_bound_and_does_not_listen_is_taken(self):
        _, port = self.bound()
        self.assertTrue(procfs.taken("127.0.0.1", port))

    def test_closed_connections_do_not_take_a_port(self):
        made, port = self.bound(socket.SO_REUSEADDR)
        made.listen()
        with socket.create_connection(("127.0.0.1", port)) as caller:
            answerer, _ = made.accept()
            answerer.close()  # who closes first keeps TIME_WAIT
            caller.recv(1)
        made.close()
        self.assertFalse(procfs.taken("127.0.0.1", port))
