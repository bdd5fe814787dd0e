"""Imports that happen late come from the code that was installed when the service started.

What a start does not need is imported when it is first used: the admin site, its libraries, estimates of memory. By
then another version may be installed, whose modules do not fit those in memory. So the code of these modules is read
right after the start and kept compressed, which takes a tenth of what the modules would.
"""

from __future__ import annotations

import marshal
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from importlib.abc import InspectLoader, Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec, spec_from_file_location
from pkgutil import iter_modules
from types import ModuleType

from attrs import define, field
from twisted.logger import Logger

# The service itself, and what the admin site imports.
PACKAGES = (
    "llamaswap",
    "hyperlink",
    "idna",
    "klein",
    "markupsafe",
    "twisted.copyright",
    "twisted.cred",
    "twisted.persisted",
    "twisted.python",
    "twisted.spread",
    "twisted.web",
    "werkzeug",
)
NOT_IMPORTED = frozenset(("cli", "test", "tests"))  # subpackages that a service has no use for

log = Logger("llamaswap.app.service")


@define(eq=False)
class LateModules(MetaPathFinder, Loader):
    """Finds and loads modules whose code it keeps; it is a member of `sys.meta_path`."""

    _kept: dict[str, tuple[str, list[str] | None, bytes]] = field(factory=dict)  # file, places of submodules, code

    def keep(self, packages: Iterable[str]) -> int:
        """Keep the code of all modules of these packages that are not imported yet; returns how many there are. It
        reads them from the disk, so call it on a thread. What is not installed or cannot be read is left out."""
        for package in packages:
            spec = find_spec(package)
            for found in _modules(spec) if spec is not None else ():
                self._keep(found)
        return len(self._kept)

    def _keep(self, spec: ModuleSpec) -> None:
        if spec.name in sys.modules or spec.origin is None or not isinstance(spec.loader, InspectLoader):
            return
        try:
            code = spec.loader.get_code(spec.name)
        except (ImportError, OSError, SyntaxError):
            return
        if code is not None:  # an extension module has none
            packed = zlib.compress(marshal.dumps(code))
            self._kept[spec.name] = spec.origin, spec.submodule_search_locations, packed

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self._kept:
            return None
        file, places, _ = self._kept[fullname]
        return spec_from_file_location(fullname, file, loader=self, submodule_search_locations=places)

    def exec_module(self, module: ModuleType) -> None:
        code = self._kept[module.__name__][2]
        exec(marshal.loads(zlib.decompress(code)), module.__dict__)
        del self._kept[module.__name__]  # only now: an import that failed is tried again


def _modules(spec: ModuleSpec) -> Iterator[ModuleSpec]:
    """The module and, if it is a package, all its modules, without importing any."""
    yield spec
    places = spec.submodule_search_locations
    for _, name, is_package in iter_modules(places) if places is not None else ():
        left_out = is_package and name in NOT_IMPORTED
        found = None if left_out else PathFinder.find_spec(f"{spec.name}.{name}", places)
        if found is not None:
            yield from _modules(found)


def keep_late_modules() -> None:
    """Have the late imports of this process come from the code that is installed now. Called again, as tests with
    several services do, it does nothing."""
    if any(isinstance(finder, LateModules) for finder in sys.meta_path):
        return
    late = LateModules()
    count = late.keep(PACKAGES)
    sys.meta_path.insert(0, late)
    log.debug("kept the code of {count} modules for later imports", count=count)
