"""The interface of an eviction policy: which models must leave so that a model can be loaded.

A policy is a pure callable `(target, running) -> evict`. The scheduler asks it far more often than it acts on the
answer, so a policy must not log or count. `running` never contains the target, is sorted, and includes models that are
starting or stopping.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Eviction(Protocol):
    """Names the running models that may not be up together with `target`, in the order of `running`."""

    def __call__(self, target: str, running: Sequence[str], /) -> tuple[str, ...]: ...

    def explain(self, target: str, running: Sequence[str], /) -> str:
        """The rule behind the answer, in words for the log."""
