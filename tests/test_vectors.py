"""No vector is lost: each one listed is named by a test or has its reason, and each one named is listed."""

import ast
import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

TESTS = Path(__file__).parent
DIFFERENCES = TESTS.parent / "docs" / "upstream-differences.rst"
ROOMS = ("config", "http", "core")
# "core V21, V22" names two of one room; a word of prose in between does no harm.
WORD = re.compile(rf"\b({'|'.join(ROOMS)})\b|\b([TV]\d{{1,3}})\b")


def listed():
    """{"core V21": ("differs", "Crash")}."""
    found = {}
    for line in (TESTS / "vectors.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            room, number, rest = line.split(" ", 2)
            state, _, reason = rest.partition(": ")
            found[f"{room} {number}"] = (state, reason)
    return found


def named():
    """Every vector that a docstring of a test names."""
    found = set()
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_test = isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
            room = None
            for word in WORD.finditer((ast.get_docstring(node) or "") if is_test else ""):
                room = word[1] or room
                if word[2] and room is not None:
                    found.add(f"{room} {word[2]}")
    return found


def headings():
    """The words each difference begins with."""
    text = DIFFERENCES.read_text(encoding="utf-8")
    return {re.sub(r"[`.:*]", "", found[1]).strip() for found in re.finditer(r"^\*(?!\s)(.+?)\*", text, re.M)}


class VectorTests(SynchronousTestCase):
    def setUp(self):
        self.listed, self.named = listed(), named()

    def test_every_vector_that_is_held_is_named_by_a_test(self):
        claimed = {name for name, (state, _) in self.listed.items() if state in ("held", "differs")}
        self.assertEqual(sorted(claimed - self.named), [])

    def test_every_vector_that_a_test_names_is_listed(self):
        self.assertEqual(sorted(self.named - set(self.listed)), [])

    def test_every_difference_has_its_reason(self):
        reasons = {reason for state, reason in self.listed.values() if state in ("differs", "left out")}
        known = headings()
        missing = [reason for reason in reasons if not any(heading.startswith(reason) for heading in known)]
        self.assertEqual(sorted(missing), [])

    def test_past_vectors_have_a_successor(self):
        successors = {reason for state, reason in self.listed.values() if state == "past"}
        self.assertEqual(sorted(successors - self.named), [])

    def test_states_are_the_four_that_are_explained(self):
        self.assertEqual({state for state, _ in self.listed.values()} - {"held", "differs", "past", "left out"}, set())
