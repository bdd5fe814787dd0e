"""The layers of the package, read from its sources: who may import whom, and from outside what."""

import ast
import re
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

PACKAGE = Path(__file__).parent.parent / "llamaswap"

# A package imports from layers below its own; 0.5 is a module that several packages of layer 1 use. Packages of the
# layers 0, 2 and 4 may also import from each other, as long as no circle results; packages of layer 1 and 3 may not.
LAYER = {
    "config": 0,
    "scheduling": 0,
    "wire": 0,
    "errors": 0,
    "early_signals": 0,
    "events": 0,
    "version": 0,
    "_build": 0,
    "http_client": 0.5,
    "hub_cache": 0.5,
    "kernel_files": 0.5,
    "state_folder": 0.5,
    "nvml": 0.5,
    "sqlite_file": 0.5,
    "fake_boards": 0.5,
    "servers": 1,
    "proxy": 1,
    "observe": 1,
    "memory": 1,
    "discover": 1,
    "routing": 2,
    "liveness": 2,
    "upgrade": 2,
    "cluster": 2,
    "web": 3,
    "app": 4,
    "cli": 4,
    "tap": 4,
    "demo": 4,
    "__main__": 4,
}
SHARED_LAYERS = {0, 2, 4}

# Imports that break the rule above, each with its reason. The table only shrinks.
VIOLATIONS: dict[tuple[str, str], str] = {}

# What each layer imports from outside, besides the standard library.
LIBRARIES = {
    0: {"attrs"},
    0.5: {"attrs", "twisted", "zope", "treq"},
    1: {"attrs", "twisted", "zope", "automat", "httptools", "psutil", "zstandard"},
    2: {"attrs", "twisted", "zope", "treq"},
    3: {"attrs", "twisted", "zope", "klein", "werkzeug", "treq"},
    4: {"attrs", "twisted", "zope", "treq", "OpenSSL"},
}
MORE_LIBRARIES = {
    "config/yaml_tree": {"yaml"},
    "kernel_files": {"psutil"},
    "nvml": {"pynvml"},
    "config/patterns": {"re2"},
    "config/reload": {"twisted"},
    "proxy/listen": {"OpenSSL"},
    "wire/content_coding": {"zstandard"},
    "config/text_edit": {"yaml"},
    "cluster/ray_driver": {"ray"},
    "cli/effective": {"yaml"},
    "cli/pull": {"huggingface_hub"},
    "cli/hf_download": {"huggingface_hub"},
}
CLI_LIBRARIES = {"click", "rich", "psutil"}
IMPURE = {"time", "random", "os", "subprocess", "socket", "threading", "asyncio", "datetime"}
# Modules of layer 0 that need one of those, and why.
IMPURE_MODULES = {
    "config/schema/keys": "parses dates that stand in a text; reads no clock",
    "config/scalars": "parses dates that stand in a text; reads no clock",
    "config/files": "finds and reads the configuration files",
    "config/private_files": "checks who owns a file before it is used, for every layer",
}


