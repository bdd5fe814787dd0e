"""Commands that run in a container: which files of the host they read, and which GPUs they see."""

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config.schema.memory import NO_CHOICE
from llamaswap.memory.container_command import on_host
from llamaswap.memory.estimate import Estimator
from llamaswap.scheduling.memory import RAM, Device
from tests.memory import gguf_files

GPUS = {RAM: Device(32000), "gpu0": Device(24000), "gpu1": Device(24000)}


class CommandTests(SynchronousTestCase):
    def words(self, command, **environment):
        return on_host(command.split(), environment)

    def test_command_without_a_container_stays_as_it_is(self):
        for command in ("llama-server -m /models/a.gguf", "docker ps", "run x"):
            self.assertEqual(self.words(command, A="1"), (command.split(), {"A": "1"}))
        self.assertEqual(on_host([], {}), ([], {}))

    def test_paths_are_those_of_the_host(self):
        command = "podman run --rm -it --name x -v /srv/m:/models:ro --mount type=bind,src=/d,dst=/models/draft image "
        words, _ = self.words(
            command + "-m /models/a.gguf -md /models/draft/b.gguf --mmproj=/models/c.gguf -a /modelsx"
        )
        self.assertEqual(" ".join(words), "image -m /srv/m/a.gguf -md /d/b.gguf --mmproj=/srv/m/c.gguf -a /modelsx")

    def test_flags_of_the_container_are_not_the_engines(self):
        words, _ = self.words("docker run -m 8g -c 512 --device /dev/kfd --device=/dev/dri --gpus all image -c 4096")
        self.assertEqual(words, ["image", "-c", "4096"])
        self.assertEqual(self.words("docker run --rm")[0], [])

    def test_environment_of_the_container_is_added(self):
        _, found = self.words("docker run -e LLAMA_ARG_CTX_SIZE=2048 --env=B=c=d --env HOME --gpus all image", A="1")
        self.assertEqual(found, {"A": "1", "LLAMA_ARG_CTX_SIZE": "2048", "B": "c=d"})

    def test_container_sees_the_gpus_that_it_is_given(self):
        for flags, visible in (
            ("--gpus all", None),
            ("--device /dev/kfd", None),
            ("--gpus device=1", "1"),
            ('--gpus "device=0,1"', "0,1"),
            ("--device nvidia.com/gpu=1 --device nvidia.com/gpu=0", "1,0"),
            ("--device nvidia.com/gpu=all", None),
            ("--rm", ""),
        ):
            _, found = self.words(f"podman run {flags} image")
            self.assertEqual(found.get("CUDA_VISIBLE_DEVICES"), visible, flags)

    def test_model_in_a_container_is_estimated(self):
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        gguf_files.write(folder / "m.gguf", *gguf_files.llama())
        command = f"docker run --gpus device=1 -v {folder}:/models ghcr.io/ggml-org/llama.cpp:server -m /models/m.gguf"
        found = Estimator().estimate(command.split(), {}, GPUS, NO_CHOICE)
        self.assertEqual([share.device for share in found.need.options[0]], ["gpu1"])
        command = "docker run --gpus all vllm/vllm-openai:v0.33 --model org/name --gpu-memory-utilization 0.5"
        found = Estimator().estimate(command.split(), {}, GPUS, NO_CHOICE)
        self.assertEqual((found.need.source, found.need.options[0][0].size), ("flag", 12000))
