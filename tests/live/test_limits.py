"""Limits set from outside: on memory, on disk. Every client gets an answer, and the service goes on."""

import json
import os
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from twisted.trial.unittest import SynchronousTestCase

from tests.live.product import Product, wait_for
from tests.live.test_hostile import MEGA, SINK, answer, connect
from tests.live.test_service import chat, config

GROUPS = Path("/sys/fs/cgroup")


@contextmanager
def control_group(limit):
    """A control group with this limit on memory: the file that a process writes its number to. Skips without one."""
    kinds = ((GROUPS / "memory", "memory.limit_in_bytes"), (GROUPS, "memory.max"))
    for parent, name in kinds:
        folder = parent / f"llamaswap-test-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            try:
                (folder / name).write_text(str(limit))
            except OSError:
                continue
            yield folder / "cgroup.procs"
            return
        finally:
            for _ in range(100):  # a process just killed leaves its group a moment later
                try:
                    folder.rmdir()
                    break
                except OSError:
                    time.sleep(0.05)
    raise unittest.SkipTest("no control group with a limit on memory can be made here")


@contextmanager
def small_disk(size):
    """A file system of this many bytes; skips where none can be mounted."""
    folder = tempfile.mkdtemp(prefix="llamaswap-disk-")
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
    try:
        try:
            mounted = subprocess.run(words, capture_output=True, timeout=20).returncode == 0
        except OSError:
            mounted = False
        if not mounted:
            raise unittest.SkipTest("no file system can be mounted here")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "-l", folder], capture_output=True, timeout=20)
    finally:
        os.rmdir(folder)


class MemoryTests(SynchronousTestCase):
    timeout = 180

    def product(self, before):
        """The product with a sink as its model, started by a shell that does something before."""
        script = Path(self.mktemp()).resolve()
        script.write_text(SINK)
        sink = {"cmd": f"{sys.executable} -I -S {script} ${{PORT}} 0", "checkEndpoint": "/health"}
        product = Product(json.dumps({"models": {"sink": sink}}))
        product.words = ["sh", "-c", f'{before}; exec "$@"', "sh", *product.words]
        return product

    def statuses(self, product, count, size):
        """The statuses of so many requests with bodies of this size, sent at once; "" for a client without answer."""
        text = b'{"model": "sink", "x": "' + b"x" * size + b'"}'
        found = []

        def send():
            with connect(product) as line:
                line.settimeout(60)
                head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                try:
                    line.sendall(head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(text))
                    view = memoryview(text)
                    for start in range(0, len(text), MEGA):
                        line.sendall(view[start : start + MEGA])
                except OSError:
                    pass  # it was refused, and may have been answered
                try:
                    told = answer(line)
                except OSError:
                    told = b""
            found.append((told[9:12].decode(), told.partition(b"\r\n\r\n")[2][-400:].decode()))

        clients = [threading.Thread(target=send, daemon=True) for _ in range(count)]
        for client in clients:
            client.start()
        for client in clients:
            client.join(90)
        self.assertIsNone(product.process.poll(), product.output[-2000:])
        self.assertEqual(len(found), count)
        self.assertNotIn("Traceback", product.output)
        return found

    def test_bodies_beyond_the_address_space_are_each_answered(self):
        with self.product("ulimit -v 921600") as product:
            self.assertEqual([one for one, _ in self.statuses(product, 1, 10 * MEGA)], ["200"])
            found = self.statuses(product, 6, 200 * MEGA)
            self.assertEqual({one for one, _ in found} - {"200", "507"}, set(), found)
            self.assertIn("507", [one for one, _ in found])
            self.assertIn("limited to 900 MiB by the address space limit", "".join(words for _, words in found))
            self.assertEqual([one for one, _ in self.statuses(product, 1, 10 * MEGA)], ["200"])

    def test_bodies_beyond_the_control_group_are_each_answered(self):
        with control_group(400 * MEGA) as group, self.product(f"echo $$ > {group}") as product:
            found = self.statuses(product, 4, 90 * MEGA)
            self.assertEqual({one for one, _ in found} - {"200", "507"}, set(), found)
            self.assertIn("limited to 400 MiB by control group", "".join(words for _, words in found))
            self.assertEqual([one for one, _ in self.statuses(product, 1, 10 * MEGA)], ["200"])


