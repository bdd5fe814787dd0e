"""GET /api/catalog: what tells the models from each other."""

from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase, TestCase

from llamaswap.config import Capabilities, Config, Model
from llamaswap.web.model_list import DISK_TIMEOUT, context_of, quant_of, sizes_of, weights_file
from tests.doubles import server_status
from tests.web.doubles import World, at_once, example_router


class ModelListTests(TestCase):
    def world(self, run=at_once, **models):
        config = Config(models={name: Model(name, cmd=cmd) for name, cmd in models.items()})
        return World(example_router(config), surveyor=run)

    def row(self, world, name):
        [found] = [row for row in world.ask("/api/catalog").json["models"] if row["id"] == name]
        return found

    def test_row_has_the_file_of_its_command_and_the_usual_load_time(self):
        path = Path(self.mktemp()).with_suffix(".Q4_K_M.gguf").resolve()
        path.write_bytes(b"x" * 700)
        world = self.world(one=f"llama-server -m {path} -c 4096 --mmproj /m/mmproj-F16.gguf")
        world.router.statuses["one"] = server_status(
            "one", "stopped", load_seconds=(1.0, 9.0, 2.0), last_error="exit 3"
        )
        world.router.pinned = frozenset({"one"})
        row = self.row(world, "one")
        self.assertEqual((row["quant"], row["file_bytes"], row["context_length"]), ("Q4_K_M", 700, 4096))
        self.assertEqual((row["load_ms"], row["failed"], row["pinned"]), (2000, "exit 3", True))
        self.assertEqual((row["state"], row["groups"]), ("stopped", ["(default)"]))

    def test_facts_that_are_not_known_are_null(self):
        world = self.world(one="serve --port 1", two="serve 'unclosed")
        world.router.statuses["one"] = server_status("one", "stopped", load_seconds=())
        row = self.row(world, "one")
        self.assertEqual(
            [row[key] for key in ("quant", "file_bytes", "context_length", "load_ms", "failed")], [None] * 5
        )
        self.assertEqual(self.row(world, "two")["quant"], None)

    def test_context_that_the_server_reported_counts_more_than_that_of_the_command(self):
        config = Config(models={"one": Model("one", cmd="serve -c 4096")})
        world = World(example_router(config), capabilities=lambda model: Capabilities(context=8192))
        self.assertEqual(self.row(world, "one")["context_length"], 8192)

    def test_folder_that_does_not_answer_leaves_the_sizes_unknown(self):
        never = Deferred()
        world = self.world(run=lambda work: never, one="serve -m /net/x.gguf")
        client = world.open("/api/catalog")
        self.assertEqual(client.received, b"")
        world.clock.advance(DISK_TIMEOUT)
        self.assertEqual(client.answer().json["models"][0]["file_bytes"], None)
        client.leave()
        never.callback({})


class CommandTests(SynchronousTestCase):
    def test_file_of_a_command_is_not_that_of_a_draft_or_a_projector(self):
        for command, found in {
            "s -md d.gguf -m a.gguf": "a.gguf",
            "s --model-draft=d.gguf --model=a.gguf": "a.gguf",
            "s --mmproj x/mmproj-f16.gguf a.GGUF": "a.GGUF",
            "s -hf ggml-org/gemma:Q4_0": None,
            "a.gguf": None,
        }.items():
            self.assertEqual(weights_file(command.split()), found, command)

    def test_quantisation_is_read_from_names(self):
        for name, found in {
            "qwen3-8b-q4_k_m.gguf": "Q4_K_M",
            "gpt-oss-20b-mxfp4.gguf": "MXFP4",
            "X-UD-IQ2_XXS.gguf": "UD-IQ2_XXS",
            "org/model-AWQ": "AWQ",
            "model-BF16-00001-of-00002.gguf": "BF16",
            "iq-test.gguf": None,
            "seq8x": None,
        }.items():
            self.assertEqual(quant_of([name]), found, name)

    def test_context_is_read_from_commands(self):
        for command, found in {
            "s -c 8192": 8192,
            "s --max-model-len=32768": 32768,
            "s -c": None,
            "s -c 0": None,
            "s": None,
        }.items():
            self.assertEqual(context_of(command.split()), found, command)

    def test_size_of_a_file_in_parts_is_that_of_all(self):
        folder = Path(self.mktemp())
        folder.mkdir()
        for part in (1, 2):
            (folder / f"m-0000{part}-of-00002.gguf").write_bytes(b"x" * part)
        first = str(folder / "m-00001-of-00002.gguf")
        self.assertEqual(sizes_of([first, "/no/such.gguf"]), {first: 3})
