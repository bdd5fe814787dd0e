"""The eviction policies by the name that `routing.router.use` gives them. A new policy is a module and a row here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from llamaswap.config.schema import RouterSettings
from llamaswap.scheduling.eviction import Eviction
from llamaswap.scheduling.policies import groups, matrix

POLICIES: Mapping[str, Callable[[RouterSettings, frozenset[str]], Eviction | None]] = {
    "group": groups.build,
    "matrix": matrix.build,
}
