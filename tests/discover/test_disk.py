from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.discover.disk import engines, files, hub_models, ollama_models
from tests.discover.doubles import ollama_store, touch


class FolderTests(SynchronousTestCase):
    def setUp(self):
        self.home = Path(self.mktemp()).absolute()
        self.home.mkdir()

    def test_files_are_found_below_a_folder_and_a_missing_folder_is_not_an_error(self):
        touch(self.home, "a/b/c/m.gguf", "n.GGUF", "x.txt")
        self.assertEqual(sorted(path.name for path in files(self.home, ".gguf")), ["m.gguf", "n.GGUF"])
        self.assertEqual(list(files(self.home / "nowhere", ".gguf")), [])

    def test_search_of_a_folder_that_links_to_itself_ends(self):
        (self.home / "loop").symlink_to(self.home)
        touch(self.home, "m.gguf")
        self.assertEqual(len(list(files(self.home, ".gguf"))), 1)

    def test_hugging_face_cache_has_gguf_and_safetensors_models(self):
        one, two = "models--org--One-GGUF", "models--org--Two"
        touch(self.home, f"{one}/snapshots/abc/One-Q4_K_M.gguf")
        touch(self.home, f"{two}/snapshots/new/config.json", f"{two}/snapshots/new/model.safetensors")
        touch(self.home, f"{two}/snapshots/old/config.json", f"{two}/snapshots/old/model.safetensors")
        (self.home / two / "refs").mkdir()
        (self.home / two / "refs" / "main").write_text("new")
        found = {model.name: model for model in hub_models(self.home, {"vllm": "/bin/vllm"})}
        self.assertEqual(found["two"].words, ("/bin/vllm", "serve", "org/Two"))
        self.assertTrue(found["two"].active)
        self.assertIn("One-Q4_K_M.gguf", found["one-q4_k_m"].words[-1])
        self.assertFalse({model.name: model for model in hub_models(self.home, {})}["two"].active)

    def test_engines_are_found_on_the_path(self):
        self.assertEqual(engines({"vllm": "/bin/vllm"}.get), {"vllm": "/bin/vllm"})

    def test_stopped_search_returns_the_files_found_so_far(self):
        touch(self.home, *(f"{number}.gguf" for number in range(9)))
        left = iter([False, False, False, True])
        self.assertEqual(len(list(files(self.home, ".gguf", lambda: next(left)))), 3)
        touch(self.home, "models--a--b/snapshots/abc/M.gguf")
        self.assertEqual(hub_models(self.home, {}, lambda: True), [])


class OllamaTests(SynchronousTestCase):
    def models(self, *given, **more):
        self.root = ollama_store(Path(self.mktemp()).absolute(), *given, **more)
        return ollama_models(self.root)

    def test_ollama_model_is_served_from_its_blob_with_its_parameters(self):
        (model,) = self.models()
        blob = str(self.root / "blobs/sha256-aa")
        projector = str(self.root / "blobs/sha256-bb")
        self.assertEqual(
            model.words,
            ("llama-server", "-m", blob, "--mmproj", projector, "-c", "8192", "--seed", "1234567", "--temp", "0.6"),
        )
        self.assertEqual((model.name, model.note), ("llama3.2-1b", "Ollama: llama3.2:1b"))

    def test_ollama_models_have_ollamas_names_as_aliases(self):
        (model,) = self.models("registry.ollama.ai/someone/tiny/latest")
        self.assertEqual((model.name, model.aliases), ("someone-tiny", ("someone/tiny:latest",)))
        (model,) = self.models("registry.ollama.ai/library/qwen3/8b")
        self.assertEqual((model.name, model.aliases), ("qwen3-8b", ("qwen3:8b",)))

    def test_system_prompt_and_stop_words_are_taken_and_the_rest_is_named(self):
        (model,) = self.models()
        self.assertEqual((model.params, model.system_prompt), ({"stop": ["x"]}, 'Be\n"kind".'))
        self.assertEqual(
            model.skipped,
            ("the parameter tfs_z", "the prompt template (llama-server uses the one in the model's file)"),
        )

    def test_odd_parameters_are_left_out(self):
        for text in ("[]", "{", '{"stop": 3, "num_ctx": "x", "top_p": null}', '{"stop": "END", "use_mmap": false}'):
            root = ollama_store(Path(self.mktemp()).absolute())
            (root / "blobs/sha256-cc").write_text(text)
            (model,) = ollama_models(root)
            self.assertEqual(model.params, {"stop": ["END"]} if "END" in text else {})
            self.assertEqual("--no-mmap" in model.words, "use_mmap" in text)

    def test_file_that_is_not_a_manifest_is_skipped(self):
        self.assertEqual(self.models(layers=[{"nothing": 1}]), [])
        self.assertEqual(self.models(layers=[]), [])
