"""Eviction policies: who has to go so that a model may be loaded.

A policy is a pure callable `(target, running) -> evict`. It is asked far more often than it is obeyed, so it must not
log or count. `running` never holds the target, comes in ascending order, and includes models on their way up or down.
A policy that looks at memory can stand beside these two without anybody else noticing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from attrs import field, frozen

from llamaswap.config.matrix import Program

DEFAULT_GROUP = "(default)"


class Eviction(Protocol):
    """Names the running models that may not be up together with `target`, in the order of `running`."""

    def __call__(self, target: str, running: Sequence[str], /) -> tuple[str, ...]: ...

    def explain(self, target: str, running: Sequence[str], /) -> str:
        """The rule behind the answer, in words for the log."""


class GroupRules(Protocol):
    """A configured group."""

    @property
    def swap(self) -> bool: ...

    @property
    def exclusive(self) -> bool: ...

    @property
    def persistent(self) -> bool: ...

    @property
    def members(self) -> Sequence[str]: ...


@frozen
class _Group:
    name: str
    swap: bool = True
    exclusive: bool = True
    persistent: bool = False


_DEFAULT = _Group(DEFAULT_GROUP)


@frozen
class GroupEviction:
    """Groups: members of a swapping group replace one another, an exclusive group sends all but persistent ones away.

    What runs but stands in no group (it has left the configuration) counts as a member of the default group.
    """

    groups: Mapping[str, GroupRules]
    _of: Mapping[str, _Group] = field(init=False, repr=False)

    @_of.default
    def _members(self) -> Mapping[str, _Group]:
        return {
            member: _Group(name, group.swap, group.exclusive, group.persistent)
            for name, group in self.groups.items()
            for member in group.members
        }

    def __call__(self, target: str, running: Sequence[str], /) -> tuple[str, ...]:
        own = self._of.get(target, _DEFAULT)
        evict = []
        for model in running:
            other = self._of.get(model, _DEFAULT)
            if own.swap if other.name == own.name else (own.exclusive and not other.persistent):
                evict.append(model)
        return tuple(evict)

    def explain(self, target: str, running: Sequence[str], /) -> str:
        group = self._of.get(target, _DEFAULT)
        kinds = [word for word, said in (("swap", group.swap), ("exclusive", group.exclusive)) if said]
        return f"group {group.name}" + (f" ({', '.join(kinds)})" if kinds else "")


@frozen
class MatrixEviction:
    """The matrix: the cheapest combination of its sets that holds the target decides."""

    program: Program

    def __call__(self, target: str, running: Sequence[str], /) -> tuple[str, ...]:
        return self.program.solve(target, running).evict

    def explain(self, target: str, running: Sequence[str], /) -> str:
        solution = self.program.solve(target, running)
        if solution.set_name is None:
            return "matrix: in no set, runs alone"
        kept = ", ".join(solution.members)
        return f"matrix set {solution.set_name} ({solution.expression}) with {kept}, cost {solution.cost}"
