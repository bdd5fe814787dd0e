"""init, import ollama and pull: what they find and what they write."""

import json
from pathlib import Path, PurePosixPath

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.commands.client import Trouble
from llamaswap.commands.discover import engines, files, hub_models, ollama_models, servers, survey
from llamaswap.commands.found import Found, FoundModel, FoundServer, configuration, gguf_models, model_name, unique
from llamaswap.commands.pull import NoSuchQuant, choose, quant_of, split_name
from llamaswap.config import Source, load
from llamaswap.config.commands import split
from tests.commands.doubles import invoke


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


class GgufTests(SynchronousTestCase):
    def models(self, *names):
        return {model.name: model.words for model in gguf_models(map(PurePosixPath, names))}

    def test_only_the_first_shard_is_a_model(self):
        names = [f"/m/Big-Q4_K_M-0000{number}-of-00002.gguf" for number in (1, 2)]
        self.assertEqual(self.models(*names), {"big-q4_k_m": ("llama-server", "-m", names[0])})

    def test_a_projector_goes_with_the_model_beside_it(self):
        found = self.models("/m/v/Vision-Q8_0.gguf", "/m/v/mmproj-F16.gguf", "/m/t/Text.gguf")
        self.assertIn("/m/v/mmproj-F16.gguf", found["vision-q8_0"])
        self.assertNotIn("--mmproj", found["text"])

    def test_an_embedding_model_is_started_as_one(self):
        self.assertIn("--embedding", self.models("/m/nomic-embed-text-v1.5.gguf")["nomic-embed-text-v1.5"])

    def test_names_are_comfortable_and_unique(self):
        self.assertEqual(model_name("Qwen3 8B (Q4)!"), "qwen3-8b-q4")
        twice = [FoundModel("a", ("x",)), FoundModel("a", ("y",))]
        self.assertEqual([name for name, _ in unique(twice)], ["a", "a-2"])


class ConfigurationTests(SynchronousTestCase):
    def test_what_is_written_loads_and_means_the_commands_found(self):
        odd = '/models/with blank "and" quotes.gguf'
        found = Found(
            (
                FoundModel("plain", ("llama-server", "-m", "/m/a.gguf", "-c", "4096")),
                FoundModel("1.5", ("llama-server", "-m", odd)),
                FoundModel("asleep", ("vllm", "serve", "x/y"), active=False),
            ),
            (FoundServer("ollama", "http://127.0.0.1:11434", ("a:latest", "true", "7")),),
            {"llama-server": "/usr/bin/llama-server"},
        )
        text = configuration(found)
        loaded = load([Source("x", text)], {})
        self.assertEqual(loaded.warnings, ())
        models = loaded.config.models
        self.assertEqual(sorted(models), ["1.5", "plain"])
        words = split(models["plain"].cmd)
        self.assertEqual(words, ["llama-server", "--port", str(models["plain"].port), "-m", "/m/a.gguf", "-c", "4096"])
        self.assertIn(odd, split(models["1.5"].cmd))
        self.assertEqual(loaded.config.peers["ollama"].models, ("a:latest", "true", "7"))
        self.assertIn("#  asleep:", text)

    def test_with_nothing_found_it_loads_too(self):
        self.assertEqual(dict(load([Source("x", configuration(Found()))], {}).config.models), {})


class DiscoverTests(SynchronousTestCase):
    def setUp(self):
        self.home = Path(self.mktemp()).absolute()
        self.home.mkdir()

    def test_files_are_found_below_a_folder_and_what_is_missing_is_no_error(self):
        touch(self.home, "a/b/c/m.gguf", "n.GGUF", "x.txt")
        self.assertEqual(sorted(path.name for path in files(self.home, ".gguf")), ["m.gguf", "n.GGUF"])
        self.assertEqual(list(files(self.home / "nowhere", ".gguf")), [])

    def test_a_folder_that_links_to_itself_ends(self):
        (self.home / "loop").symlink_to(self.home)
        touch(self.home, "m.gguf")
        self.assertEqual(len(list(files(self.home, ".gguf"))), 1)

    def test_the_hugging_face_cache_gives_gguf_and_safetensors_models(self):
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

    def test_engines_are_those_on_the_path(self):
        self.assertEqual(engines({"vllm": "/bin/vllm"}.get), {"vllm": "/bin/vllm"})

    def test_servers_that_answer_are_peers(self):
        def ask(url):
            if url.endswith(":8000"):
                return {"data": [{"id": "m"}]}
            if url.endswith(":1234"):
                return {"hello": "I am something else"}
            raise Trouble("refused")

        self.assertEqual(servers(ask), [FoundServer("vllm", "http://127.0.0.1:8000", ("m",))])

    def test_given_folders_are_looked_at_alone(self):
        touch(self.home, "models/usual.gguf", "mine/own.gguf")
        everywhere = survey(self.home, {}, which=lambda name: None, ask=None)
        self.assertIn("usual", [model.name for model in everywhere.models])
        only = survey(self.home, {}, [self.home / "mine"], which=lambda name: None, ask=None)
        self.assertEqual([model.name for model in only.models], ["own"])


