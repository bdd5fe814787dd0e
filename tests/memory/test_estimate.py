"""The order in which estimates are tried, and needs that are declared in the configuration."""

import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config.schema.memory import NO_CHOICE, GpuChoice
from llamaswap.memory.estimate import Estimator, declared_need
from llamaswap.scheduling.memory import RAM, Device, GpuShare, MemoryNeed
from tests.memory import gguf_files

NO_GPU = {RAM: Device(32000)}
GPUS = {RAM: Device(32000), "gpu0": Device(24000), "gpu1": Device(12000)}


class LadderTests(SynchronousTestCase):
    def setUp(self):
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        self.estimator = Estimator()

    def gguf(self, name="m.gguf", **options):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        gguf_files.write(path, *gguf_files.llama(**options))
        return path

    def sized(self, name, size):
        path = self.folder / name
        with open(path, "wb") as file:
            file.truncate(size)
        return path

    def estimate(self, command, devices=NO_GPU, choice=NO_CHOICE, **environment):
        return self.estimator.estimate(command.split(), environment, devices, choice)

    def source(self, command, devices=NO_GPU, **environment):
        found = self.estimate(command, devices, **environment)
        return found and found.need.source

    def test_gguf_file_is_estimated_whatever_the_program_is_called(self):
        path = self.gguf()
        for program in ("llama-server", "python3 server.py", "koboldcpp"):
            self.assertEqual(self.source(f"{program} --model {path} --port 9"), "gguf")
        self.assertEqual(self.source("llama-server", LLAMA_ARG_MODEL=str(path)), "gguf")

    def test_download_in_a_cache_is_found_by_its_repository(self):
        small = self.gguf("llama.cpp/org_name_name-Q8_0.gguf", layers=1)
        self.gguf("llama.cpp/org_name_name-Q4_K_M.gguf", layers=9)
        self.gguf("hub/models--org--other/snapshots/1/other-Q6_K.gguf", layers=1)
        self.gguf("hub/models--org--other/snapshots/1/mmproj-F16.gguf", layers=1)
        caches = {"LLAMA_CACHE": str(small.parent), "HF_HUB_CACHE": str(self.folder / "hub")}
        eight, four = (
            self.estimate(f"llama-server --no-mmap -hf org/name{quant}", **caches).need.ram for quant in (":q8_0", "")
        )
        self.assertLess(eight, four)
        found = self.estimate("llama-server -hf org/other:Q6_K", **caches)
        self.assertIn("projector", [part.purpose for part in found.parts])
        found = self.estimate("llama-server -hf org/other:Q6_K --no-mmproj", **caches)
        self.assertNotIn("projector", [part.purpose for part in found.parts])
        plain = self.estimate(f"llama-server --no-mmap -m {small} -c 64", **caches).need.ram
        draft = self.estimate(f"llama-server --no-mmap -m {small} -c 64 -hfd org/name:Q8_0", **caches).need.ram
        self.assertGreater(draft, plain + 25)
        self.assertIsNone(self.source("llama-server -hf org/other:Q2_K", **caches))
        self.assertIsNone(self.source("llama-server -hf org/none", **caches))

    def test_unreadable_file_is_unknown(self):
        path = self.folder / "broken.gguf"
        path.write_bytes(b"GGUF\x03\x00")
        for name in (path, self.folder / "missing.gguf", self.folder):
            self.assertIsNone(self.source(f"llama-server -m {name}"))
        self.assertIsNone(self.source(f"llama-server -m {self.gguf()} -md missing.gguf"))
        metadata, tensors = gguf_files.llama()
        gguf_files.write(path, {**metadata, "llama.block_count": 4_000_000_000}, tensors)
        self.assertIsNone(self.source(f"llama-server -m {path}"))
        self.assertIsNone(self.source("some-server --port 9"))
        self.assertIsNone(self.source(f"llama-server -m {self.gguf('a-00001-of-99999.gguf')}"))

    def test_damaged_header_gives_an_estimate_or_none(self):
        metadata, tensors = gguf_files.llama(1, 32, 64, 32, heads=2, kv_heads=1, attention__sliding_window=128)
        path = self.folder / "m.gguf"
        gguf_files.write(path, metadata, tensors)
        whole = path.read_bytes()
        answers = set()
        for at in range(0, gguf_files.header_size(metadata, tensors), 3):
            path.write_bytes(whole[:at] + b"\xff" * 4 + whole[at + 4 :])
            answers.add(self.source(f"llama-server -m {path}", GPUS))
        self.assertEqual(answers, {"gguf", None})

    def test_share_engine_is_estimated_by_its_share_and_by_weights_without_a_gpu(self):
        self.sized("model.safetensors", 1 << 20)
        self.assertEqual(self.source(f"vllm serve {self.folder}", GPUS), "flag")
        found = self.estimate(f"vllm serve {self.folder}", VLLM_CPU_KVCACHE_SPACE="2")
        self.assertEqual((found.need.source, found.need.ram), ("safetensors", 2 + 2048))
        self.assertEqual(self.source(f"mlx_lm.server --model {self.folder}", GPUS), "safetensors")

    def test_engines_for_audio_and_images_load_the_files_that_they_name(self):
        audio, image = self.sized("ggml-base.bin", 100 << 20), self.sized("vae.safetensors", 50 << 20)
        self.assertEqual(self.estimate(f"whisper-server -m {audio}").need.ram, 110 + 600)
        self.assertEqual(self.estimate(f"sd-server -m {audio} --vae={image}").need.ram, 165 + 600)
        self.assertEqual(self.estimate(f"sd-server -m {audio}", GPUS).need.options[0][0].device, "gpu0")
        self.assertIsNone(self.estimate("whisper-server -m missing.bin"))

    def test_answer_is_kept_until_a_file_changes(self):
        path = self.gguf(layers=2)
        first = self.estimate(f"llama-server -m {path} --no-mmap")
        self.assertIs(self.estimate(f"llama-server -m {path} --no-mmap"), first)
        self.gguf(layers=9)
        os.utime(path, (1, 1))
        self.assertGreater(self.estimate(f"llama-server -m {path} --no-mmap").need.ram, first.need.ram)
        self.assertIsNot(self.estimate(f"llama-server -m {path} --no-mmap", GPUS), first)

    def test_engine_is_asked_first_and_the_header_is_read_if_it_does_not_answer(self):
        path = self.gguf()
        program = self.folder / "llama-fit-params"
        program.touch(0o755)
        (self.folder / "llama-server").touch(0o755)
        self.assertEqual(self.source(f"{self.folder}/llama-server -m {path}"), "gguf")


