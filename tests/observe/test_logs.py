"""Monitors, their readers and the registry of both."""

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.observe.logs import HISTORY_SIZE, LogMonitor, LogRegistry, RingBuffer
from tests.observe.doubles import traced_memory


class RingTests(SynchronousTestCase):
    def test_keeps_exactly_the_last_capacity_bytes(self):
        """http T160"""
        ring = RingBuffer()
        data = bytes(i % 251 for i in range(150_000))
        for start in range(0, len(data), 777):
            ring.add(data[start : start + 777])
        self.assertEqual(ring.content(), data[-HISTORY_SIZE:])

    def test_write_larger_than_the_ring_leaves_its_end(self):
        ring = RingBuffer(10)
        ring.add(b"abc")
        ring.add(b"0123456789xyz")
        self.assertEqual(ring.content(), b"3456789xyz")

    def test_ring_memory_stays_bounded(self):
        def fill():
            ring = RingBuffer(100)
            for _ in range(10_000):
                ring.add(b"x")
            return ring

        self.assertLess(traced_memory(fill), 1000)


class MonitorTests(SynchronousTestCase):
    def test_readers_get_later_writes_only(self):
        monitor = LogMonitor("m")
        monitor.write(b"before")
        got = []
        reader = monitor.subscribe(got.append)
        monitor.write(b"one")
        reader.close()
        reader.close()
        monitor.write(b"two")
        self.assertEqual((got, monitor.readers), ([b"one"], 0))
        self.assertEqual(monitor.history(), b"beforeonetwo")

    def test_monitor_counts_the_bytes_beyond_its_history(self):
        monitor = LogMonitor("a")
        monitor.write(b"12")
        monitor.write(bytes(200_000))
        self.assertEqual(monitor.written, 200_002)

    def test_history_has_the_times_of_its_lines(self):
        now = [100.0]
        monitor = LogMonitor("m", wall=lambda: now[0])
        monitor.remember(b"from before\n")
        monitor.write(b"one\ntwo\nthr")
        now[0] = 100.5
        monitor.write(b"ee\nfour\nfi")
        now[0] = 102.0
        monitor.write(b"ve\nsix\n")
        self.assertEqual(monitor.times(), [(1, 100.0), (6, 102.0)])
        now[0] = 90.0  # the clock was turned back
        monitor.write(b"seven\n")
        self.assertEqual(monitor.times()[-1], (7, 90.0))

    def test_times_of_dropped_lines_are_dropped(self):
        now = [0.0]
        monitor = LogMonitor("m", wall=lambda: now[0])
        for second in range(1, 3001):
            now[0] = float(second)
            monitor.write(b"%0199d\n" % second)
        lines = HISTORY_SIZE // 200
        self.assertEqual(len(monitor.times()), lines)
        self.assertEqual(monitor.times()[-1], (lines - 1, 3000.0))

    def test_empty_write_reaches_no_reader(self):
        monitor = LogMonitor("m")
        got = []
        monitor.subscribe(got.append)
        monitor.write(b"")
        self.assertEqual(got, [])

    def test_paused_reader_gets_the_kept_bytes_and_the_number_of_missing_ones(self):
        monitor = LogMonitor("m")
        got = []
        reader = monitor.subscribe(got.append, bound=10)
        reader.pauseProducing()
        for chunk in (b"12345", b"67890", b"lost", b"x"):
            monitor.write(chunk)
        self.assertEqual(got, [])
        reader.resumeProducing()
        monitor.write(b"after")
        self.assertEqual(got, [b"1234567890" + "\n\u2014 5 bytes dropped \u2014\n".encode(), b"after"])

    def test_closed_paused_reader_gets_nothing_more(self):
        monitor = LogMonitor("m")
        got = []
        reader = monitor.subscribe(got.append)
        reader.pauseProducing()
        monitor.write(b"x")
        reader.stopProducing()
        reader.resumeProducing()
        self.assertEqual(got, [])

    def test_failing_reader_is_closed_and_the_others_continue(self):
        monitor = LogMonitor("m")
        got = []

        def bad(data):
            raise RuntimeError("reader broke")

        monitor.subscribe(bad)
        monitor.subscribe(got.append)
        monitor.write(b"x")
        self.assertEqual((got, monitor.readers), ([b"x"], 1))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_readers_may_close_while_bytes_are_delivered(self):
        monitor = LogMonitor("m")
        got = []
        readers = []
        readers.append(monitor.subscribe(lambda data: [reader.close() for reader in readers]))
        readers.append(monitor.subscribe(got.append))
        monitor.write(b"x")
        self.assertEqual((got, monitor.readers), ([], 0))


class LogBookTests(SynchronousTestCase):
    def book(self, to_stdout):
        out = []
        book = LogRegistry(to_stdout=to_stdout, stdout=out.append)
        book.proxy.write(b"P")
        book.model("m").write(b"U")
        return book, b"".join(out)

    def test_stdout_and_combined_history_get_the_proxy_log_by_default(self):
        book, out = self.book("proxy")
        self.assertEqual((book.combined.history(), out), (b"P", b"P"))

    def test_upstream_choice_keeps_proxy_lines_out_of_the_combined_log_only(self):
        """http T161"""
        book, out = self.book("upstream")
        self.assertEqual((book.combined.history(), out, book.proxy.history()), (b"U", b"U", b"P"))

    def test_both_and_none(self):
        book, out = self.book("both")
        self.assertEqual((book.combined.history(), out), (b"PU", b"PU"))
        book, out = self.book("none")
        self.assertEqual((book.combined.history(), out), (b"", b""))
        self.assertEqual((book.proxy.history(), book.upstream.history()), (b"P", b"U"))

    def test_model_logs_are_made_on_demand_and_stay(self):
        book = LogRegistry()
        book.model("a/b").write(b"x")
        self.assertEqual(book.model("a/b").history(), b"x")

    def test_reload_drops_logs_of_removed_models_without_readers(self):
        book = LogRegistry()
        for name in ("kept", "gone", "read"):
            book.model(name)
        book.model("read").subscribe(lambda data: None)
        book.retain(["kept"])
        self.assertEqual({"model:kept", "model:read"}, {name for name in book.histories() if ":" in name})

    def test_registry_begins_with_the_histories_of_another_without_sending_them_to_readers(self):
        book, _ = self.book("both")
        book.model("a/b").write(b"x")
        known = book.histories()
        told = []
        later = LogRegistry(stdout=told.append)
        later.remember(known | {"nonsense": b"?"})
        self.assertEqual(later.histories(), known)
        self.assertEqual(told, [])