class DiskTests(SynchronousTestCase):
    timeout = 120

    def test_on_a_full_disk_bodies_that_fit_in_memory_are_served(self):
        with small_disk(4 * MEGA) as folder, Product(config(one=""), env={"TMPDIR": str(folder)}) as product:
            self.assertEqual(product.ask("/upstream/one/x", b"x" * 14)[0], 200)
            try:
                (folder / "full").write_bytes(bytes(5 * MEGA))
            except OSError:
                pass
            self.assertEqual(json.loads(product.ask("/upstream/one/x", b"x" * 14)[2])["length"], 14)
            self.assertEqual(json.loads(product.ask("/upstream/one/x", b"x" * MEGA)[2])["length"], MEGA)
            self.assertEqual(product.ask("/v1/chat/completions", chat("one"))[0], 200)
            status, _, body = product.ask("/api/profiles/active", b"x" * 200_000, method="PUT")
            self.assertIn(status, (400, 404), body)
            head = b"POST /upstream/one/x HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000000000\r\n\r\n"
            with connect(product) as line:
                line.sendall(head)
                told = answer(line)
            self.assertIn(b" 507 ", told[:20])
            self.assertIn(str(folder).encode(), told)
            self.assertNotIn("Traceback", product.output)


class StalledReaderTests(SynchronousTestCase):
    timeout = 120

    def test_a_client_that_reads_nothing_does_not_keep_its_model_from_being_unloaded(self):
        script = Path(self.mktemp()).resolve()
        script.write_text(SINK)
        text = json.loads(config(other=""))
        sink = {"cmd": f"{sys.executable} -I -S {script} ${{PORT}} 0", "checkEndpoint": "/health"}
        text["models"]["sink"] = sink
        text["routing"] = {"scheduler": {"settings": {"fifo": {"stalledReader": "2s"}}}}
        body = b'{"model": "sink", "stream": true}'
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        with Product(json.dumps(text)) as product, socket.socket() as line:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            where = urlsplit(product.url)
            line.connect((where.hostname, where.port))
            line.settimeout(30)
            line.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            self.assertIn(b" 200 ", line.recv(100))
            began = time.monotonic()
            self.assertEqual(product.ask("/v1/chat/completions", chat("other"), timeout=60)[0], 200)
            self.assertLess(time.monotonic() - began, 30)
            self.assertIn("the client has read nothing for", product.output)
            received = b""
            with self.assertRaises(ConnectionResetError):
                while data := line.recv(1 << 20):
                    received += data
            self.assertNotIn(b"\r\n0\r\n\r\n", received)


class ActivityStoreTests(SynchronousTestCase):
    timeout = 60

    def test_a_locked_or_corrupt_activity_store_does_not_stop_the_answers(self):
        with tempfile.TemporaryDirectory(prefix="llamaswap-store-") as folder:
            path = os.path.join(folder, "activity.db")
            text = json.loads(config(one="")) | {"store": {"path": path}}
            Path(path).write_bytes(b"no database at all " * 1000)
            with Product(json.dumps(text)) as product:
                self.assertEqual(product.ask("/v1/chat/completions", chat("one"))[0], 200)
                page = product.json("/api/metrics/activity")
                self.assertEqual((page["total"], "store_error" in page), (1, False))
                [aside] = [name for name in os.listdir(folder) if ".corrupt-" in name]
                wait_for(lambda: aside in product.output, what="the log line")
                other = sqlite3.connect(path, isolation_level=None)
                other.execute("BEGIN EXCLUSIVE")
                self.assertEqual(product.ask("/v1/chat/completions", chat("one"))[0], 200)
                began = time.monotonic()
                page = product.json("/api/metrics/activity")
                self.assertLess(time.monotonic() - began, 4)
                self.assertEqual(page["total"], 2)
                self.assertIn("locked", page["store_error"])
                other.execute("ROLLBACK")
                other.close()
                again = lambda: "store_error" not in product.json("/api/metrics/activity")
                wait_for(again, seconds=15, what="the store")
                self.assertEqual(product.json("/api/metrics/activity")["total"], 2)
                self.assertNotIn("Traceback", product.output)
