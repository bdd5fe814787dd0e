"""Configuration: text in, frozen records out. Pure; files and environment are handed in."""

from __future__ import annotations

from llamaswap.config.build import Facts, Loaded, load
from llamaswap.config.diff import Plan, diff
from llamaswap.config.documents import Source
from llamaswap.config.endpoints import Endpoint
from llamaswap.config.schema import (
    Capabilities,
    Compat,
    Config,
    Fifo,
    Filters,
    Group,
    Matrix,
    Model,
    Peer,
    Performance,
    Profile,
    Routing,
    Secret,
    Selector,
    Store,
    Timeouts,
    json_schema,
)

__all__ = [
    "Capabilities",
    "Compat",
    "Config",
    "Endpoint",
    "Facts",
    "Fifo",
    "Filters",
    "Group",
    "Loaded",
    "Matrix",
    "Model",
    "Peer",
    "Performance",
    "Plan",
    "Profile",
    "Routing",
    "Secret",
    "Selector",
    "Source",
    "Store",
    "Timeouts",
    "diff",
    "json_schema",
    "load",
]
