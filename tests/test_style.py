"""The tests, read from their sources: each has a subject, asserts something, and uses public names only."""

import ast
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

HERE = Path(__file__).parent
CHECKS = ("assert", "fail", "flush", "check", "expect")  # beginnings of names: trial's methods, and playwright's
# A test's name begins with what is tested, as in "test_crashed_model_is_restarted_once".
NO_SUBJECTS = ("it", "one_that", "they", "those", "what", "who", "whoever", "nobody", "somebody", "there", "where")


def sources(folder):
    paths = sorted(folder.rglob("*.py"))
    return [(path.relative_to(folder.parent).as_posix(), ast.parse(path.read_text(encoding="utf-8"))) for path in paths]


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


def names_called(function):
    """The names of the functions that it calls; `assert` for the statement."""
    nodes = list(ast.walk(function))
    calls = {called(node) for node in nodes if isinstance(node, ast.Call)}
    return calls | ({"assert"} if any(isinstance(node, ast.Assert) for node in nodes) else set())


def asserts(calls, helpers=frozenset()):
    return bool(calls & helpers) or any(name.startswith(CHECKS) for name in calls)


class StyleTests(SynchronousTestCase):
    def test_no_test_uses_a_private_name_of_the_package(self):
        names = {name for _, tree in sources(HERE.parent / "llamaswap") for name in private_names(tree)}
        found = [f"{path}:{line} {text}" for path, tree in sources(HERE) for line, text in uses_of(names, tree)]
        self.assertEqual(found, [])

    def test_each_test_asserts_something(self):
        """Directly, or by a helper that does; `successResultOf` and its like are assertions too."""
        every = [(path, one.name, names_called(one)) for path, tree in sources(HERE) for one in functions(tree)]
        helpers, found = set(), {"successResultOf", "failureResultOf", "run_state_machine_as_test"}
        while found > helpers:
            helpers = found
            found = helpers | {name for _, name, calls in every if asserts(calls, helpers)}
        silent = [f"{path} {name}" for path, name, _ in every if name.startswith("test_") and name not in helpers]
        self.assertEqual(silent, [])

    def test_each_test_name_has_a_subject(self):
        found = [
            f"{path} {function.name}"
            for path, tree in sources(HERE)
            for function in functions(tree)
            if function.name.startswith(tuple(f"test_{word}_" for word in NO_SUBJECTS))
        ]
        self.assertEqual(found, [])

    def test_silent_test_and_private_name_are_found(self):
        tree = ast.parse("def test_it(self):\n thing._secret = self._own\n self.patch(thing, '_secret', 1)")
        self.assertFalse(asserts(names_called(functions(tree)[0])))
        self.assertEqual([line for line, _ in uses_of({"_secret", "_own"}, tree)], [2, 3])
