"""What llama.cpp will use, from the header of a model and the flags of its command."""

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config.schema.memory import NO_CHOICE, GpuChoice
from llamaswap.memory import gguf
from llamaswap.memory.llama_estimate import Layout, LlamaModel, estimate_llama, gpu_ways
from llamaswap.memory.llama_flags import settings_of
from llamaswap.memory.spread import MIB, mib
from llamaswap.scheduling.memory import RAM, Device, GpuShare
from tests.memory import gguf_files

NO_GPU = {RAM: Device(32000)}
ONE_GPU = {RAM: Device(32000), "gpu0": Device(24000)}
TWO_GPUS = {RAM: Device(32000), "gpu0": Device(24000), "gpu1": Device(12000)}
F16_LAYER = 2 * (2 * 1024 * 1024 + 2 * 1024 * 256 + 3 * 1024 * 4096) + 2 * 4 * 1024
EMBEDDING = 2 * 1024 * 512
CACHE_LAYER = 4096 * 2 * 256 * 2  # of a context of 4096 tokens


class LlamaTests(SynchronousTestCase):
    def model(self, **options):
        path = Path(self.mktemp())
        self.weights = gguf_files.write(path, *gguf_files.llama(**options))
        return gguf.read(path)

    def layout(self, flags, split=(), model=None):
        layout = Layout(settings_of(["llama-server", *flags.split()], {}), split, machine="x86_64")
        layout.add_model(model or self.model(layers=4))
        return layout

    def estimate(self, flags, devices, choice=NO_CHOICE, model=None, **environment):
        settings = settings_of(["llama-server", *flags.split()], environment)
        ways = gpu_ways(settings, devices, environment, choice)
        return estimate_llama(LlamaModel(model or self.model(layers=4)), settings, ways)


class PlacementTests(LlamaTests):
    def test_all_layers_are_on_the_gpu_and_the_token_table_is_not(self):
        layout = self.layout("-c 4096 -np 1", [1.0])
        self.assertEqual(layout.gpus[0].weights, 4 * F16_LAYER + EMBEDDING + 4 * 1024)
        self.assertEqual(layout.gpus[0].cache, 4 * CACHE_LAYER)
        self.assertEqual((layout.ram.weights, layout.ram.mapped), (0, EMBEDDING))

    def test_first_layers_stay_in_ram_if_fewer_are_offloaded(self):
        layout = self.layout("-c 4096 -np 1 -ngl 3", [1.0])  # the output counts as one
        self.assertEqual(layout.gpus[0].weights, 2 * F16_LAYER + EMBEDDING + 4 * 1024)
        self.assertEqual((layout.gpus[0].cache, layout.ram.cache), (2 * CACHE_LAYER, 2 * CACHE_LAYER))
        self.assertEqual(layout.ram.mapped, 2 * F16_LAYER + EMBEDDING)

    def test_mapped_weights_in_ram_are_file_cache_and_others_are_not(self):
        for flags, counted in (
            ("", False),
            ("--no-mmap", True),
            ("--mlock", True),
            ("-lm none", True),
            ("-lm mmap", False),
            ("-lm mmap+mlock", True),
        ):
            layout = self.layout(f"-c 4096 -np 1 {flags}")
            self.assertEqual((layout.ram.weights, layout.ram.mapped)[::-1][counted], self.weights, flags)

    def test_weights_that_the_cpu_rewrites_count_as_memory(self):
        model = self.model(layers=1, kind=gguf_files.Q4_K)
        table = gguf_files.size_of((1024, 512), gguf_files.Q4_K)
        norms = 3 * 4 * 1024
        layout = self.layout("-c 4096", model=model)
        self.assertEqual((layout.ram.weights, layout.ram.mapped), (self.weights - table - norms, table + norms))
        self.assertEqual(self.layout("-c 4096 --no-repack", model=model).ram.weights, 0)
        self.assertEqual(self.layout("-c 4096 -ngl 0", [1.0], model=model).ram.weights, 0)
        self.assertEqual(self.layout("-c 4096", model=self.model(kind=gguf_files.Q8_0)).ram.weights, 0)

    def test_layers_are_split_over_gpus_in_proportion(self):
        layout = self.layout("-c 4096 -np 1", [3.0, 1.0], self.model(layers=7))
        self.assertEqual([use.cache for use in layout.gpus], [6 * CACHE_LAYER, 1 * CACHE_LAYER])

    def test_cache_stays_in_ram_without_offload(self):
        layout = self.layout("-c 4096 -np 1 -nkvo", [1.0])
        self.assertEqual((layout.gpus[0].cache, layout.ram.cache), (0, 4 * CACHE_LAYER))

    def test_overridden_tensors_are_where_the_command_says(self):
        gate = 2 * 1024 * 4096
        whole = self.layout("-c 4096", [1.0]).gpus[0].weights
        for flags, moved in (
            (r"-ot blk\.0\.ffn_gate=CPU", gate),
            (r"-ot ffn_gate=CPU,ffn_up=CPU", 8 * gate),
            ("-ncffn 1", 3 * gate),
            ("-ot (=CPU", 0),
        ):
            self.assertEqual(self.layout(f"-c 4096 {flags}", [1.0]).gpus[0].weights, whole - moved, flags)
        layout = self.layout("-c 4096 -ts 1,1 -ot ffn_up=CUDA1", [1.0, 1.0])
        self.assertEqual(layout.gpus[0].weights, 3 * (F16_LAYER - gate))
        self.assertEqual(layout.gpus[1].weights, F16_LAYER + 3 * gate + EMBEDDING + 4 * 1024)

    def test_experts_stay_in_ram_if_the_command_says_so(self):
        metadata, tensors = gguf_files.llama(layers=2)
        for layer in range(2):
            tensors[f"blk.{layer}.ffn_up_exps.weight"] = ((1024, 1024, 8), gguf_files.F16)
        path = Path(self.mktemp())
        gguf_files.write(path, metadata, tensors)
        model, experts = gguf.read(path), 2 * 1024 * 1024 * 8
        whole = self.layout("-c 4096", [1.0], model).gpus[0].weights
        self.assertEqual(self.layout("-c 4096 -cmoe", [1.0], model).gpus[0].weights, whole - 2 * experts)
        self.assertEqual(self.layout("-c 4096 -ncmoe 1", [1.0], model).gpus[0].weights, whole - experts)

    def test_token_table_that_is_also_the_output_is_copied_to_the_gpu(self):
        metadata, tensors = gguf_files.llama(layers=1)
        del tensors["output.weight"]
        path = Path(self.mktemp())
        gguf_files.write(path, metadata, tensors)
        layout = self.layout("-c 4096", [1.0], gguf.read(path))
        self.assertEqual(layout.gpus[0].weights, F16_LAYER + EMBEDDING + 4 * 1024)
        self.assertEqual(layout.ram.mapped, EMBEDDING)

    def test_layers_for_further_tokens_are_not_loaded_unless_they_are_used(self):
        model = self.model(layers=3, nextn_predict_layers=1)
        self.assertEqual(self.layout("-c 4096 -np 1", [1.0], model).gpus[0].cache, 2 * CACHE_LAYER)
        self.assertEqual(self.layout("-c 4096 -np 1 --mtp", [1.0], model).gpus[0].cache, 3 * CACHE_LAYER)


