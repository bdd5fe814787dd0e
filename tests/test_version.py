"""Which build this says it is, and what a release is made of."""

import gzip
import io
import re
import sys
import tarfile
import types
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import release
from llamaswap import version

ROOT = Path(__file__).parent.parent


class VersionTests(SynchronousTestCase):
    def built(self, **facts):
        made = types.ModuleType("llamaswap._build")
        made.__dict__.update(facts)
        self.patch(version, "version", lambda name: "1.2.3")
        before = sys.modules.get("llamaswap._build")
        sys.modules["llamaswap._build"] = made
        self.addCleanup(
            lambda: (
                sys.modules.__setitem__("llamaswap._build", before)
                if before is not None
                else sys.modules.pop("llamaswap._build")
            )
        )
        return version.describe()

    def test_version_commit_and_date_have_the_form_of_the_go_program(self):
        told = self.built(COMMIT="g0123abc", DATE="2026-01-02")
        self.assertEqual(told, "version: 1.2.3 (0123abc), built at 2026-01-02")

    def test_unknown_build_facts_have_placeholders(self):
        self.assertEqual(self.built(COMMIT=None, DATE="None"), "version: 1.2.3 (abcd1234), built at unknown")

    def test_a_bare_checkout_is_version_0(self):
        def missing(name):
            raise version.PackageNotFoundError

        self.patch(version, "version", missing)
        self.assertEqual(version.build().version, "0")


class ReleaseTests(SynchronousTestCase):
    def test_every_file_that_names_the_release_names_the_same(self):
        named = {
            "NEWS.rst": r"^(\d+\.\d+\.\d+) \(\d{4}-\d\d-\d\d\)$",
            "pyproject.toml": r'^fallback_version = "(.*)"$',
            "containers/Containerfile": "^ARG VERSION=(.*)$",
        }
        found = {}
        for name, pattern in named.items():
            match = re.search(pattern, (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
            assert match is not None, name
            found[name] = match[1]
        self.assertEqual(len(set(found.values())), 1, found)

    def sdist(self, mtime, order):
        path = Path(self.mktemp())
        with tarfile.open(path, "w:gz") as archive:
            for name in order:
                entry = tarfile.TarInfo(name)
                entry.size, entry.mtime, entry.uname = 3, mtime, f"user{mtime}"
                archive.addfile(entry, io.BytesIO(name.encode() * 3))
        release.settle_sdist(path, 1_700_000_000)
        return path.read_bytes()

    def test_an_sdist_does_not_depend_on_when_and_by_whom_it_was_made(self):
        one, two = self.sdist(1, "ab"), self.sdist(2, "ba")
        self.assertEqual(one, two)
        with tarfile.open(fileobj=io.BytesIO(gzip.decompress(one))) as archive:
            self.assertEqual([(entry.name, entry.mtime) for entry in archive], [("a", 1.7e9), ("b", 1.7e9)])
