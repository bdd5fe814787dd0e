"""The documentation is true: its configurations load, and the metrics, commands, files and tests it names exist."""

import json
import re
from pathlib import Path

import yaml
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config import ConfigText, load
from llamaswap.observe.machine import SystemReading, machine_families
from llamaswap.observe.metrics import Metrics
from tests.test_architecture import LAYER

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def blocks(text):
    """The YAML code blocks of a page."""
    for found in re.finditer(r"^\.\. code-block:: yaml\n\n((?:   .*\n|\n)+)", text, re.MULTILINE):
        yield "\n".join(line[3:] for line in found[1].split("\n"))


class ConfigurationTests(SynchronousTestCase):
    def test_every_configuration_in_it_loads_without_a_warning(self):
        tried = 0
        for page in sorted(DOCS.rglob("*.rst")):
            for text in blocks(page.read_text(encoding="utf-8")):
                if "models" in (yaml.safe_load(text) or {}):
                    loaded = load([ConfigText(page.name, text)], {"FAR_KEY": "x"})
                    self.assertEqual(loaded.warnings, (), page.name)
                    tried += 1
        self.assertGreater(tried, 5)


class DashboardTests(SynchronousTestCase):
    def meters(self):
        """The names of all families, those of histograms as their buckets are called."""
        machine = machine_families(SystemReading((1.0,)), ())
        for family in (*Metrics().families, *machine):
            yield f"{family.name}_bucket" if family.kind == "histogram" else family.name

    def test_its_panels_ask_for_meters_that_exist(self):
        dashboard = json.loads((DOCS / "assets" / "grafana-dashboard.json").read_text(encoding="utf-8"))
        targets = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
        asked = {name for text in targets for name in re.findall(r"llamaswap_\w+", text)}
        self.assertGreater(len(asked), 10)
        self.assertEqual(asked - set(self.meters()), set())


class PageTests(SynchronousTestCase):
    def test_the_readme_names_only_commands_that_exist(self):
        from llamaswap.cli.command_group import ALIASES, COMMANDS

        pages = [ROOT / "README.md", *DOCS.rglob("*.rst")]
        for page in pages:
            for name in re.findall(r"``llamaswap ([a-z]+)", page.read_text(encoding="utf-8")):
                self.assertIn(name, {*COMMANDS, *ALIASES}, page.name)

    def test_the_index_lists_each_page_once(self):
        index = (DOCS / "index.rst").read_text(encoding="utf-8")
        listed = [line.strip() for line in index.split("\n") if re.match(r"^   [a-z/-]+$", line)]
        pages = {page.stem for page in DOCS.glob("*.rst")} - {"index"}
        self.assertEqual(sorted(listed), sorted(pages | {"recipes/index", "clients/index"}))

    def test_files_and_test_modules_that_a_page_names_exist(self):
        named = 0
        for page in [ROOT / "README.md", *DOCS.rglob("*.rst")]:
            text = page.read_text(encoding="utf-8")
            paths = re.findall(r"``((?:llamaswap|tests|docs|config|containers|ui)/[\w/.-]+\.\w+)``", text)
            modules = re.findall(r"twisted\.trial\s+(tests[.\w]*\w)", text)
            links = re.findall(r"\]\(([\w/.-]+)\)", text) if page.suffix == ".md" else []
            for name in (*paths, *links, *(module.replace(".", "/") for module in modules)):
                found = (ROOT / name).exists() or (ROOT / f"{name}.py").exists()
                placeholder = re.search(r"NAME|MODULE", name)
                self.assertTrue(found or placeholder, f"{page.name} names {name}")
                named += 1
        self.assertGreater(named, 40)

    def test_contributing_lists_each_package_with_its_layer(self):
        rows = re.findall(
            r"^([\d.]+) +``(\w+)``", (DOCS / "contributing.rst").read_text(encoding="utf-8"), re.MULTILINE
        )
        listed = {name: float(layer) for layer, name in rows}
        paths = (ROOT / "llamaswap").glob("[a-z]*")
        names = {path.stem for path in paths if path.suffix == ".py" or (path / "__init__.py").exists()}
        self.assertEqual(listed, {name: LAYER[name] for name in names})
