"""init, import ollama and pull: what they write and what they take."""

import io
import json
import socket
import threading
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.cli.pull import NoSuchQuant, choose, is_reachable, split_name
from llamaswap.config import ConfigText, load
from llamaswap.discover.config_writer import quant_of
from tests.cli.doubles import invoke
from tests.discover.doubles import ollama_store, touch


class InitTests(SynchronousTestCase):
    def test_existing_file_is_not_replaced_without_force(self):
        folder = Path(self.mktemp())
        touch(folder, "m.gguf", "config.yaml")
        words = ["init", "--no-servers", "--models", str(folder), "-o", str(folder / "config.yaml")]
        done = invoke(words)
        self.assertEqual((done.exit_code, "--force" in done.stderr), (1, True))
        self.assertEqual(invoke([*words, "--force"]).exit_code, 0)
        self.assertIn("m.gguf", (folder / "config.yaml").read_text())

    def test_file_that_cannot_be_written_is_reported(self):
        folder = Path(self.mktemp())
        touch(folder, "m.gguf")
        for output in ("/nonexistent/folder/config.yaml", "a" * 300):
            done = invoke(["init", "--no-servers", "--models", str(folder), "-o", output])
            self.assertEqual(done.exit_code, 1)
            self.assertIn(f"Error: {output}: ", done.stderr)

    def test_paths_of_models_are_absolute(self):
        folder = Path(self.mktemp())
        touch(folder, "m.gguf")
        done = invoke(["init", "--no-servers", "--models", str(folder), "-o", "-"])
        self.assertFalse(folder.is_absolute())
        self.assertIn(f"-m {folder.absolute()}/m.gguf", done.stdout)

    def test_init_without_models_explains_where_to_get_one(self):
        folder = Path(self.mktemp())
        folder.mkdir()
        done = invoke(["init", "--no-servers", "--models", str(folder), "-o", str(folder / "c.yaml")])
        self.assertEqual(done.exit_code, 0, done.output)
        for words in ("--models FOLDER", "llamaswap pull", "llamaswap demo"):
            self.assertIn(words, done.stdout)
        self.assertNotIn("next:", done.stdout)

    def test_init_without_llama_server_is_reported(self):
        folder = Path(self.mktemp())
        touch(folder, "m.gguf", "bin/llama-server")
        (folder / "bin/llama-server").chmod(0o755)
        words = ["init", "--force", "--no-servers", "--models", str(folder), "-o", str(folder / "c.yaml")]
        self.assertIn("llama-server was not found", invoke(words, env={"PATH": "/nonexistent"}).stdout)
        there = invoke(words, env={"PATH": str((folder / "bin").absolute())}).stdout
        self.assertNotIn("was not found", there)
        self.assertIn("next:", there)

    def test_init_writes_to_standard_output(self):
        folder = Path(self.mktemp())
        touch(folder, "m.gguf")
        done = invoke(["init", "--no-servers", "--models", str(folder), "-o", "-"])
        config = load([ConfigText("x", done.stdout)], {}).config
        self.assertIn("m", config.models)
        self.assertEqual(config.routing.memory.mode, "on")


