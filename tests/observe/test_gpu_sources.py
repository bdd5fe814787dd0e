"""The GPU sources of each system."""

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.observe.gpu_sources import usual


class SourceTests(SynchronousTestCase):
    def test_each_system_has_its_sources(self):
        self.assertEqual([source.name for source in usual("darwin", 5.0)], ["ioreg"])
        self.assertEqual([source.name for source in usual("linux", 5.0)], ["NVML", "nvidia-smi", "rocm-smi", "amdgpu"])
