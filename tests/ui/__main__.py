"""`python -m tests.ui [name ...]`: every browser check, or those whose name contains one of the words."""

from __future__ import annotations

import sys
import unittest

from tests.ui import defects, harness, looks, works


def main(words: list[str]) -> int:
    """0 when all went well, or nothing could be checked and it was said why."""
    reason = harness.why_not()
    if reason:
        print(f"the web interface was not checked in a browser: {reason}")
        return 0
    loader = unittest.TestLoader()
    if words:
        loader.testNamePatterns = [f"*{word}*" for word in words]
    suite = unittest.TestSuite(loader.loadTestsFromModule(module) for module in (looks, works, defects))
    result = unittest.TextTestRunner(verbosity=2).run(suite)
    failed = len(result.failures) + len(result.errors)
    print(f"{result.testsRun - failed - len(result.skipped)} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