class DeclaredTests(SynchronousTestCase):
    def options(self, sizes, choice=NO_CHOICE, devices=GPUS):
        need = declared_need(sizes, choice, devices)
        self.assertEqual((need.source, need.firm), ("declared", True))
        return need.options

    def test_one_size_is_gpu_memory_or_ram_without_a_gpu(self):
        one = {RAM: Device(1), "gpu0": Device(24000)}
        self.assertEqual(self.options({"": 9000}, devices=one), ((GpuShare(9000, "gpu0"),),))
        self.assertEqual(declared_need({"": 9000}, NO_CHOICE, NO_GPU), MemoryNeed(9000))
        self.assertEqual(declared_need({"gpu": 9000, "gpu1": 5, "ram": 7}, NO_CHOICE, NO_GPU), MemoryNeed(9012))

    def test_gpu_memory_is_spread_as_the_engine_would_if_nothing_is_chosen(self):
        self.assertEqual(self.options({"gpu": 9000}), ((GpuShare(6000, "gpu0"), GpuShare(3000, "gpu1")),))

    def test_gpus_that_llamaswap_chooses_share_it_evenly(self):
        auto = self.options({"gpu": 9000}, GpuChoice(auto=True))
        self.assertEqual(auto, ((GpuShare(9000),), (GpuShare(4500), GpuShare(4500))))
        self.assertEqual(self.options({"gpu": 9001}, GpuChoice(count=2)), ((GpuShare(4501), GpuShare(4501)),))
        fixed = self.options({"gpu": 9000}, GpuChoice(ids=(0, 1)))
        self.assertEqual(fixed, ((GpuShare(4500, "gpu0"), GpuShare(4500, "gpu1")),))

    def test_named_gpus_have_their_own_sizes(self):
        found = declared_need({"gpu0": 6000, "gpu1": 3000, "ram": 2000}, NO_CHOICE, GPUS)
        self.assertEqual(found, MemoryNeed(2000, ((GpuShare(6000, "gpu0"), GpuShare(3000, "gpu1")),)))
        both = self.options({"gpu": 4000, "gpu1": 1000}, GpuChoice(ids=(1,)))
        self.assertEqual(both, ((GpuShare(5000, "gpu1"),),))
        mixed = self.options({"gpu": 4000, "gpu1": 1000}, GpuChoice(count=1))
        self.assertEqual(mixed, ((GpuShare(1000, "gpu1"), GpuShare(4000)),))

    def test_model_that_uses_only_ram_has_an_empty_option(self):
        self.assertEqual(declared_need({"ram": 500}, NO_CHOICE, GPUS), MemoryNeed(500, ((),)))
