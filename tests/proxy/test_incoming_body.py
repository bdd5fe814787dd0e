"""Bodies that still arrive: held, streamed, spooled, read again, released."""

from pathlib import Path

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.errors import BodyTooLarge, ClientGone, NoRoom
from llamaswap.proxy import incoming_body
from llamaswap.proxy.byte_budget import LEAST_MEMORY, MemoryLimit, disk_budget, memory_budget, memory_limits
from llamaswap.proxy.incoming_body import DISCARD_LIMIT, READ_AHEAD, SpooledBody
from llamaswap.wire.byte_budget import ByteBudget


class Consumer:
    def __init__(self):
        self.data, self.ended, self.lost, self.refused = b"", 0, 0, []
        self.producer = None

    def body_data(self, data):
        self.data += data

    def body_ended(self):
        self.ended += 1

    def body_failed(self, error):
        if isinstance(error, ClientGone):
            self.lost += 1
        else:
            self.refused.append(str(error))


class SpooledBodyTests(SynchronousTestCase):
    def body(self, length=10, **options):
        self.clock, self.changes, self.continues = Clock(), [], []
        return SpooledBody(
            self.clock,
            length,
            changed=lambda: self.changes.append(1),
            continue_=lambda: self.continues.append(1),
            **options,
        )

    def test_held_body_comes_whole(self):
        body = self.body()
        held = body.read_all(10)
        body.arrived(b"01234")
        self.assertNoResult(held)
        body.arrived(b"56789")
        body.finished()
        self.assertEqual(self.successResultOf(held), b"0123456789")
        self.assertEqual(self.successResultOf(body.read_all(10)), b"0123456789")
        self.assertEqual((body.length, body.replayable), (10, True))

    def test_announced_length_beyond_the_limit_fails_at_once(self):
        self.failureResultOf(self.body(11).read_all(10), BodyTooLarge)

    def test_chunked_body_beyond_the_limit_fails_and_can_still_be_streamed(self):
        body = self.body(None)
        held = body.read_all(4)
        body.arrived(b"01234")
        self.failureResultOf(held, BodyTooLarge)
        consumer = Consumer()
        body.start(consumer)
        body.arrived(b"5")
        body.finished()
        self.assertEqual((consumer.data, consumer.ended, body.length), (b"012345", 1, 6))

    def test_bytes_that_came_before_read_all_are_part_of_the_body(self):
        body = self.body(None)
        body.arrived(b"01")
        body.arrived(b"23")
        held = body.read_all(10)
        body.arrived(b"45")
        body.finished()
        self.assertEqual(self.successResultOf(held), b"012345")

    def test_client_leaving_fails_a_hold(self):
        body = self.body()
        held = body.read_all(10)
        body.lost()
        self.failureResultOf(held, ClientGone)
        self.failureResultOf(body.read_all(10), ClientGone)

    def test_complete_body_survives_its_client(self):
        body = self.body(2)
        body.arrived(b"ab")
        body.finished()
        body.lost()
        self.assertEqual(self.successResultOf(body.read_all(10)), b"ab")

    def test_body_can_be_read_again(self):
        body = self.body()
        body.arrived(b"01234")
        first, second = Consumer(), Consumer()
        body.start(first).stopProducing()
        body.start(second)
        body.arrived(b"56789")
        body.finished()
        third = Consumer()
        body.start(third)
        self.assertEqual((first.data, second.data, third.data), (b"01234", b"0123456789", b"0123456789"))

    def test_paused_reader_waits(self):
        body = self.body(5_000_000)
        consumer = Consumer()
        producer = body.start(consumer, keep=False)
        producer.pauseProducing()
        self.assertFalse(body.wants_body)
        body.arrived(b"a")
        self.assertEqual(consumer.data, b"")
        producer.resumeProducing()
        self.assertTrue(body.wants_body)
        self.clock.advance(0)
        body.arrived(b"b")
        self.assertEqual(consumer.data, b"ab")

    def test_large_stream_is_forgotten_as_it_passes(self):
        memory = budget(10_000)
        body = self.body(5_000_000, memory=memory)
        consumer = Consumer()
        body.start(consumer, keep=False)
        self.assertFalse(body.replayable)
        for _ in range(5):
            body.arrived(b"x" * 1000)
        self.assertEqual((len(consumer.data), memory.used), (5000, 0))

    def test_small_stream_stays_readable(self):
        body = self.body()
        body.start(Consumer(), keep=False)
        self.assertTrue(body.replayable)

    def test_body_beyond_the_threshold_is_spooled_and_read_back(self):
        memory = budget(10_000)
        body = self.body(None, threshold=100, memory=memory)
        first = Consumer()
        body.start(first)
        data = b"".join(b"%05d" % number for number in range(100))
        for at in range(0, 500, 50):
            body.arrived(data[at : at + 50])
        body.finished()
        self.assertEqual(memory.used, 0)
        again = Consumer()
        body.start(again)
        self.assertEqual((first.data, again.data), (data, data))
        self.assertEqual(self.successResultOf(body.read_all(500)), data)
        body.close()

    def test_spooled_reader_that_pauses_misses_nothing(self):
        body = self.body(None, threshold=100)
        consumer = Consumer()
        body.arrived(b"a" * 60)
        producer = body.start(consumer)
        producer.pauseProducing()
        body.arrived(b"b" * 60)
        body.arrived(b"c" * 60)
        producer.resumeProducing()
        self.clock.advance(0)
        body.arrived(b"d" * 60)
        body.finished()
        self.assertEqual(consumer.data, b"a" * 60 + b"b" * 60 + b"c" * 60 + b"d" * 60)
        self.assertEqual(consumer.ended, 1)
        body.close()

    def test_long_feeding_leaves_turns_to_others(self):
        body = self.body(4 << 20)
        body.arrived(b"x" * (3 << 20))
        body.arrived(b"y" * (1 << 20))
        body.finished()
        consumer = Consumer()
        body.start(consumer)
        self.assertEqual((len(consumer.data), consumer.ended), (3 << 20, 0))
        self.clock.advance(0)
        self.clock.advance(0)
        self.assertEqual((len(consumer.data), consumer.ended), (4 << 20, 1))

    def test_body_without_a_reader_is_read_ahead_to_a_bound(self):
        body = self.body(None)
        body.arrived(b"x" * READ_AHEAD)
        self.assertFalse(body.wants_body)
        body.start(Consumer())
        self.assertTrue(body.wants_body)

    def test_closed_body_discards_within_a_bound(self):
        body = self.body(None)
        body.arrived(b"x")
        body.close()
        self.assertTrue(body.wants_body)
        body.arrived(b"x" * DISCARD_LIMIT)
        self.assertFalse(body.wants_body)
        self.assertFalse(body.replayable)

    def test_continue_is_asked_for_once_and_only_before_the_first_byte(self):
        body = self.body()
        body.start(Consumer()).stopProducing()
        body.start(Consumer())
        self.assertEqual(self.continues, [1])
        body = self.body()
        body.arrived(b"x")
        body.start(Consumer())
        self.assertEqual(self.continues, [])

    def test_reader_is_notified_of_a_client_that_leaves(self):
        body = self.body()
        consumer = Consumer()
        body.start(consumer)
        body.lost()
        self.assertEqual((consumer.lost, consumer.ended), (1, 0))

    def test_empty_body_ends_at_once(self):
        body = self.body(0)
        consumer = Consumer()
        body.start(consumer)
        self.assertEqual((consumer.ended, body.length), (1, 0))

    def test_stopping_a_forgetful_reader_lets_the_rest_go(self):
        memory = budget(1000)
        body = self.body(5_000_000, memory=memory)
        body.start(Consumer(), keep=False).stopProducing()
        body.arrived(b"x")
        self.assertEqual(memory.used, 0)
        with self.assertRaises(RuntimeError):
            body.start(Consumer())


