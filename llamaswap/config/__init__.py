"""Configuration: text in, frozen records out. Pure; files and environment are handed in."""

from __future__ import annotations

from llamaswap.config.diff import ConfigDiff, diff
from llamaswap.config.endpoints import Endpoint
from llamaswap.config.loader import LoadedConfig, load
from llamaswap.config.schema import (
    Capabilities,
    Compat,
    Config,
    FifoSettings,
    Filters,
    Group,
    Matrix,
    Model,
    Peer,
    PerformanceSettings,
    Profile,
    Routing,
    Secret,
    Selector,
    StoreSettings,
    Timeouts,
    json_schema,
)
from llamaswap.config.yaml_tree import ConfigText

__all__ = [
    "Capabilities",
    "Compat",
    "Config",
    "ConfigDiff",
    "ConfigText",
    "Endpoint",
    "FifoSettings",
    "Filters",
    "Group",
    "LoadedConfig",
    "Matrix",
    "Model",
    "Peer",
    "PerformanceSettings",
    "Profile",
    "Routing",
    "Secret",
    "Selector",
    "StoreSettings",
    "Timeouts",
    "diff",
    "json_schema",
    "load",
]
