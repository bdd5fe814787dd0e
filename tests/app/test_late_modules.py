"""Late imports come from the code that was installed before."""

import importlib
import subprocess
import sys
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.app.late_modules import LateModules, keep_late_modules

ROOT = Path(__file__).parent.parent.parent

# Prints what the admin site imports from elsewhere than the kept code, the standard library left out.
PROGRAM = """
import sys
from llamaswap.tap import Options, makeService
options = Options()
options.parseOptions(sys.argv[1:])
makeService(options)
from llamaswap.app.late_modules import LateModules, keep_late_modules
keep_late_modules()
before = set(sys.modules)
import llamaswap.app.admin_wiring
specs = {name: getattr(sys.modules[name], "__spec__", None) for name in set(sys.modules) - before}
kept = {name for name, spec in specs.items() if spec is not None and isinstance(spec.loader, LateModules)}
assert "llamaswap.web.app" in kept and "klein" in kept and "werkzeug" in kept, kept
files = {name: spec.origin for name, spec in specs.items() if spec is not None and spec.has_location}
print(*(name for name in files if name not in kept and name.partition(".")[0] not in sys.stdlib_module_names
        and files[name].endswith(".py")))
"""


class LateModulesTests(SynchronousTestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)
        self.package = self.root / "late_sample"
        self.write("__init__", "")
        self.write("inner/__init__", "from late_sample.inner.deep import VALUE")
        self.write("inner/deep", "VALUE = 'old'")
        self.write("other", "VALUE = 'old'")
        sys.path.insert(0, folder.name)
        self.addCleanup(sys.path.remove, folder.name)
        self.addCleanup(self.forget)
        self.late = LateModules()

    def write(self, name, text):
        path = self.package / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")

    def forget(self):
        for name in [name for name in sys.modules if name.partition(".")[0] == "late_sample"]:
            del sys.modules[name]
        sys.path_importer_cache.clear()

    def keep(self):
        count = self.late.keep(["late_sample", "late_sample_that_is_not_installed"])
        sys.meta_path.insert(0, self.late)
        self.addCleanup(sys.meta_path.remove, self.late)
        return count

    def test_package_that_was_upgraded_is_imported_as_it_was(self):
        self.assertEqual(self.keep(), 4)
        for name in ("__init__", "inner/__init__", "inner/deep"):
            self.write(name, "VALUE = 'new'")
        (self.package / "other.py").unlink()
        self.assertEqual(importlib.import_module("late_sample.inner").VALUE, "old")
        self.assertEqual(importlib.import_module("late_sample.other").VALUE, "old")

    def test_modules_know_their_files(self):
        self.keep()
        inner = importlib.import_module("late_sample.inner")
        self.assertEqual(inner.__file__, str(self.package / "inner" / "__init__.py"))
        self.assertEqual(list(inner.__path__), [str(self.package / "inner")])
        self.assertEqual(inner.deep.__package__, "late_sample.inner")

    def test_modules_that_are_imported_already_are_not_kept(self):
        importlib.import_module("late_sample.inner")
        self.assertEqual(self.keep(), 1)

    def test_code_of_an_imported_module_is_freed(self):
        self.keep()
        importlib.import_module("late_sample.other")
        self.assertIsNone(self.late.find_spec("late_sample.other", None))
        self.assertIsNotNone(self.late.find_spec("late_sample.inner", None))

    def test_module_whose_import_failed_is_imported_from_the_kept_code_again(self):
        self.write("other", "import late_sample\nVALUE = late_sample.ready")
        self.keep()
        self.write("other", "VALUE = 'new'")
        self.assertRaises(AttributeError, importlib.import_module, "late_sample.other")
        sys.modules["late_sample"].ready = "old"
        self.assertEqual(importlib.import_module("late_sample.other").VALUE, "old")

    def test_module_that_cannot_be_compiled_is_left_to_the_import_from_the_disk(self):
        self.write("other", "VALUE =")
        self.assertEqual(self.keep(), 3)
        self.write("other", "VALUE = 'mended'")
        self.assertEqual(importlib.import_module("late_sample.other").VALUE, "mended")

    def test_tests_and_commands_are_not_kept(self):
        self.write("test/__init__", "")
        self.write("cli/__init__", "")
        self.assertEqual(self.keep(), 4)

    def test_code_is_kept_once_for_each_process(self):
        sys.meta_path.insert(0, self.late)
        self.addCleanup(sys.meta_path.remove, self.late)
        before = list(sys.meta_path)
        keep_late_modules()
        self.assertEqual(sys.meta_path, before)


class AdminSiteTests(SynchronousTestCase):
    def test_all_that_the_admin_site_imports_is_kept(self):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, "--demo", "--listen", "localhost:0"],
            capture_output=True,
            cwd=ROOT,
            timeout=60,
        )
        self.assertEqual((done.returncode, done.stderr.decode(), done.stdout.decode().split()), (0, "", []))
