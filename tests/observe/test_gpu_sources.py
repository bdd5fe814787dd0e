"""The GPU sources of each system."""

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.observe.gpu_sources import usual


class SourceTests(SynchronousTestCase):
    def test_each_system_has_its_sources(self):
        self.assertEqual([source.name for source in usual("darwin")], ["ioreg"])
        self.assertEqual([source.name for source in usual("linux")], ["NVML", "nvidia-smi", "rocm-smi", "amdgpu"])
