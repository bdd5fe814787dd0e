"""Which ways to read GPUs are tried."""

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.observe.gpu_sources import usual


class TestSources(SynchronousTestCase):
    def test_each_system_has_its_own(self):
        self.assertEqual([source.name for source in usual("darwin", {}, 0, 5.0)], ["ioreg"])
        self.assertEqual(
            [source.name for source in usual("linux", {}, 0, 5.0)], ["LACT", "NVML", "nvidia-smi", "rocm-smi", "amdgpu"]
        )