class InitTests(SynchronousTestCase):
    def test_an_existing_file_is_not_replaced_unasked(self):
        folder = Path(self.mktemp())
        touch(folder, "m.gguf", "config.yaml")
        words = ["init", "--no-servers", "--models", str(folder), "-o", str(folder / "config.yaml")]
        done = invoke(words)
        self.assertEqual((done.exit_code, "--force" in done.stderr), (1, True))
        self.assertEqual(invoke([*words, "--force"]).exit_code, 0)
        self.assertIn("m.gguf", (folder / "config.yaml").read_text())

    def test_it_can_go_to_standard_output(self):
        folder = Path(self.mktemp())
        touch(folder, "m.gguf")
        done = invoke(["init", "--no-servers", "--models", str(folder), "-o", "-"])
        self.assertIn("m", load([Source("x", done.stdout)], {}).config.models)


class OllamaTests(SynchronousTestCase):
    def models(self, place="registry.ollama.ai/library/llama3.2/1b", layers=None):
        root = Path(self.mktemp()).absolute()
        manifest = root / "manifests" / place
        manifest.parent.mkdir(parents=True)
        kinds = {"model": "aa", "projector": "bb", "params": "cc", "template": "dd"}
        rows = [
            {"mediaType": f"application/vnd.ollama.image.{kind}", "digest": f"sha256:{digest}"}
            for kind, digest in kinds.items()
        ]
        manifest.write_text(json.dumps({"layers": rows if layers is None else layers}))
        touch(root, *(f"blobs/sha256-{digest}" for digest in kinds.values()))
        (root / "blobs/sha256-cc").write_text(json.dumps({"num_ctx": 8192, "stop": ["x"], "temperature": 0.6}))
        self.root = root
        return ollama_models(root)

    def test_a_model_is_served_from_its_blob_with_its_parameters(self):
        (model,) = self.models()
        blob = str(self.root / "blobs/sha256-aa")
        projector = str(self.root / "blobs/sha256-bb")
        self.assertEqual(
            model.words, ("llama-server", "-m", blob, "--mmproj", projector, "-c", "8192", "--temp", "0.6")
        )
        self.assertEqual((model.name, model.note), ("llama3.2-1b", "Ollama: llama3.2:1b"))

    def test_the_usual_tag_and_another_publisher_are_named_as_ollama_names_them(self):
        (model,) = self.models("registry.ollama.ai/someone/tiny/latest")
        self.assertEqual(model.note, "Ollama: someone/tiny")

    def test_what_is_no_manifest_is_passed_over(self):
        self.assertEqual(self.models(layers=[{"nothing": 1}]), [])
        self.assertEqual(self.models(layers=[]), [])

    def test_the_command_writes_a_configuration(self):
        self.models()
        output = Path(self.mktemp())
        done = invoke(["import", "ollama", "--from", str(self.root), "-o", str(output)])
        self.assertEqual(done.exit_code, 0, done.output)
        self.assertIn("llama3.2-1b", load([Source("x", output.read_text())], {}).config.models)

    def test_without_any_it_says_where_it_looked(self):
        empty = Path(self.mktemp())
        empty.mkdir()
        done = invoke(["import", "ollama", "--from", str(empty)])
        self.assertEqual((done.exit_code, str(empty) in done.stderr), (1, True))


class PullTests(SynchronousTestCase):
    NAMES = ("README.md", "M-Q4_K_M.gguf", "M-Q8_0.gguf", "mmproj-M-BF16.gguf", "mmproj-M-F16.gguf", "M-IQ2_XS.gguf")

    def test_quants_are_read_from_file_names(self):
        names = ("a-Q4_K_M.gguf", "a.Q8_0.gguf", "BF16/a-BF16-00001-of-00002.gguf", "a-UD-Q4_K_XL.gguf", "a.gguf")
        self.assertEqual([quant_of(name) for name in names], ["Q4_K_M", "Q8_0", "BF16", "UD-Q4_K_XL", ""])

    def test_the_usual_quant_is_taken_with_one_projector(self):
        self.assertEqual(choose(self.NAMES), ["M-Q4_K_M.gguf", "mmproj-M-F16.gguf"])

    def test_the_quant_asked_for_is_taken_in_any_case(self):
        self.assertEqual(choose(self.NAMES, "q8_0")[0], "M-Q8_0.gguf")

    def test_all_shards_are_taken(self):
        shards = [f"Q2_K/M-Q2_K-0000{number}-of-00002.gguf" for number in (1, 2)]
        self.assertEqual(choose(shards), shards)

    def test_another_quant_names_those_there_are(self):
        self.assertIn("IQ2_XS", str(self.assertRaises(NoSuchQuant, choose, self.NAMES, "Q3_K")))

    def test_a_repository_without_gguf_is_taken_whole(self):
        self.assertEqual(choose(["README.md", "config.json", "m.safetensors"]), ["config.json", "m.safetensors"])
        self.assertRaises(NoSuchQuant, choose, ["config.json"], "Q4_0")

    def test_a_name_has_a_repository_and_perhaps_a_quant(self):
        self.assertEqual([split_name(text) for text in ("a/b", "a/b:Q4_0")], [("a/b", ""), ("a/b", "Q4_0")])
