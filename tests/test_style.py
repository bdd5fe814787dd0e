"""The tests themselves, read from their sources: each asserts something, and uses only public names of the package."""

import ast
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

HERE = Path(__file__).parent
CHECKS = ("assert", "fail", "flush", "check", "expect")  # beginnings of names: trial's methods, and playwright's


def sources(folder):
    for path in sorted(folder.rglob("*.py")):
        yield path.relative_to(folder.parent).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def private(name):
    return name.startswith("_") and not name.startswith("__")


def private_names(tree):
    """The private names that a module defines: functions, classes, variables, fields and attributes."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            name = node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            name = node.attr
        else:
            continue
        if private(name):
            yield name


def uses_of(names, tree):
    """The lines that use one of these names of another object."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in names:
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("llamaswap"):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name in names)
        elif isinstance(node, ast.Call):
            texts = [one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str)]
            if called(node) in ("patch", "getattr", "setattr"):
                yield from ((node.lineno, text) for text in texts if text in names)


def called(call):
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def asserts(function, helpers):
    return any(
        isinstance(node, ast.Assert)
        or (isinstance(node, ast.Call) and (called(node).startswith(CHECKS) or called(node) in helpers))
        for node in ast.walk(function)
    )


class StyleTests(SynchronousTestCase):
    def test_no_test_uses_a_private_name_of_the_package(self):
        names = {name for _, tree in sources(HERE.parent / "llamaswap") for name in private_names(tree)}
        found = [f"{path}:{line} {text}" for path, tree in sources(HERE) for line, text in uses_of(names, tree)]
        self.assertEqual(found, [])

    def test_each_test_asserts_something(self):
        """Directly, or by a helper that does; `successResultOf` and its like are assertions too."""
        every = [(path, function) for path, tree in sources(HERE) for function in functions(tree)]
        helpers = {"successResultOf", "failureResultOf", "run_state_machine_as_test"}
        while True:
            more = {function.name for _, function in every if asserts(function, helpers)} - helpers
            if not more:
                break
            helpers |= more
        tests = [(path, function) for path, function in every if function.name.startswith("test_")]
        silent = [f"{path} {function.name}" for path, function in tests if not asserts(function, helpers)]
        self.assertEqual(silent, [])

    def test_silent_test_and_private_name_are_found(self):
        tree = ast.parse("def test_it(self):\n thing._secret = self._own\n self.patch(thing, '_secret', 1)")
        self.assertFalse(asserts(functions(tree)[0], set()))
        self.assertEqual([line for line, _ in uses_of({"_secret", "_own"}, tree)], [2, 3])
