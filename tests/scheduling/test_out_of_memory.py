"""Servers that ran out of memory, by their last words."""

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.scheduling.out_of_memory import ran_out_of_memory

LAST_WORDS = (
    "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 8192.00 MiB on device 0: cudaMalloc failed: out of memory",
    "llama_init_from_model: failed to initialize the context: failed to allocate compute pp buffers",
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
    "hipMalloc failed: hipErrorOutOfMemory",
    "ggml_vulkan: vk::Device::allocateMemory: ErrorOutOfDeviceMemory",
    "terminate called after throwing an instance of 'std::bad_alloc'",
    "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`",
    "error: Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)",
)


class OutOfMemoryTests(SynchronousTestCase):
    def test_engines_say_it_in_many_ways(self) -> None:
        for line in LAST_WORDS:
            with self.subTest(line):
                self.assertTrue(ran_out_of_memory(f"loading model\n{line}\nexiting", 1))

    def test_process_that_was_killed_most_likely_ran_out_of_memory(self) -> None:
        self.assertTrue(ran_out_of_memory("", -9))

    def test_other_failures_are_not_taken_for_it(self) -> None:
        for line in ("error: no such file: model.gguf", "bind: address already in use", "allocated 300 MiB", ""):
            self.assertFalse(ran_out_of_memory(line, 1), line)

    def test_engine_that_goes_on_with_less_did_not_run_out(self) -> None:
        self.assertFalse(ran_out_of_memory("failed to allocate buffer, retrying without pipeline parallelism", 1))
