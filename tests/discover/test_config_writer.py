from pathlib import PurePosixPath

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config import ConfigText, load
from llamaswap.config.command_line import split
from llamaswap.discover.config_writer import (
    TEMPLATES,
    FoundModel,
    FoundServer,
    ScanResult,
    configuration,
    engine_entry,
    gguf_models,
    model_entry,
    model_name,
    server_entry,
    unique,
)
from llamaswap.discover.disk import ENGINES


class GgufTests(SynchronousTestCase):
    def models(self, *names):
        return {model.name: model.words for model in gguf_models(map(PurePosixPath, names))}

    def test_only_the_first_shard_is_a_model(self):
        names = [f"/m/Big-Q4_K_M-0000{number}-of-00002.gguf" for number in (1, 2)]
        self.assertEqual(self.models(*names), {"big-q4_k_m": ("llama-server", "-m", names[0])})
        [model] = gguf_models(map(PurePosixPath, [*names, "/m/Big-Q8_0-00002-of-00002.gguf"]))
        self.assertEqual([str(path) for path in model.files], names)

    def test_projector_belongs_to_the_model_beside_it(self):
        found = self.models("/m/v/Vision-Q8_0.gguf", "/m/v/mmproj-F16.gguf", "/m/t/Text.gguf")
        self.assertIn("/m/v/mmproj-F16.gguf", found["vision-q8_0"])
        self.assertNotIn("--mmproj", found["text"])

    def test_projector_in_a_folder_of_many_models_belongs_to_its_own(self):
        flat = ("/m/Qwen2.5-VL-7B-Q4_K_M.gguf", "/m/mmproj-Qwen2.5-VL-7B-f16.gguf", "/m/Text-8B-Q4_K_M.gguf")
        found = self.models(*flat, "/m/gemma-3-4b-it-UD-Q4_K_XL.gguf", "/m/gemma-3-4b-it-mmproj-model-f16.gguf")
        given = {name: words[words.index("--mmproj") + 1] for name, words in found.items() if "--mmproj" in words}
        self.assertEqual(
            given,
            {"qwen2.5-vl-7b-q4_k_m": flat[1], "gemma-3-4b-it-ud-q4_k_xl": "/m/gemma-3-4b-it-mmproj-model-f16.gguf"},
        )
        nameless = self.models(*flat[::2], "/m/mmproj-F16.gguf")
        self.assertNotIn("/m/mmproj-F16.gguf", [word for words in nameless.values() for word in words])

    def test_every_quantisation_of_a_model_has_its_projector(self):
        variants = ("/m/V-Q4_K_M.gguf", "/m/V-IQ2_XS-00001-of-00002.gguf", "/m/V-BF16.gguf")
        found = self.models(*variants, "/m/mmproj-F16.gguf")
        self.assertEqual([words[-1] for words in found.values()], ["/m/mmproj-F16.gguf"] * 3)

    def test_embedding_model_is_started_as_one(self):
        self.assertIn("--embedding", self.models("/m/nomic-embed-text-v1.5.gguf")["nomic-embed-text-v1.5"])

    def test_model_names_are_easy_to_type_and_unique(self):
        self.assertEqual(model_name("Qwen3 8B (Q4)!"), "qwen3-8b-q4")
        twice = [FoundModel("a", ("x",)), FoundModel("a", ("y",))]
        self.assertEqual([name for name, _ in unique(twice)], ["a", "a-2"])
        self.assertEqual([name for name, _ in unique(twice, ["a"])], ["a-2", "a-3"])


class ConfigurationTests(SynchronousTestCase):
    def test_written_configuration_loads_with_the_commands_found(self):
        odd = '/models/with blank "and" quotes.gguf'
        found = ScanResult(
            (
                FoundModel("plain", ("llama-server", "-m", "/m/a.gguf", "-c", "4096")),
                FoundModel("1.5", ("llama-server", "-m", odd)),
                FoundModel("asleep", ("vllm", "serve", "x/y"), active=False),
            ),
            (FoundServer("ollama", "http://127.0.0.1:11434", ("a:latest", "true", "7")),),
            {"llama-server": "/usr/bin/llama-server"},
        )
        text = configuration(found)
        loaded = load([ConfigText("x", text)], {})
        self.assertEqual(loaded.warnings, ())
        models = loaded.config.models
        self.assertEqual(sorted(models), ["1.5", "plain"])
        words = split(models["plain"].cmd)
        self.assertEqual(words, ["llama-server", "--port", str(models["plain"].port), "-m", "/m/a.gguf", "-c", "4096"])
        self.assertIn(odd, split(models["1.5"].cmd))
        self.assertEqual(loaded.config.peers["ollama"].models, ("a:latest", "true", "7"))
        self.assertIn("#  asleep:", text)

    def test_server_without_models_is_a_peer_with_auto(self):
        text = configuration(ScanResult(servers=(FoundServer("lab", "http://127.0.0.1:5001"),)))
        self.assertTrue(load([ConfigText("x", text)], {}).config.peers["lab"].auto)

    def test_configuration_of_nothing_loads(self):
        self.assertEqual(dict(load([ConfigText("x", configuration(ScanResult()))], {}).config.models), {})

    def test_subcommand_stays_with_its_program(self):
        found = ScanResult((FoundModel("m", ("vllm", "serve", "org/M")),))
        model = load([ConfigText("x", configuration(found))], {}).config.models["m"]
        self.assertEqual(split(model.cmd), ["vllm", "serve", "org/M", "--port", str(model.port)])


class EntryTests(SynchronousTestCase):
    def test_every_entry_loads_as_one_model_or_peer(self):
        text = "models:\n" + model_entry("a", FoundModel("a", ("llama-server", "-m", "/m/a.gguf"), "a note"))
        text += "".join(engine_entry(name, f"/bin/{name}") for name in ENGINES)
        text += "peers:\n" + server_entry("x", FoundServer("x", "http://127.0.0.1:8000", ("m",)))
        loaded = load([ConfigText("x", text)], {})
        self.assertEqual(loaded.warnings, ())
        self.assertEqual(len(loaded.config.models), 1 + len(TEMPLATES))
        self.assertEqual(loaded.config.peers["x"].models, ("m",))
        for model in loaded.config.models.values():
            self.assertIn(str(model.port), split(model.cmd))

    def test_program_that_serves_no_model_has_no_entry(self):
        self.assertEqual(engine_entry("docker", "/bin/docker"), "")
