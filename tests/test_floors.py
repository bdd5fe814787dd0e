"""Who may import whom: the floors of the house, read from the sources."""

import ast
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

PACKAGE = Path(__file__).parent.parent / "llamaswap"

FLOOR = {
    "errors": 0,
    "bus": 0,
    "version": 0,
    "_build": 0,
    "config": 0,
    "schedule": 0,
    "wire": 0,
    "supervise": 1,
    "relay": 1,
    "notify": 1,
    "private_files": 1,
    "observe": 1,
    "discover": 1,
    "router": 2,
    "leases": 2,
    "supervised": 2,
    "peers": 2,
    "reload": 2,
    "hooks": 2,
    "slots": 2,
    "sources": 2,
    "web": 3,
    "service": 4,
    "settings": 4,
    "console": 4,
    "surface": 4,
    "listening": 4,
    "tap": 4,
    "spare": 4,
    "watchdog": 2,
    "cli": 4,
    "demo": 4,
    "upgrade": 4,
    "handover": 4,
    "commands": 4,
    "wol": 4,
    "__main__": 4,
}

# What each floor may use from outside, beside the standard library (and what it must not use from inside that).
OUTSIDE = {
    0: {"attrs"},
    1: {"attrs", "twisted", "zope", "automat", "httptools", "psutil", "prometheus_client", "zstandard", "pynvml"},
    2: {"attrs", "twisted", "zope", "treq"},
    3: {"attrs", "twisted", "zope", "klein", "werkzeug", "treq"},
    4: {"attrs", "twisted", "zope", "treq", "OpenSSL"},
}
EXTRA = {
    "config/documents": {"yaml"},
    "config/patterns": {"re2"},
    "commands/effective": {"yaml"},
    "commands/pull": {"huggingface_hub"},
    "commands/resume": {"huggingface_hub"},
}
IMPURE = {"time", "random", "os", "subprocess", "socket", "threading", "asyncio", "datetime"}
# Reads dates that stand in a text; asks for no time of its own.
PURE_DATES = {"config/scalars"}
# Rooms of floor 0 that others of floor 0 may use.
SIDEWAYS = {"errors", "bus", "version", "wire", "schedule", "config", "private_files"}


def modules():
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
                raise AssertionError("relative imports hide the floor")
            for alias in node.names:
                yield f"{node.module}.{alias.name}", id(node) in for_types


def room(name):
    return name.split("/")[0]


class FloorTests(SynchronousTestCase):
    def test_every_room_has_a_floor(self):
        self.assertEqual({room(name) for name, _ in modules()} - set(FLOOR), set())

    def test_nobody_imports_upwards_or_sideways(self):
        wrong = []
        for name, tree in modules():
            here = room(name)
            for target, _ in imports(tree):
                parts = target.split(".")
                if parts[0] != "llamaswap" or len(parts) < 2 or parts[1] == here:
                    continue
                there = parts[1]
                same_floor = FLOOR.get(there) == FLOOR[here]
                allowed = FLOOR.get(there, 0) < FLOOR[here] or (same_floor and (FLOOR[here] >= 2 or there in SIDEWAYS))
                if here == "web" and there in ("supervise", "schedule"):
                    allowed = False
                if not allowed:
                    wrong.append(f"{name} imports {target}")
        self.assertEqual(wrong, [])

    def test_each_floor_uses_only_its_libraries(self):
        wrong = []
        for name, tree in modules():
            if room(name) == "demo":
                continue
            floor = FLOOR[room(name)]
            allowed = OUTSIDE[floor] | EXTRA.get(name, set())
            if room(name) == "commands":
                allowed = allowed | {"click", "rich", "psutil"}
            for target, for_types in imports(tree):
                top = target.split(".")[0]
                if top == "llamaswap" or for_types:
                    continue
                if top not in sys.stdlib_module_names and top not in allowed:
                    wrong.append(f"{name} imports {target}")
                if floor == 0 and top in IMPURE and name not in PURE_DATES:
                    wrong.append(f"{name} imports {target}: a clock, chance or the machine is a parameter there")
        self.assertEqual(wrong, [])

    def test_the_global_reactor_is_imported_only_where_the_service_is_made(self):
        wrong = [
            f"{name} imports {target}"
            for name, tree in modules()
            for target, _ in imports(tree)
            if target == "twisted.internet.reactor" and name not in ("tap", "cli")
        ]
        self.assertEqual(wrong, [])

    def test_the_plugin_file_imports_nothing_of_ours(self):
        plugin = PACKAGE.parent / "twisted" / "plugins" / "llamaswap_plugin.py"
        names = [target for target, _ in imports(ast.parse(plugin.read_text(encoding="utf-8")))]
        self.assertEqual(names, ["twisted.application.service.ServiceMaker"])

    def test_importing_the_router_installs_no_reactor(self):
        code = (
            "import sys, llamaswap.router, llamaswap.reload, llamaswap.supervise.supervisor, llamaswap.relay.relay;"
            "sys.exit('twisted.internet.reactor' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=PACKAGE.parent, timeout=60)
        self.assertEqual((done.returncode, done.stderr.decode()), (0, ""))
