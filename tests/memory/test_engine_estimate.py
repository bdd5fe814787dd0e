"""What the engine prints of its memory, and where the program is that prints it."""

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.memory import gguf
from llamaswap.memory.engine_estimate import DeviceRow, estimate_from_rows, fit_program
from llamaswap.memory.llama_estimate import LlamaModel
from llamaswap.memory.llama_flags import settings_of
from llamaswap.memory.spread import MIB, Spread
from tests.memory import gguf_files


class ProgramTests(SynchronousTestCase):
    def setUp(self):
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        self.program("llama-server")

    def program(self, name):
        path = self.folder / name
        path.touch(0o755)
        return str(path)

    def test_program_is_found_beside_llama_server_only(self):
        server = str(self.folder / "llama-server")
        self.assertIsNone(fit_program([server], {}))
        found = self.program("llama-fit-params")
        self.assertEqual(fit_program([server, "-m", "x"], {}), found)
        self.assertEqual(fit_program(["llama-server"], {"PATH": str(self.folder)}), found)
        link = self.folder / "bin"
        link.mkdir()
        (link / "llama-server").symlink_to(server)
        self.assertEqual(fit_program([str(link / "llama-server")], {}), found)
        self.program("other")
        self.assertIsNone(fit_program([str(self.folder / "other")], {}))
        self.assertIsNone(fit_program([], {}))


class RowTests(SynchronousTestCase):
    ROWS = (DeviceRow("CUDA0", 4000, 500, 300), DeviceRow("CUDA1", 2000, 250, 400), DeviceRow("Host", 100, 10, 20))

    def estimate(self, *ways, projector=0, flags="--fit off"):
        path = Path(self.mktemp())
        gguf_files.write(path, *gguf_files.llama())
        files = LlamaModel(gguf.read(path), None, projector)
        return estimate_from_rows(self.ROWS, files, settings_of(["llama-server", *flags.split()], {}), ways).need

    def test_gpus_that_the_engine_saw_have_its_sizes(self):
        need = self.estimate(Spread(("gpu0", "gpu1"), (24000, 12000)), projector=50 * MIB)
        self.assertEqual([share.size for share in need.options[0]], [4800 + 350 + 250, 2650 + 350])
        self.assertEqual((need.source, need.firm), ("engine", False))

    def test_other_number_of_gpus_shares_the_sum(self):
        need = self.estimate(Spread(("",), (24000,)), Spread(("",) * 2, (24000, 12000)), Spread(("",) * 3, (1, 1, 1)))
        self.assertEqual([share.size for share in need.options[0]], [6750 + 400 + 350])
        self.assertEqual([share.size for share in need.options[2]], [2250 + 400 + 350] * 3)

    def test_ram_has_the_engines_cache_and_our_overhead_without_mapped_weights(self):
        need = self.estimate(Spread(("gpu0", "gpu1"), (24000, 12000)))
        self.assertEqual(need.ram, 10 + 20 + 16 + 150 + 1)