def modules():
    """(path below the package without its suffix, syntax tree) of every module."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).with_suffix("").as_posix()
        if name != "__init__" and not name.startswith("web/ui_dist"):
            yield name.removesuffix("/__init__"), ast.parse(path.read_text(encoding="utf-8"))


def imports(tree):
    """(dotted name, whether it is only for types) of each import, those inside functions included."""
    for_types = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for_types.update(id(inner) for inner in ast.walk(node))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in for_types
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise AssertionError("a relative import hides the package it names")
            for alias in node.names:
                yield f"{node.module}.{alias.name}", id(node) in for_types


def package_of(name):
    return name.split("/")[0]


def circles(graph):
    """Strongly connected components with more than one member, as sorted lists."""
    found, stack, waiting, numbers, low = [], [], set(), {}, {}

    def visit(start):
        work = [(start, iter(sorted(graph[start])))]
        numbers[start] = low[start] = len(numbers)
        stack.append(start)
        waiting.add(start)
        while work:
            at, targets = work[-1]
            for target in targets:
                if target not in numbers:
                    numbers[target] = low[target] = len(numbers)
                    stack.append(target)
                    waiting.add(target)
                    work.append((target, iter(sorted(graph[target]))))
                    break
                if target in waiting:
                    low[at] = min(low[at], numbers[target])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[at])
                if low[at] == numbers[at]:
                    members = []
                    while not members or members[-1] != at:
                        members.append(stack.pop())
                        waiting.discard(members[-1])
                    if len(members) > 1:
                        found.append(sorted(members))

    for node in sorted(graph):
        if node not in numbers:
            visit(node)
    return found


class LayerTests(SynchronousTestCase):
    def test_every_package_has_a_layer(self):
        self.assertEqual({package_of(name) for name, _ in modules()} - set(LAYER), set())

    def test_no_module_imports_from_a_layer_above_or_beside_its_own(self):
        wrong = set()
        for name, tree in modules():
            here = package_of(name)
            for target, _ in imports(tree):
                parts = target.split(".")
                if parts[0] != "llamaswap" or len(parts) < 2 or parts[1] == here:
                    continue
                mine, other = LAYER[here], LAYER.get(parts[1], 0)
                if other > mine or (other == mine and mine not in SHARED_LAYERS):
                    wrong.add((name, ".".join(parts[1:3])))
        self.assertEqual(sorted(wrong - set(VIOLATIONS)), [])
        self.assertEqual(sorted(set(VIOLATIONS) - wrong), [], "these are mended: take them out of VIOLATIONS")

    def test_the_web_does_not_import_the_scheduler_or_the_supervisors(self):
        allowed = "llamaswap.servers.supervisor_protocol."
        wrong = [
            f"{name} imports {target}"
            for name, tree in modules()
            for target, _ in imports(tree)
            if package_of(name) == "web"
            and target.startswith(("llamaswap.scheduling", "llamaswap.servers"))
            and not target.startswith(allowed)
        ]
        self.assertEqual(wrong, [])

    def test_each_layer_imports_only_its_libraries(self):
        wrong = []
        for name, tree in modules():
            package = package_of(name)
            if package == "demo":
                continue
            layer = LAYER[package]
            allowed = LIBRARIES[layer] | MORE_LIBRARIES.get(name, set())
            if package == "cli":
                allowed = allowed | CLI_LIBRARIES
            for target, for_types in imports(tree):
                top = target.split(".")[0]
                if top == "llamaswap" or for_types:
                    continue
                if top not in sys.stdlib_module_names and top not in allowed:
                    wrong.append(f"{name} imports {target}")
                if layer == 0 and top in IMPURE and name not in IMPURE_MODULES:
                    wrong.append(f"{name} imports {target}: a clock, chance or the machine is a parameter there")
        self.assertEqual(wrong, [])

    def test_the_global_reactor_is_imported_only_where_the_service_is_made(self):
        wrong = [
            f"{name} imports {target}"
            for name, tree in modules()
            for target, _ in imports(tree)
            if target == "twisted.internet.reactor" and name not in ("tap", "cli/flags", "cluster/ray_driver")
        ]
        self.assertEqual(wrong, [])

    def test_the_plugin_file_imports_nothing_of_the_package(self):
        plugin = PACKAGE.parent / "twisted" / "plugins" / "llamaswap_plugin.py"
        names = [target for target, _ in imports(ast.parse(plugin.read_text(encoding="utf-8")))]
        self.assertEqual(names, ["twisted.application.service.ServiceMaker"])

    def test_importing_the_router_installs_no_reactor(self):
        code = (
            "import sys, llamaswap.routing.router, llamaswap.config.reload, llamaswap.servers.supervisor;"
            "import llamaswap.proxy.forward;"
            "sys.exit('twisted.internet.reactor' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=PACKAGE.parent, timeout=60)
        self.assertEqual((done.returncode, done.stderr.decode()), (0, ""))

    def test_service_on_one_host_imports_nothing_for_several(self):
        code = (
            "import sys, llamaswap.tap as tap; options = tap.Options(); options.parseOptions(['--demo']);"
            "tap.makeService(options);"
            "sys.exit(any(name.startswith(('llamaswap.cluster', 'ray.', 'twisted.protocols.amp')) or name == 'ray'"
            " for name in sys.modules))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=PACKAGE.parent, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr.decode())


class CircleTests(SynchronousTestCase):
    def graph(self, node):
        """What `node(name)` of each module imports, imports for types left out."""
        names = {name for name, _ in modules()}
        graph = {node(name): set() for name in names}
        for name, tree in modules():
            for target, for_types in imports(tree):
                parts = target.split(".")
                if parts[0] != "llamaswap" or for_types:
                    continue
                known = ["/".join(parts[1:length]) for length in range(len(parts), 1, -1)]
                found = next((one for one in known if one in names), None)
                if found is not None and node(found) != node(name):
                    graph[node(name)].add(node(found))
        return graph

    def test_no_modules_import_each_other_in_a_circle(self):
        self.assertEqual(circles(self.graph(lambda name: name)), [])

    def test_no_packages_import_each_other_in_a_circle(self):
        self.assertEqual(circles(self.graph(package_of)), [])

    def test_a_circle_is_found(self):
        graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}
        self.assertEqual(circles(graph), [["b", "c"]])


class ClassNameTests(SynchronousTestCase):
    def test_each_class_name_is_defined_once(self):
        where = {}
        for name, tree in modules():
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    where.setdefault(node.name, []).append(name)
        self.assertEqual({name: places for name, places in where.items() if len(places) > 1}, {})


class SizeTests(SynchronousTestCase):
    def test_no_file_is_over_400_lines_without_a_reason_in_its_docstring(self):
        """The reason is a sentence of the module's docstring with the words "over 400 lines"."""
        long = [
            name
            for name, tree in modules()
            if max((node.end_lineno for node in tree.body), default=0) > 400
            and "over 400 lines" not in (ast.get_docstring(tree) or "")
        ]
        self.assertEqual(long, [])

    def test_no_function_is_over_50_lines(self):
        long = [
            f"{name} {node.name}"
            for name, tree in modules()
            for node in ast.walk(tree)
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno - node.lineno >= 50
        ]
        self.assertEqual(long, [])

    def test_any_is_rare(self):
        """Of 150 uses; `docs/contributing.rst` has the command that counts them."""
        uses = sum(len(re.findall(r"\bAny\b", path.read_text(encoding="utf-8"))) for path in PACKAGE.rglob("*.py"))
        self.assertLess(uses, 150)
