"""Reading the commands of llama-server, koboldcpp and llama_cpp.server."""

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.memory.llama_flags import settings_of


def settings(command, **environment):
    return settings_of(command.split(), environment)


class LlamaServerTests(SynchronousTestCase):
    def test_spellings_of_a_flag_are_one_setting(self):
        for flag in ("-ngl 20", "--n-gpu-layers 20", "--gpu-layers 20", "--gpu-layers=20"):
            self.assertEqual(settings(f"llama-server {flag}").number("gpu_layers", -1), 20)

    def test_later_flag_replaces_an_earlier_one_and_overrides_are_collected(self):
        found = settings("llama-server -c 4096 -ot a=CPU -c 8192 --override-tensor b=CUDA0,c=CPU")
        self.assertEqual(found.number("context", 0), 8192)
        self.assertEqual(found.text("override"), "a=CPU,b=CUDA0,c=CPU")

    def test_environment_counts_if_no_flag_says_it(self):
        environment = {"LLAMA_ARG_CTX_SIZE": "2048", "LLAMA_ARG_NO_MMAP": "1", "LLAMA_ARG_UBATCH": "64"}
        found = settings("llama-server -ub 128", **environment)
        self.assertEqual((found.number("context", 0), found.number("ubatch", 0)), (2048, 128))
        self.assertFalse(found.on("mmap", True))

    def test_switches_turn_settings_on_and_off(self):
        found = settings("llama-server --no-mmap --mlock -nkvo -kvu --swa-full -cmoe")
        self.assertEqual([found.on(name, True) for name in ("mmap", "kv_offload")], [False, False])
        self.assertEqual([found.on(name, False) for name in ("mlock", "unified", "swa_full")], [True] * 3)
        self.assertEqual(found.text("cpu_moe"), "all")

    def test_flash_attention_may_have_a_value_or_stand_alone(self):
        self.assertEqual(settings("llama-server -fa off -c 5").text("flash"), "off")
        found = settings("llama-server -fa -c 5")
        self.assertEqual((found.text("flash"), found.number("context", 0)), ("on", 5))

    def test_number_of_layers_may_be_a_word(self):
        for word in ("all", "auto", "-1"):
            self.assertEqual(settings(f"llama-server -ngl {word}").layers("gpu_layers", 33), 33)
        self.assertEqual(settings("llama-server -ngl 99").layers("gpu_layers", 33), 33)
        self.assertEqual(settings("llama-server").layers("gpu_layers", 33), 33)

    def test_value_that_cannot_be_read_counts_as_unset(self):
        found = settings("llama-server -c many -ts a,b -ub")
        self.assertEqual((found.number("context", 7), found.ratios()), (7, []))
        self.assertEqual(found.number("ubatch", 512), 512)

    def test_ratios_of_a_split_are_numbers(self):
        self.assertEqual(settings("llama-server -ts 3,1").ratios(), [3.0, 1.0])


class OtherEngineTests(SynchronousTestCase):
    def test_koboldcpp_has_flags_and_defaults_of_its_own(self):
        found = settings("./koboldcpp-linux-x64 --model m.gguf --gpulayers 12 --quantkv 1 --tensor_split 7 3 --port 1")
        self.assertEqual((found.number("gpu_layers", 0), found.number("context", 0)), (12, 8192))
        self.assertEqual((found.text("key_type"), found.ratios()), ("q8_0", [7.0, 3.0]))
        self.assertFalse(found.on("mmap", True))

    def test_model_that_is_called_like_an_engine_does_not_change_it(self):
        self.assertEqual(settings("llama-server -m m.gguf -a koboldcpp").number("context", 0), 0)

    def test_llama_cpp_python_loads_no_layer_on_a_gpu_by_default(self):
        found = settings("python3 -m llama_cpp.server --model m.gguf --type_k 8 --use_mmap false")
        self.assertEqual((found.number("gpu_layers", -1), found.text("key_type")), (0, "q8_0"))
        self.assertEqual((found.text("model"), found.on("mmap", True)), ("m.gguf", False))
