"""The eviction policies by the name that `routing.router.use` gives them.

A new policy is a module with its settings, their check and its decisions, a row in `POLICIES`, and the field of
`RouterSettings` by which the configuration spells its settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from llamaswap.config.field_types import section, sections
from llamaswap.config.policies.eviction import EvictionPolicy
from llamaswap.config.policies.groups import GROUP_POLICY, Group
from llamaswap.config.policies.matrix import MATRIX_POLICY, Matrix

POLICIES: Mapping[str, EvictionPolicy[Any]] = {"group": GROUP_POLICY, "matrix": MATRIX_POLICY}
DEFAULT_POLICY = "group"


@frozen
class RouterSettings:
    """The settings of the policy in use; those of the others are None."""

    groups: Mapping[str, Group] | None = sections(Group, "Groups for `use: group`.", default=None)
    matrix: Matrix | None = section(Matrix, "The matrix for `use: matrix`.", default=None)