class ContextTests(LlamaTests):
    def test_context_is_that_of_the_model_if_the_command_names_none(self):
        model = self.model(layers=1, context=8192)
        self.assertEqual(self.layout("", model=model).ram.cache, 2 * CACHE_LAYER)
        self.assertEqual(self.layout("-c 0", model=model).ram.cache, 2 * CACHE_LAYER)
        self.assertEqual(self.layout("-c 2048", model=model).ram.cache, CACHE_LAYER // 2)

    def test_types_of_the_cache_change_its_size(self):
        layout = self.layout("-c 4096 -np 1 -ctk q8_0 -ctv q4_0")
        self.assertEqual(layout.ram.cache, int(4 * CACHE_LAYER * (1.0625 + 0.5625) / 4))

    def test_working_memory_grows_with_what_is_computed_at_a_time(self):
        small, large = (self.layout(f"-c 4096 -np 1 -ub {ubatch}").ram.compute for ubatch in (128, 512))
        self.assertEqual(large - 4 * 512, 4 * (small - 4 * 512))
        without = self.layout("-c 4096 -np 1 -fa off").ram.compute
        self.assertEqual(without - large, 4 * 512 * 4096 * 32)

    def test_gpu_has_at_least_300_mib_of_working_memory_and_350_of_the_driver(self):
        use = self.layout("-c 4096 -np 1", [1.0]).gpus[0]
        self.assertEqual((use.compute, use.overhead), (300 * MIB, 350 * MIB))
        wide = self.layout("-c 4096 -np 1", [1.0], self.model(vocab=262144, width=1024)).gpus[0]
        self.assertEqual(wide.compute, 512 * (262144 * 4 + 1024 * 24) + 2 * 512 * 4096)


class NeedTests(LlamaTests):
    def test_machine_without_gpus_uses_ram_only(self):
        need = self.estimate("-c 4096 -np 1 --no-mmap", NO_GPU).need
        self.assertEqual((need.options, need.source, need.firm), (((),), "gguf", False))
        self.assertGreater(need.ram, mib(self.weights + 4 * CACHE_LAYER))

    def test_engine_takes_all_gpus_in_proportion_if_nothing_is_chosen(self):
        need = self.estimate("-c 4096 -np 1", TWO_GPUS, model=self.model(layers=29)).need
        self.assertEqual([share.device for share in need.options[0]], ["gpu0", "gpu1"])
        first, second = (share.size - 650 for share in need.options[0])
        self.assertApproximates(first / second, 20 / 9, 0.05)

    def test_model_with_gpus_auto_may_use_one_or_more(self):
        need = self.estimate("-c 4096 -np 1", TWO_GPUS, GpuChoice(auto=True)).need
        self.assertEqual([len(option) for option in need.options], [1, 2])
        self.assertEqual({share.device for option in need.options for share in option}, {""})
        self.assertLess(need.options[1][0].size, need.options[0][0].size)

    def test_chosen_gpus_are_used(self):
        need = self.estimate("-c 4096 -np 1", TWO_GPUS, GpuChoice(ids=(1,))).need
        self.assertEqual([share.device for share in need.options[0]], ["gpu1"])
        need = self.estimate("-c 4096 -np 1", TWO_GPUS, GpuChoice(count=2)).need
        self.assertEqual([share.device for share in need.options[0]], ["", ""])

    def test_command_may_name_its_gpus(self):
        for flags, environment, devices in (
            ("-dev CUDA1", {}, ["gpu1"]),
            ("-dev none", {}, []),
            ("-sm none -mg 1", {}, ["gpu1"]),
            ("", {"CUDA_VISIBLE_DEVICES": "1"}, ["gpu1"]),
            ("-dev CUDA0", {"CUDA_VISIBLE_DEVICES": "1,0"}, ["gpu1"]),
            ("", {"CUDA_VISIBLE_DEVICES": ""}, []),
            ("", {"ROCR_VISIBLE_DEVICES": "GPU-abc"}, ["gpu0", "gpu1"]),
            ("-ts 1,0", {}, ["gpu0", "gpu1"]),
        ):
            need = self.estimate(f"-c 4096 {flags}", TWO_GPUS, **environment).need
            self.assertEqual([share.device for share in need.options[0]], devices, flags or environment)

    def test_engine_that_fits_itself_needs_no_more_than_the_gpu_has(self):
        small = {RAM: Device(32000), "gpu0": Device(1700)}
        model = self.model(layers=20)
        found = self.estimate("-c 4096", small, model=model)
        self.assertEqual(found.need.options, ((GpuShare(676, "gpu0"),),))
        self.assertIn("fits itself", found.why)
        self.assertLess(found.need.ram, 400)
        self.assertGreater(self.estimate("-c 4096 --no-mmap", small, model=model).need.ram, 700)
        for flags in ("-ngl 99", "--fit off"):
            self.assertGreater(self.estimate(f"-c 4096 {flags}", small, model=model).need.options[0][0].size, 1200)

    def test_parts_of_the_preferred_way_add_up_to_the_need(self):
        for choice in (NO_CHOICE, GpuChoice(auto=True)):
            found = self.estimate("-c 4096 -np 1", ONE_GPU, choice)
            gpu = sum(part.size for part in found.parts if part.device != RAM)
            self.assertApproximates(gpu, found.need.options[0][0].size, 4)
            ram = sum(part.size for part in found.parts if part.device == RAM and "file cache" not in part.purpose)
            self.assertApproximates(ram, found.need.ram, 4)

    def test_draft_model_and_projector_are_added(self):
        model, draft = self.model(layers=4), self.model(layers=1)
        settings = settings_of(["llama-server", "-c", "4096", "-np", "1"], {})
        ways = gpu_ways(settings, ONE_GPU, {}, NO_CHOICE)
        plain = estimate_llama(LlamaModel(model), settings, ways).need.options[0][0].size
        both = estimate_llama(LlamaModel(model, draft, 100 * MIB), settings, ways).need.options[0][0].size
        added = mib(F16_LAYER + EMBEDDING + CACHE_LAYER) + 300 + 100 + 200
        self.assertApproximates(both - plain, added, 3)
        settings = settings_of(["llama-server", "-c", "4096", "-np", "1", "--no-mmproj-offload", "-ngld", "0"], {})
        moved = estimate_llama(LlamaModel(model, draft, 100 * MIB), settings, ways).need
        self.assertApproximates(moved.options[0][0].size - plain, 300, 3)
        self.assertGreater(moved.ram, 300)
