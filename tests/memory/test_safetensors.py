"""Engines that take a share of the GPUs, and models of which only the sizes of the files are known."""

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config.schema.memory import NO_CHOICE, GpuChoice
from llamaswap.memory.safetensors import SGLANG, VLLM, estimate_share, estimate_weights, share_engine, weights_of
from llamaswap.scheduling.memory import RAM, Device, GpuShare

MIB = 1024 * 1024
GPUS = {RAM: Device(64000), "gpu0": Device(24000), "gpu1": Device(24000), "gpu2": Device(10000)}
EQUAL = {RAM: Device(64000), "gpu0": Device(24000), "gpu1": Device(24000)}


class ShareTests(SynchronousTestCase):
    def options(self, command, devices=GPUS, choice=NO_CHOICE, engine=VLLM, **environment):
        found = estimate_share(engine, command.split(), devices, environment, choice)
        self.assertEqual((found.need.source, found.need.firm), ("flag", False))
        return found.need.options

    def test_engines_are_recognised_by_their_names(self):
        for command, engine in (
            ("vllm serve org/model", VLLM),
            ("/venv/bin/vllm serve x", VLLM),
            ("python3 -m vllm.entrypoints.openai.api_server --model x", VLLM),
            ("python3 -m sglang.launch_server --model-path x", SGLANG),
            ("docker.io/vllm/vllm-openai:v0.9 --model x", VLLM),
            ("llama-server -m x.gguf", None),
            ("llama-server -m x.gguf --alias vllm", None),
        ):
            self.assertIs(share_engine(command.split()), engine, command)

    def test_share_is_the_flag_or_the_default(self):
        self.assertEqual(self.options("vllm serve x"), ((GpuShare(21600, "gpu0"),),))
        self.assertEqual(self.options("vllm serve x --gpu-memory-utilization 0.5"), ((GpuShare(12000, "gpu0"),),))
        self.assertEqual(self.options("vllm serve x --gpu-memory-utilization=0.25"), ((GpuShare(6000, "gpu0"),),))
        for word in ("much", "nan", "inf", ""):
            found = self.options(f"vllm serve x -tp {word} --gpu-memory-utilization {word}")
            self.assertEqual(found, ((GpuShare(21600, "gpu0"),),))
        self.assertEqual(self.options("s --mem-fraction-static 0.5", engine=SGLANG), ((GpuShare(12000, "gpu0"),),))

    def test_parallel_engine_takes_it_of_several_gpus(self):
        self.assertEqual(
            self.options("vllm serve x -tp 3"),
            ((GpuShare(21600, "gpu0"), GpuShare(21600, "gpu1"), GpuShare(9000, "gpu2")),),
        )
        self.assertEqual(len(self.options("vllm serve x -tp 2 --pipeline-parallel-size=1")[0]), 2)

    def test_chosen_gpus_are_taken(self):
        self.assertEqual(self.options("vllm serve x", choice=GpuChoice(ids=(2,))), ((GpuShare(9000, "gpu2"),),))
        self.assertEqual(self.options("vllm serve x", CUDA_VISIBLE_DEVICES="1"), ((GpuShare(21600, "gpu1"),),))

    def test_any_of_equal_gpus_will_do_and_different_ones_are_options(self):
        auto = GpuChoice(auto=True)
        self.assertEqual(self.options("vllm serve x", EQUAL, auto), ((GpuShare(21600),),))
        options = self.options("vllm serve x", GPUS, auto)
        self.assertEqual([share.device for option in options for share in option], ["gpu0", "gpu1", "gpu2"])
        pairs = self.options("vllm serve x -tp 2", GPUS, GpuChoice(count=2))
        self.assertEqual(
            [tuple(share.device[-1] for share in pair) for pair in pairs], [*map(tuple, ["01", "02", "12"])]
        )

    def test_share_of_too_many_gpus_is_unknown(self):
        self.assertIsNone(estimate_share(VLLM, ["vllm", "serve", "x", "-tp", "8"], GPUS, {}, NO_CHOICE))
        self.assertIsNone(estimate_share(VLLM, ["vllm", "serve", "x"], {RAM: Device(1)}, {}, NO_CHOICE))


class WeightsTests(SynchronousTestCase):
    def folder(self, files, path=None):
        folder = path or Path(self.mktemp()).absolute()
        folder.mkdir(parents=True)
        for name, size in files.items():
            with open(folder / name, "wb") as file:
                file.truncate(size)
        return folder

    def test_weights_of_a_folder_are_its_safetensors(self):
        files = {"model-1.safetensors": 300, "model-2.safetensors": 200, "config.json": 50, "pytorch_model.bin": 500}
        folder = self.folder({**files, "consolidated.safetensors": 500})
        for command in (f"vllm serve {folder}", f"x --model {folder}", f"x --model-path={folder}"):
            self.assertEqual(weights_of(command.split(), {}), 500, command)
        only = self.folder({"consolidated.safetensors": 70})
        self.assertEqual(weights_of(["x", "--model", str(only)], {}), 70)
        older = self.folder({"pytorch_model.bin": 40})
        self.assertEqual(weights_of(["x", "--model", str(older)], {}), 40)

    def test_weights_of_a_repository_are_in_the_cache(self):
        hub = Path(self.mktemp()).absolute()
        self.folder({"model.safetensors": 123}, hub / "models--org--name" / "snapshots" / "abc")
        self.assertEqual(weights_of(["vllm", "serve", "org/name"], {"HF_HUB_CACHE": str(hub)}), 123)
        self.assertEqual(weights_of(["vllm", "serve", "org/other"], {"HF_HUB_CACHE": str(hub)}), 0)
        self.assertEqual(weights_of(["vllm", "serve", "../name"], {"HF_HUB_CACHE": str(hub)}), 0)

    def test_weights_and_a_margin_are_on_a_gpu_or_in_ram(self):
        need = estimate_weights(1000 * MIB, {RAM: Device(9000)}, {}, NO_CHOICE).need
        self.assertEqual((need.ram, need.options, need.source, need.firm), (1612, ((),), "safetensors", False))
        need = estimate_weights(1000 * MIB, EQUAL, {}, GpuChoice(auto=True)).need
        self.assertEqual([len(option) for option in need.options], [1, 2])
        self.assertEqual((need.options[0][0], need.options[1][0]), (GpuShare(1612), GpuShare(806)))
