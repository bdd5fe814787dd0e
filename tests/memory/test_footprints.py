"""What is learned of servers, and the key it is learned under."""

import os
import sqlite3
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.memory import footprints
from llamaswap.memory.footprint_key import footprint_key
from llamaswap.memory.footprints import MAX_KEYS, MAX_SAMPLES, FootprintStore, Measurement, percentile
from llamaswap.sqlite_file import RETRY_DELAY


def used(ram, first=False, **more):
    return Measurement({"ram": ram}, "process", first, **more)


class KeyTests(SynchronousTestCase):
    def setUp(self):
        self.root = Path(self.mktemp()).absolute()
        self.root.mkdir()
        self.model = self.root / "owl.gguf"
        self.model.write_bytes(b"weights")
        self.engine = self.root / "llama-server"
        self.engine.write_bytes(b"program")

    def key(self, *words, environ=(), boards="2 RTX", gpu_count=None):
        argv = ["llama-server", "-m", str(self.model), *words]
        return footprint_key(argv, dict(environ), str(self.engine), boards, gpu_count)

    def test_ports_hosts_and_keys_do_not_change_the_key(self):
        plain = self.key()
        for words in (("--port", "5801"), ("--port=5802",), ("--host", "0.0.0.0"), ("--api-key", "secret")):
            self.assertEqual(self.key(*words), plain)
        for name in ("OLLAMA_HOST", "VLLM_API_KEY", "VLLM_PORT", "LLAMA_ARG_PORT", "HOME"):
            self.assertEqual(self.key(environ={name: "x"}), plain)

    def test_key_changes_with_what_changes_the_memory(self):
        keys = {
            self.key(),
            self.key("-c", "4096"),
            self.key("-c", "8192"),
            self.key("--temp", "-1"),
            self.key("-fa"),
            self.key(boards="1 RTX"),
            self.key(environ={"LLAMA_ARG_CTX_SIZE": "1"}),
            self.key(environ={"OLLAMA_NUM_PARALLEL": "4"}),
            self.key(environ={"CUDA_VISIBLE_DEVICES": "0"}),
            self.key(environ={"CUDA_VISIBLE_DEVICES": "1"}),
        }
        self.assertEqual(len(keys), 10)
        plain = self.key()
        self.model.write_bytes(b"other weights")
        changed = self.key()
        self.assertNotEqual(changed, plain)
        os.utime(self.engine, (1, 1))
        self.assertNotEqual(self.key(), changed)

    def test_chosen_gpus_count_by_their_number(self):
        first = self.key(environ={"CUDA_VISIBLE_DEVICES": "0"}, gpu_count=1)
        self.assertEqual(self.key(environ={"CUDA_VISIBLE_DEVICES": "1"}, gpu_count=1), first)
        self.assertNotEqual(self.key(environ={"CUDA_VISIBLE_DEVICES": "0,1"}, gpu_count=2), first)

    def test_files_that_a_server_writes_do_not_change_the_key(self):
        written = self.root / "server.log"
        written.write_text("a")
        words = ("--log-file", str(written), "--slot-save-path", str(self.root))
        before = self.key(*words)
        written.write_text("longer")
        os.utime(self.root, (1, 1))
        self.assertEqual(self.key(*words), before)

    def test_folder_of_a_model_counts_by_its_configuration(self):
        folder = self.root / "hf"
        folder.mkdir()
        before = self.key("--model", str(folder))
        (folder / "config.json").write_text("{}")
        self.assertNotEqual(self.key("--model", str(folder)), before)

    def test_words_that_are_no_files_are_accepted(self):
        self.assertEqual(len(self.key("", "-", "a\0b", "x" * 10_000, "\udcff")), 64)


