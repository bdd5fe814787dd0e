"""Configuration: text in, frozen records out. Pure; files and environment are handed in."""

from __future__ import annotations

from llamaswap.config.diff import ConfigDiff, diff
from llamaswap.config.endpoints import Endpoint
from llamaswap.config.jsonschema import json_schema
from llamaswap.config.loader import LoadedConfig, load
from llamaswap.config.policies.groups import Group
from llamaswap.config.policies.matrix import Matrix
from llamaswap.config.schema import Config, PerformanceSettings, StoreSettings
from llamaswap.config.schema.keys import ApiKey
from llamaswap.config.schema.model import Capabilities, Compat, Filters, Model, Timeouts
from llamaswap.config.schema.routing import FifoSettings, Peer, Profile, Routing, Selector
from llamaswap.config.secret import Secret
from llamaswap.config.yaml_tree import ConfigText

__all__ = [
    "ApiKey",
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
