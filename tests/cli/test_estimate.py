"""`estimate`: which rung answered, of what the need consists, and what a service has learned."""

import json
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.cli.doubles import Server, invoke
from tests.memory import gguf_files

LEARNED = {
    "ram_mib": 500, "gpus": [[9216]], "source": "learned", "samples": 12, "p95_mib": 9716, "load_seconds": 3.25,
}  # fmt: skip


class EstimateTests(SynchronousTestCase):
    def setUp(self):
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        self.model = self.folder / "tiny.gguf"
        gguf_files.write(self.model, *gguf_files.llama(layers=4))
        for number, total in enumerate((24000, 24000)):
            board = self.folder / "boards" / str(number)
            board.mkdir(parents=True)
            (board / "total").write_text(str(total))

    def run_estimate(self, *words, config="", server=None, gpus=False):
        path = self.folder / "config.yaml"
        path.write_text(config)
        boards = self.folder / ("boards" if gpus else "none")
        boards.mkdir(exist_ok=True)
        env = {"LLAMASWAP_FAKE_BOARDS": str(boards), "CUDA_VISIBLE_DEVICES": None}
        return invoke(["estimate", *words, "--config", str(path)], server, env=env)

    def document(self, *words, **options):
        done = self.run_estimate(*words, "--json", **options)
        self.assertEqual(done.exit_code, 0, done.output)
        return json.loads(done.stdout)

    def test_file_is_estimated_by_its_header(self):
        done = self.run_estimate(str(self.model), "-c", "4096")
        self.assertIn("gguf: the header of the llama model, with a context of 4096 tokens", done.stdout)
        self.assertRegex(done.stdout, r"ram +weights in the file cache +119 MiB")
        self.assertRegex(done.stdout, r"ram +cache +16 MiB")
        self.assertRegex(done.stdout, r"needs \d+ MiB of RAM\n")

    def test_file_that_is_no_gguf_is_an_error(self):
        done = self.run_estimate(str(self.folder / "config.yaml"))
        self.assertEqual(done.exit_code, 1)
        self.assertIn("config.yaml is not a GGUF file", done.output)

    def test_unknown_model_names_the_configuration_that_was_read(self):
        done = self.run_estimate("owl", config="models: {}")
        self.assertEqual(done.exit_code, 1)
        self.assertIn(f"owl is neither a file nor a model of {self.folder / 'config.yaml'}", done.output)
        self.assertIn("--config", done.output)

    def test_flags_change_the_command(self):
        def cache(*flags):
            parts = self.document(str(self.model), *flags, gpus=True)["parts"]
            return {part["device"]: part["mib"] for part in parts if part["purpose"] == "cache"}

        self.assertEqual(cache("-c", "4096", "-ngl", "0"), {"ram": 16})
        self.assertEqual(sum(cache("-c", "8192").values()), 32)
        self.assertEqual(cache("-c", "4096", "-ngl", "0", "-ctk", "q8_0", "-ctv", "q8_0"), {"ram": 9})

    def test_model_of_the_configuration_is_estimated_with_its_flags_and_gpus(self):
        config = f"""
            models:
              owl: {{cmd: "llama-server -m {self.model} -c 8192 --port ${{PORT}}", gpus: auto, aliases: [bird]}}
        """
        found = self.document("bird", config=config, gpus=True)
        self.assertEqual((found["source"], found["firm"], found["learned"]), ("gguf", False, None))
        self.assertEqual([[share["device"] for share in option] for option in found["gpus"]], [[None], [None, None]])
        self.assertEqual(found["model"], "bird")

    def test_environment_of_the_model_counts(self):
        config = f"""
            models:
              owl:
                cmd: "llama-server --port ${{PORT}}"
                env: ["LLAMA_ARG_MODEL={self.model}", "HIP_VISIBLE_DEVICES=1"]
        """
        found = self.document("owl", config=config, gpus=True)
        self.assertEqual([share["device"] for share in found["gpus"][0]], ["gpu1"])

    def test_declared_memory_comes_first(self):
        config = f"models: {{owl: {{cmd: 'llama-server -m {self.model} --port ${{PORT}}', memory: 9GiB}}}}"
        found = self.document("owl", config=config, gpus=True)
        self.assertEqual((found["source"], found["firm"], found["parts"]), ("declared", True, []))
        self.assertEqual(found["gpus"], [[{"device": "gpu0", "mib": 4608}, {"device": "gpu1", "mib": 4608}]])
        done = self.run_estimate("owl", config=config, gpus=True)
        self.assertIn("needs 4.5 GiB of gpu0 and 4.5 GiB of gpu1 and 0 MiB of RAM", done.stdout)

    def test_measurement_of_a_service_is_shown(self):
        config = f"models: {{owl: {{cmd: 'llama-server -m {self.model} --port ${{PORT}}', aliases: [bird]}}}}"
        server = Server().on("GET /api/memory", {"needs": {"owl": LEARNED}})
        done = self.run_estimate("bird", config=config, server=server)
        self.assertIn("bird learned: 9.0 GiB on GPUs and 500 MiB of RAM, from 12 measurements", done.stdout)
        self.assertEqual(self.document("bird", config=config, server=server)["learned"], LEARNED)
        only_estimated = {"needs": {"owl": {**LEARNED, "source": "gguf"}}}
        for answer in (only_estimated, {}, (500, {"error": "x"}), OSError("refused")):
            server = Server().on("GET /api/memory", answer)
            self.assertIsNone(self.document("owl", config=config, server=server)["learned"])

    def test_measured_model_is_not_called_unknown_too(self):
        config = "models: {odd: {cmd: 'thing --port ${PORT}'}}"
        server = Server().on("GET /api/memory", {"needs": {"odd": LEARNED}})
        done = self.run_estimate("odd", config=config, server=server)
        self.assertIn("odd learned: 9.0 GiB on GPUs", done.stdout)
        self.assertNotIn("unknown", done.stdout)
        found = self.document("odd", config=config, server=server)
        self.assertEqual((found["source"], found["ram_mib"]), ("learned", 500))
        self.assertEqual(found["gpus"], [[{"device": None, "mib": 9216}]])

    def test_model_that_nothing_is_known_of_is_said_to_be_loaded_alone(self):
        config = "models: {odd: {cmd: 'thing --port ${PORT}'}}"
        done = self.run_estimate("odd", config=config)
        self.assertEqual(done.exit_code, 0)
        self.assertIn("odd: what it needs is unknown until it has been loaded", done.stdout)
        self.assertIsNone(self.document("odd", config=config)["source"])

    def test_configuration_that_cannot_be_used_is_an_error_of_the_command(self):
        done = self.run_estimate("fish", config="models: 7")
        self.assertEqual(done.exit_code, 1)
        self.assertIn("Error: ", done.stderr)

    def test_unknown_name_is_an_error(self):
        done = self.run_estimate("fish", config="models: {odd: {cmd: 'thing --port ${PORT}'}}")
        self.assertEqual(done.exit_code, 1)
        self.assertIn("fish is neither a file nor a model of ", done.stderr)