class OllamaTests(SynchronousTestCase):
    def test_import_writes_a_configuration(self):
        root = ollama_store(Path(self.mktemp()).absolute())
        output = Path(self.mktemp())
        done = invoke(["import", "ollama", "--from", str(root), "-o", str(output)])
        self.assertEqual(done.exit_code, 0, done.output)
        model = load([ConfigText("x", output.read_text())], {}).config.models["llama3.2-1b"]
        self.assertEqual(model.aliases, ("llama3.2:1b",))
        self.assertEqual(model.filters.system_prompt, 'Be\n"kind".')
        self.assertEqual(dict(model.filters.set_params), {"stop?": ["x"]})
        self.assertIn("llama3.2-1b: not taken over: the parameter tfs_z, the prompt template", done.stdout)
        printed = invoke(["import", "ollama", "--from", str(root), "-o", "-"])
        self.assertIn("llama3.2-1b: not taken over: the parameter tfs_z, the prompt template", printed.stderr)
        self.assertEqual(load([ConfigText("x", printed.stdout)], {}).config.models["llama3.2-1b"], model)

    def test_import_names_the_models_that_it_skips(self):
        root = ollama_store(Path(self.mktemp()).absolute())
        tags = root / "manifests/registry.ollama.ai/library/odd"
        tags.mkdir(parents=True)
        (tags / "text").write_text("{")
        (tags / "bare").write_text('{"layers": []}')
        layer = {"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:ff"}
        (tags / "cut").write_text(json.dumps({"layers": [layer]}))
        done = invoke(["import", "ollama", "--from", str(root), "-o", str(Path(self.mktemp()))])
        lines = [line.rpartition("odd/")[2] for line in done.stderr.splitlines() if line.startswith("skipped ")]
        self.assertEqual([line.partition(":")[0] for line in lines], ["bare", "cut", "text"])
        self.assertIn(str(root / "blobs/sha256-ff"), lines[1])

    def test_import_without_models_names_the_searched_folder(self):
        empty = Path(self.mktemp())
        empty.mkdir()
        done = invoke(["import", "ollama", "--from", str(empty)])
        self.assertEqual((done.exit_code, str(empty) in done.stderr), (1, True))


class PullTests(SynchronousTestCase):
    NAMES = ("README.md", "M-Q4_K_M.gguf", "M-Q8_0.gguf", "mmproj-M-BF16.gguf", "mmproj-M-F16.gguf", "M-IQ2_XS.gguf")

    def test_quant_is_read_from_the_file_name(self):
        names = ("a-Q4_K_M.gguf", "a.Q8_0.gguf", "BF16/a-BF16-00001-of-00002.gguf", "a-UD-Q4_K_XL.gguf", "a.gguf")
        self.assertEqual([quant_of(name) for name in names], ["Q4_K_M", "Q8_0", "BF16", "UD-Q4_K_XL", ""])

    def test_default_quant_is_chosen_with_one_projector(self):
        self.assertEqual(choose(self.NAMES), ["M-Q4_K_M.gguf", "mmproj-M-F16.gguf"])

    def test_named_quant_is_chosen_in_any_case(self):
        self.assertEqual(choose(self.NAMES, "q8_0")[0], "M-Q8_0.gguf")

    def test_all_shards_are_chosen(self):
        shards = [f"Q2_K/M-Q2_K-0000{number}-of-00002.gguf" for number in (1, 2)]
        self.assertEqual(choose(shards), shards)

    def test_unknown_quant_lists_the_available_ones(self):
        self.assertIn("IQ2_XS", str(self.assertRaises(NoSuchQuant, choose, self.NAMES, "Q3_K")))

    def test_repository_without_gguf_is_chosen_whole(self):
        self.assertEqual(choose(["README.md", "config.json", "m.safetensors"]), ["config.json", "m.safetensors"])
        self.assertRaises(NoSuchQuant, choose, ["config.json"], "Q4_0")

    def test_name_has_a_repository_and_an_optional_quant(self):
        self.assertEqual([split_name(text) for text in ("a/b", "a/b:Q4_0")], [("a/b", ""), ("a/b", "Q4_0")])

    def test_hub_that_does_not_answer_is_unreachable_after_the_timeout(self):
        released = threading.Event()
        self.addCleanup(released.set)
        self.patch(socket, "create_connection", lambda *_: released.wait(60) and io.BytesIO())
        self.assertFalse(is_reachable("https://hub.example", 0.01))
        refused = lambda *_: (_ for _ in ()).throw(OSError(111, "refused"))
        self.patch(socket, "create_connection", refused)
        self.assertFalse(is_reachable("http://hub.example", 60))
        asked = []
        self.patch(socket, "create_connection", lambda place, _: asked.append(place) or io.BytesIO())
        self.assertTrue(is_reachable("https://hub.example", 60) and is_reachable("http://[::1]:8", 60))
        self.assertEqual(asked, [("hub.example", 443), ("::1", 8)])

    def test_name_may_begin_with_the_address_of_the_hub(self):
        for address in ("hf.co/", "https://hf.co/", "huggingface.co/", "https://huggingface.co/"):
            self.assertEqual(split_name(f"{address}a/b:Q4_0"), ("a/b", "Q4_0"))
