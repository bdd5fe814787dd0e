"""Which files a command will read, and how much of them is asked for ahead."""

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.servers import readahead
from llamaswap.servers.readahead import KEPT_FREE, PIECE, REPEAT_AFTER, ReadAhead, advise, weights


class Files(SynchronousTestCase):
    def setUp(self):
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.patch(readahead, "LARGE_FILE", 1000)

    def make(self, name, size=2000):
        path = self.folder / name
        path.write_bytes(b"w" * size)
        return path


class WeightsTests(Files):
    def test_files_are_found_as_words_values_and_in_folders(self):
        a, b, c = self.make("a.gguf"), self.make("b.bin"), self.make("c.safetensors")
        self.make("readme.md")
        self.make("small.gguf", 10)
        self.assertEqual(weights(["serve", "-m", str(a), f"--draft={b}", "--port", "8080"]), [a, b])
        self.assertEqual(weights(["serve", str(self.folder)]), [a, b, c])

    def test_all_parts_of_a_model_in_several_files_count(self):
        parts = [self.make(f"big-0000{number}-of-00003.gguf") for number in (1, 2, 3)]
        self.assertEqual(weights(["serve", "-m", str(parts[0])]), parts)

    def test_words_that_are_not_files_are_ignored(self):
        self.assertEqual(weights(["serve", "x" * 5000, "\0", "nothere.gguf", "", "-m="]), [])

    def test_program_itself_is_not_read_ahead(self):
        self.assertEqual(weights([str(self.make("server"))]), [])


class AdviseTests(Files):
    def test_reading_ahead_stops_at_the_free_memory(self):
        path = self.make("a.gguf", 3 * PIECE + 5)
        self.assertEqual(advise([path], 10 * PIECE, lambda: True), 3 * PIECE + 5)
        self.assertEqual(advise([path], 2 * PIECE, lambda: True), 2 * PIECE)

    def test_reading_ahead_ends_if_it_is_not_wanted(self):
        self.assertEqual(advise([self.make("a.gguf", 2 * PIECE)], 10 * PIECE, lambda: False), 0)

    def test_deleted_file_is_ignored(self):
        self.assertEqual(advise([self.folder / "gone"], PIECE, lambda: True), 0)


class ReadAheadTests(Files):
    def setUp(self):
        super().setUp()
        self.now = 0.0
        self.work = []
        self.asked = []
        path = self.make("a.gguf")
        self.ahead = ReadAhead(
            self.work.append,
            lambda model: ["serve", str(path)],
            lambda: self.now,
            lambda: (1 << 40, KEPT_FREE + 77),
            lambda files, room, wanted: self.asked.append((len(files), room, wanted())) or 0,
        )

    def test_reading_ahead_runs_on_the_thread_and_leaves_memory_free(self):
        self.ahead.begin("owl")
        self.assertEqual(self.asked, [])
        self.work[0]()
        self.assertEqual(self.asked, [(1, 77, True)])

    def test_load_ends_reading_ahead(self):
        self.ahead.begin("owl")
        self.ahead.end("hen")
        self.ahead.end("owl")
        self.work[0]()
        self.assertEqual(self.asked, [(1, 77, False)])

    def test_same_model_is_not_read_again_at_once(self):
        self.ahead.begin("owl")
        self.ahead.begin("owl")
        self.assertEqual(len(self.work), 1)
        self.now = REPEAT_AFTER
        self.ahead.begin("owl")
        self.assertEqual(len(self.work), 2)
