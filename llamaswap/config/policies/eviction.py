"""The interface of an eviction policy: which models must leave so that a model can be loaded.

A policy is pure. The scheduler asks it far more often than it acts on the answer, so a policy must not log or count.
`running` never contains the target, is sorted, and includes models that are starting or stopping.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Generic, Protocol, TypeVar

from attrs import frozen

from llamaswap.config.diagnostics import Diagnostics

S = TypeVar("S")


class Eviction(Protocol):
    """Names the running models that may not be up together with `target`, in the order of `running`."""

    def __call__(self, target: str, running: Sequence[str], /) -> tuple[str, ...]: ...

    def protects(self, model: str, target: str, /) -> bool:
        """Whether a load of `target` may not evict `model`, whatever memory is missing."""

    def explain(self, target: str, running: Sequence[str], /) -> str:
        """The rule behind the answer, in words for the log."""

    def conflict(self, models: Sequence[str], /) -> str:
        """Why the targets of a selector can never be up together, in words for an error; "" if they can."""


@frozen
class EvictionPolicy(Generic[S]):
    """A policy as `routing.router` selects it.

    `section` is the name of its settings there, `required` whether they must be given. `check` gets them with the ids
    of all models and their path for messages, reports their faults, and returns them complete. `build` makes the policy
    for checked settings and pinned models; with its third argument, memory decides wherever the settings say nothing.
    """

    section: str
    check: Callable[[S, Collection[str], str, Diagnostics], S]
    build: Callable[[S, frozenset[str], bool], Eviction]
    required: bool = True
