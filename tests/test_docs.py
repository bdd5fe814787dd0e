"""What the documentation says is true: its configurations load, its dashboard asks for meters that exist."""

import json
import re
from pathlib import Path

import yaml
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config import ConfigText, load
from llamaswap.observe.machine import SystemReading
from llamaswap.observe.machine_metrics import machine_families
from llamaswap.observe.metrics import Metrics

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

    def test_every_other_yaml_block_is_yaml(self):
        for page in sorted(DOCS.rglob("*.rst")):
            for text in blocks(page.read_text(encoding="utf-8")):
                yaml.safe_load(text)


class DashboardTests(SynchronousTestCase):
    def meters(self):
        """The names of all families, those of histograms as their buckets are called."""
        machine = machine_families(SystemReading((1.0,), 1, 1, 1, 1, 1, (0.0, 0.0, 0.0), ()), ())
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
        from llamaswap.cli.command_group import COMMANDS

        pages = [ROOT / "README.md", *DOCS.rglob("*.rst")]
        for page in pages:
            for name in re.findall(r"``llamaswap ([a-z]+)", page.read_text(encoding="utf-8")):
                self.assertIn(name, COMMANDS, page.name)
