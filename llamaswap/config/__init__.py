"""Configuration: text in, frozen records out. Pure; files and environment are handed in."""

from __future__ import annotations

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
)

__all__ = [
    "Capabilities",
    "Compat",
    "Config",
    "Endpoint",
    "Fifo",
    "Filters",
    "Group",
    "Matrix",
    "Model",
    "Peer",
    "Performance",
    "Profile",
    "Routing",
    "Secret",
    "Selector",
    "Store",
    "Timeouts",
]
