"""The committed build of the web interface: fresh, small, self-contained."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from pathlib import Path

from twisted.trial import unittest

import llamaswap

DIST = Path(llamaswap.__file__).parent / "web" / "ui_dist"
SOURCES = Path(__file__).parents[2] / "ui"
SKIPPED = frozenset({"node_modules", ".build", "tests"})
KIB = 1024


def digest(folder: Path) -> str:
    """What build.mjs writes: the hash of one line for each source file, sorted."""
    lines = []
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if path.is_file() and name.parts[0] not in SKIPPED:
            lines.append(f"{name.as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


class BuiltInterfaceTests(unittest.TestCase):
    """What a pip user gets."""

    def setUp(self):
        self.manifest = json.loads((DIST / "manifest.json").read_text(encoding="utf-8"))
        self.files = self.manifest["files"]

    def test_the_build_was_made_from_the_sources_beside_it(self):
        if not SOURCES.is_dir():
            raise unittest.SkipTest("the sources of the interface are not part of this installation")
        stale = "ui/ was changed without a build: run `npm ci --ignore-scripts && npm run build` there"
        self.assertEqual(self.manifest["sources"], digest(SOURCES), stale)

    def test_every_file_that_is_named_is_there_and_nothing_else(self):
        packed = {
            f"{name}{suffix}" for name, facts in self.files.items() if "gzip" in facts for suffix in (".gz", ".br")
        }
        there = {path.relative_to(DIST).as_posix() for path in DIST.rglob("*") if path.is_file()}
        self.assertEqual(there, {*self.files, *packed, "manifest.json"})

    def test_packed_files_hold_what_they_stand_for(self):
        for name, facts in self.files.items():
            if "gzip" in facts:
                self.assertEqual(gzip.decompress((DIST / f"{name}.gz").read_bytes()), (DIST / name).read_bytes(), name)

    def total(self, names, key):
        return sum(self.files[name][key] for name in names)

    def test_the_first_page_and_the_whole_stay_within_their_budgets(self):
        scripts = [name for name in self.files if name.endswith(".js")]
        self.assertLessEqual(self.total(self.manifest["initial"], "brotli"), 60 * KIB)
        self.assertLessEqual(self.total(self.manifest["initial"], "gzip"), 75 * KIB)
        self.assertLessEqual(self.files[self.manifest["style"]]["brotli"], 12 * KIB)
        self.assertLessEqual(self.total(scripts, "brotli"), 355 * KIB)

    def test_the_wheel_grows_by_less_than_a_megabyte_and_a_half(self):
        # A wheel packs plain files again, and packed ones not at all.
        grown = sum(
            facts.get("gzip", facts["bytes"]) + facts.get("gzip", 0) + facts.get("brotli", 0)
            for facts in self.files.values()
        )
        self.assertLessEqual(grown, 1536 * KIB)

    def test_the_sources_stay_small_enough_to_be_read(self):
        if not SOURCES.is_dir():
            raise unittest.SkipTest("the sources of the interface are not part of this installation")
        lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in (SOURCES / "src").rglob("*.ts*"))
        self.assertLessEqual(lines, 12_400)

    def test_licences_of_what_is_bundled_ship_with_it(self):
        text = (DIST / "third-party-licences.txt").read_text(encoding="utf-8")
        for name in ("preact", "uplot", "marked", "dompurify", "highlight.js", "katex", "@codemirror/view"):
            self.assertRegex(text, rf"(?m)^{re.escape(name)} \d")

    def test_the_page_runs_under_a_strict_policy(self):
        html = (DIST / "index.html").read_text(encoding="utf-8")
        self.assertNotRegex(html, r"<script(?![^>]*\bsrc=)")
        self.assertNotRegex(html, r"\son\w+=")
        self.assertNotRegex(html, r"""(?:src|href)=["'](?:https?:)?//""")
        self.assertNotIn("<base", html)

    def test_addresses_in_the_page_are_relative_so_that_a_path_prefix_is_no_matter(self):
        html = (DIST / "index.html").read_text(encoding="utf-8")
        for address in re.findall(r'(?:src|href)="([^"]+)"', html):
            self.assertTrue(address.startswith("./"), address)
            self.assertIn(address[2:], self.files)
