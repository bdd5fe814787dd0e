"""What the kernel's files say of this machine."""

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.kernel_files import machine_memory


class MachineMemoryTests(SynchronousTestCase):
    def test_available_memory_is_a_part_of_the_total(self):
        total, available = machine_memory()
        self.assertGreater(total, available)
        self.assertGreater(available, 0)