class LearningTests(SynchronousTestCase):
    def setUp(self):
        self.now = 0.0
        self.said = []
        self.store = self.opened(None)

    def opened(self, path):
        store = FootprintStore(path, self.said.append, lambda: self.now, lambda: 1000 + self.now, lambda: "20260102")
        self.addCleanup(store.close)
        return store

    def learn(self, *sizes, model="owl", key="k"):
        for at, size in enumerate(sizes):
            found = self.store.add(model, key, used(size, first=not at))
        return found

    def test_percentiles_are_values_that_were_measured(self):
        self.assertEqual([percentile([3, 1, 2], share) for share in (0.0, 0.5, 0.95)], [1, 2, 3])
        self.assertEqual(percentile(range(1, 101), 0.95), 95)

    def test_estimate_is_the_larger_of_p95_and_the_last_peak_with_a_margin(self):
        found = self.learn(100, 120, 110)
        self.assertEqual((found.n, found.p50, found.p95, found.peak), (3, {"ram": 110}, {"ram": 120}, {"ram": 120}))
        self.assertEqual((found.sizes, found.kind, found.carried), ({"ram": 122}, "process", False))

    def test_peak_of_an_earlier_process_fades(self):
        self.learn(*[100] * 40, 500)
        self.assertEqual(self.learn(100).sizes, {"ram": 102})

    def test_gpu_that_the_newest_process_does_not_use_is_not_expected(self):
        self.store.add("owl", "k", Measurement({"ram": 1, "gpu0": 500}, "process", True))
        found = self.store.add("owl", "k", Measurement({"ram": 1, "gpu1": 500}, "process", True))
        self.assertEqual(found.sizes, {"ram": 1, "gpu1": 510})

    def test_last_measurement_before_a_stop_only_raises_the_peak(self):
        self.learn(100)
        self.assertEqual(self.store.add("owl", "k", used(20, final=True)).sizes, {"ram": 102})
        found = self.store.add("owl", "k", used(200, final=True))
        self.assertEqual((found.sizes, found.n), ({"ram": 204}, 1))
        self.assertEqual(self.store.add("owl", "other", used(5, final=True)).sizes, found.sizes)

    def test_squeezed_process_is_recorded_and_not_learned(self):
        self.assertEqual(self.store.add("owl", "k", used(10, True, squeezed=True)).sizes, {})
        self.learn(100)
        found = self.store.add("owl", "k", used(10, True, squeezed=True))
        self.assertEqual((found.squeezed, found.sizes, found.n), (True, {"ram": 102}, 1))
        self.assertFalse(self.learn(100).squeezed)

    def test_changed_command_begins_with_the_values_of_the_old_one(self):
        self.learn(100)
        self.now = 5
        self.learn(300, key="newer")
        found = self.store.find("owl", "newest")
        self.assertEqual((found.carried, found.sizes, found.n, found.key), (True, {"ram": 306}, 0, "newest"))
        self.assertFalse(self.learn(200, key="newest").carried)
        self.assertIsNone(self.store.find("crow", "k2"))

    def test_load_takes_the_median_of_the_last_loads(self):
        for seconds in (3.0, 50.0, 4.5):
            found = self.store.add("owl", "k", used(1, True, load_seconds=seconds))
        self.assertEqual(found.load_seconds, 4.5)

    def test_samples_and_keys_are_bounded(self):
        self.learn(*range(MAX_SAMPLES * 2))
        self.assertEqual(self.store.find("owl", "k").p50, {"ram": MAX_SAMPLES * 3 // 2 - 1})
        for at in range(MAX_KEYS):
            self.now += 1
            self.learn(at, key=f"key {at}")
        self.assertTrue(self.store.find("owl", "k").carried)
        self.patch(footprints, "MAX_ROWS", 3)
        self.now += 1
        self.learn(1, model="crow", key="crow 1")
        self.assertTrue(self.store.find("owl", "key 5").carried)
        self.assertFalse(self.store.find("owl", "key 7").carried)


class FileTests(LearningTests):
    """The same with a file, and what happens to the file."""

    def setUp(self):
        super().setUp()
        self.patch(footprints, "LOCK_TIMEOUT", 0.01)
        self.path = os.path.abspath(self.mktemp())
        self.store = self.opened(self.path)

    def reopened(self):
        self.store.close()
        return self.opened(self.path)

    def in_file(self):
        with sqlite3.connect(self.path) as other:
            found = other.execute("SELECT key FROM footprints ORDER BY key").fetchall()
        other.close()
        return [key for (key,) in found]

    def test_footprints_survive_a_restart(self):
        before = self.learn(100, 120)
        self.assertEqual(self.reopened().find("owl", "k"), before)
        self.assertEqual(os.stat(self.path).st_mode & 0o777, 0o600)

    def test_dropped_keys_leave_the_file(self):
        for at in range(MAX_KEYS + 2):
            self.now += 1
            self.learn(1, key=f"key {at:02}")
        self.reopened()
        self.assertEqual(self.in_file(), [f"key {at:02}" for at in range(2, MAX_KEYS + 2)])

    def test_file_is_written_seldom(self):
        self.learn(1)
        other = sqlite3.connect(self.path, isolation_level=None)
        self.addCleanup(other.close)
        other.execute("BEGIN EXCLUSIVE")
        self.store.add("owl", "k", used(2))
        self.assertEqual(self.said, [])
        self.now += footprints.WRITE_INTERVAL
        self.store.add("owl", "k", used(3))
        self.assertIn("locked", self.said[0])

    def test_locked_file_loses_nothing(self):
        self.learn(*[100] * 3)
        other = sqlite3.connect(self.path, isolation_level=None)
        self.addCleanup(other.close)
        other.execute("BEGIN EXCLUSIVE")
        self.assertEqual(self.learn(120).n, 4)
        other.execute("ROLLBACK")
        self.now += RETRY_DELAY
        found = self.learn(120)
        self.assertEqual([text.split(" ")[5] for text in self.said], ["be", "in"])
        self.assertEqual(self.reopened().find("owl", "k"), found)

    def test_file_that_cannot_be_read_at_first_is_merged_later(self):
        """A disk that is mounted after the start, for example."""
        folder = Path(self.path + ".d")
        folder.mkdir()
        self.path = str(folder / "footprints.db")
        self.store = self.opened(self.path)
        self.learn(*[100] * 3)
        self.learn(7, model="crow", key="c")
        self.store.close()
        folder.rename(f"{folder}.away")
        self.store = self.opened(self.path)
        self.assertIsNone(self.store.find("owl", "k"))
        self.assertEqual(self.learn(120).n, 1)
        Path(f"{folder}.away").rename(folder)
        self.now += RETRY_DELAY
        found = self.learn(120)
        self.assertEqual((found.n, found.p50), (5, {"ram": 100}))
        self.assertEqual(self.reopened().find("owl", "k"), found)
        self.assertEqual(self.in_file(), ["c", "k"])

    def test_corrupt_file_is_replaced(self):
        Path(self.path).write_bytes(b"no database at all " * 1000)
        found = self.learn(100)
        self.assertIn("is kept as", self.said[0])
        self.assertTrue(Path(f"{self.path}.corrupt-20260102").exists())
        self.assertEqual(self.reopened().find("owl", "k"), found)

    def test_file_that_is_corrupt_again_at_once_is_tried_again_later(self):
        def spoil(text):
            self.said.append(text)
            if "is kept as" in text:
                Path(self.path).write_bytes(b"no database at all " * 1000)

        self.store.say = spoil
        spoil("is kept as")
        self.learn(100)
        self.assertIn("cannot be used", self.store.problem)
        said = len(self.said)
        self.learn(100)
        self.assertEqual(len(self.said), said)

    def test_row_that_another_program_spoiled_is_left_out(self):
        found = self.learn(100)
        self.store.close()
        with sqlite3.connect(self.path) as other:
            for at, content in enumerate(("", "[]", "null", '{"samples": 1}', '{"samples": {"ram": ["x"]}}')):
                other.execute("INSERT INTO footprints VALUES (?, 'owl', 9e9, 0, ?)", (f"bad {at}", content))
        other.close()
        store = self.reopened()
        self.assertEqual((store.find("owl", "k"), store.find("owl", "bad 1").peak), (found, {"ram": 100}))

    def test_rows_with_impossible_values_do_not_keep_the_others_from_being_read(self):
        found = self.learn(100)
        self.store.close()
        good = '{"kind": "process", "n": 1, "samples": {"ram": [5]}, "peak": {"ram": 5}, "loads": []}'
        rows = [
            ("endless", 9e9, good.replace("[5]", "[1e999]")),
            ("negative", 9e9, good.replace('"ram": 5', '"ram": -5')),
            ("no number", 9e9, good.replace('"loads": []', '"loads": [NaN]')),
            ("no time", "yesterday", good),
        ]
        with sqlite3.connect(self.path) as other:
            other.executemany(
                "INSERT INTO footprints VALUES (?, 'owl', ?, 0, ?)", [(key, last, text) for key, last, text in rows]
            )
            other.execute("INSERT INTO footprints VALUES ('e', 'crow', 1, 0, ?)", (good.replace("[5]", "[]"),))
        other.close()
        store = self.reopened()
        self.assertEqual(store.find("owl", "k"), found)
        self.assertEqual([store.find("owl", key).peak for key, _, _ in rows], [{"ram": 100}] * len(rows))
        self.assertEqual(store.find("crow", "e").peak, {"ram": 5})
        self.assertEqual(store.add("owl", "k", used(100)).n, 2)

    def test_file_of_another_version_is_not_used_and_learning_goes_on_in_memory(self):
        with sqlite3.connect(self.path) as other:
            other.execute("CREATE TABLE footprints (key TEXT PRIMARY KEY, version INTEGER)")
        other.close()
        self.store = self.opened(self.path)
        self.assertIsNone(self.store.find("owl", "k"))
        self.assertEqual(self.learn(100, 100).n, 2)
        self.assertIn("cannot be used", self.said[0])
        self.assertEqual(len(self.said), 1)