def budget(bound, name="memory"):
    return ByteBudget(name, lambda used: bound)


class BudgetTests(SynchronousTestCase):
    """All bodies together have their bounds."""

    def body(self, length, **options):
        self.clock = Clock()
        return SpooledBody(self.clock, length, changed=lambda: None, continue_=lambda: None, **options)

    def test_bodies_that_are_held_share_the_memory(self):
        memory = budget(150)
        one, two = self.body(30, memory=memory), self.body(30, memory=memory)
        held = one.read_all(1000)
        error = self.failureResultOf(two.read_all(1000), NoRoom)
        self.assertIn("share of the memory", error.getErrorMessage())
        one.arrived(b"x" * 30)
        one.finished()
        self.assertEqual(len(self.successResultOf(held)), 30)
        one.close()
        self.assertEqual(memory.used, 0)
        self.assertNoResult(two.read_all(1000))

    def test_body_of_unknown_length_is_refused_when_the_memory_is_used_up(self):
        memory = budget(150)
        body = self.body(None, memory=memory)
        held = body.read_all(1000)
        body.arrived(b"x" * 40)
        self.assertNoResult(held)
        body.arrived(b"x" * 40)
        self.failureResultOf(held, NoRoom)
        self.assertEqual((memory.used, body.wants_body), (0, True))
        body.arrived(bytes(DISCARD_LIMIT))
        self.assertFalse(body.wants_body)
        self.failureResultOf(body.read_all(1000), NoRoom)

    def test_bodies_go_to_disk_if_memory_is_short(self):
        memory = budget(100)
        body, consumer = self.body(None, memory=memory), Consumer()
        body.start(consumer)
        body.arrived(b"a" * 60)
        body.arrived(b"b" * 60)
        body.finished()
        again = Consumer()
        body.start(again)
        self.assertEqual((consumer.data, again.data), (b"a" * 60 + b"b" * 60,) * 2)
        self.assertEqual(memory.used, 0)
        body.close()

    def test_reader_fails_if_the_disk_budget_is_used_up(self):
        self.patch(incoming_body, "DISK_STEP", 10)
        disk = budget(150, "disk")
        one, two = (self.body(None, threshold=10, disk=disk, memory=budget(50)) for _ in range(2))
        readers = [Consumer(), Consumer()]
        one.start(readers[0])
        two.start(readers[1])
        one.arrived(b"x" * 100)
        two.arrived(b"y" * 100)
        self.assertEqual([len(reader.refused) for reader in readers], [0, 1])
        self.assertIn("share of the disk", readers[1].refused[0])
        self.assertEqual(disk.used, 100)
        late = Consumer()
        two.start(late)
        self.assertEqual((len(late.refused), late.lost), (1, 0))
        one.close()
        one.close()
        self.assertEqual(disk.used, 0)

    def test_streamed_body_without_memory_fails_with_that_reason(self):
        body, reader = self.body(5_000_000, memory=budget(1000)), Consumer()
        body.start(reader, keep=False).pauseProducing()
        body.arrived(b"x" * 2000)
        self.assertIn("share of the memory", reader.refused[0])

    def test_an_announced_length_that_the_disk_cannot_take_is_refused_at_once(self):
        body, reader = self.body(1000, threshold=10, disk=budget(500, "disk"), memory=budget(900)), Consumer()
        body.start(reader)
        body.arrived(b"x" * 20)
        self.assertEqual(len(reader.refused), 1)

    def test_a_full_disk_leaves_what_fits_in_memory(self):
        memory = budget(100)
        options = {"threshold": 10, "folder": "/nonexistent/folder", "memory": memory, "disk": budget(1000, "disk")}
        body, reader = self.body(None, **options), Consumer()
        body.start(reader)
        body.arrived(b"x" * 20)
        body.arrived(b"y" * 70)
        self.assertEqual((reader.data, reader.refused, memory.used), (b"x" * 20 + b"y" * 70, [], 90))
        body.arrived(b"z" * 20)
        self.assertEqual([str(error).count("the disk") for error in map(str, reader.refused)], [1])
        self.assertEqual(memory.used, 0)

    def test_a_disk_that_fills_up_under_a_body_leaves_it_in_memory(self):
        self.patch(incoming_body, "DISK_STEP", 10)
        memory, disk = budget(200), budget(60, "disk")
        body, reader = self.body(None, threshold=10, memory=memory, disk=disk), Consumer()
        producer = body.start(reader)
        body.arrived(b"a" * 50)
        producer.pauseProducing()
        self.assertEqual((disk.used, memory.used), (50, 0))
        body.arrived(b"b" * 50)
        self.assertEqual((disk.used, memory.used), (0, 100))
        producer.resumeProducing()
        self.clock.advance(0)
        body.finished()
        again = Consumer()
        body.start(again)
        self.assertEqual((reader.data, again.data), (b"a" * 50 + b"b" * 50,) * 2)

    def test_disk_that_fills_up_under_a_body_that_is_read_whole_makes_no_second_file(self):
        self.patch(incoming_body, "DISK_STEP", 10)
        made, make = [], incoming_body.tempfile.TemporaryFile
        self.patch(incoming_body.tempfile, "TemporaryFile", lambda **how: made.append(1) or make(**how))
        memory, disk = budget(2000), budget(60, "disk")
        body = self.body(None, threshold=10, memory=memory, disk=disk)
        body.start(Consumer()).stopProducing()
        body.arrived(b"a" * 50)
        self.assertEqual(disk.used, 50)
        whole = body.read_all(1000)
        for byte in (b"b", b"c", b"d"):
            body.arrived(byte * 50)
            self.assertEqual(disk.used, 0)
            self.assertGreaterEqual(memory.used, 50)
        body.finished()
        self.assertEqual(len(made), 1)
        self.assertEqual(self.successResultOf(whole), b"a" * 50 + b"b" * 50 + b"c" * 50 + b"d" * 50)
        body.close()
        self.assertEqual(memory.used, 0)

    def test_memory_of_a_streamed_body_is_released_as_it_passes(self):
        memory = budget(2000)
        body, consumer = self.body(5_000_000, memory=memory), Consumer()
        producer = body.start(consumer, keep=False)
        for _ in range(10):
            producer.pauseProducing()
            body.arrived(b"x" * 1000)
            producer.resumeProducing()
            self.clock.advance(0)
        self.assertEqual((len(consumer.data), memory.used), (10_000, 0))

    def test_how_much_there_is(self):
        used, now = [0], [0.0]
        limits = [
            MemoryLimit("the machine's memory", 1 << 40, lambda: 0),
            MemoryLimit("control group /a", 1 << 30, lambda: used[0]),
        ]
        memory = memory_budget(limits, lambda: now[0])
        self.assertEqual(memory.left, 1 << 28)
        self.assertIn("limited to 1024 MiB by control group /a", str(memory.full()))
        used[0], now[0] = 700 << 20, 1.0
        self.assertEqual(memory.left, (324 << 20) // 3)
        used[0], now[0] = 1 << 30, 2.0
        self.assertEqual(memory.left, LEAST_MEMORY)
        self.assertGreater(memory_budget().left, 0)
        disk = disk_budget("/somewhere", lambda folder: 1000 - disk.used)
        self.assertTrue(disk.take(400))
        self.assertEqual((disk.left, disk.take(101), disk.take(100)), (100, False, True))
        self.assertGreater(disk_budget().left, 0)

    def test_limits_of_the_control_group_and_its_parents_count(self):
        root = Path(self.mktemp())

        def write(path, text):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)

        write("proc/self/cgroup", "4:memory:/docker/abc\n0::/system.slice/llamaswap.service\n")
        unified = "sys/fs/cgroup/system.slice"
        write(f"{unified}/memory.max", "1000\n")
        write(f"{unified}/memory.current", "900\n")
        write(f"{unified}/memory.stat", "anon 500\ninactive_file 300\nactive_file 100\n")
        write(f"{unified}/llamaswap.service/memory.max", "max\n")
        write("sys/fs/cgroup/memory/memory.limit_in_bytes", "2000\n")
        write("sys/fs/cgroup/memory/memory.usage_in_bytes", "50\n")
        write("sys/fs/cgroup/memory/docker/memory.limit_in_bytes", "9223372036854771712\n")
        found = {limit.name: (limit.size, limit.in_use()) for limit in memory_limits(root) if "group" in limit.name}
        self.assertEqual(found, {"control group /system.slice": (1000, 500), "control group /": (2000, 50)})

    def test_body_that_is_kept_elsewhere_is_counted_once(self):
        memory = budget(100)
        body = self.body(20, memory=memory)
        held = body.read_all(100)
        body.arrived(b"x" * 20)
        body.finished()
        self.assertEqual((len(self.successResultOf(held)), memory.used), (20, 60))
        body.release()
        self.assertEqual((memory.used, body.replayable), (40, False))
        body.close()
        self.assertEqual(memory.used, 0)
