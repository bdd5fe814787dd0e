"""The matrix policy (`use: matrix`): expressions over models, with costs, say which may be loaded together."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import evolve, frozen

from llamaswap.config.matrix import Program
from llamaswap.config.schema import RouterSettings

PINNED_COST = 1_000_000
"""The cost of evicting a pinned model: any combination that keeps it is cheaper."""


@frozen
class MatrixEviction:
    """The cheapest combination of the matrix sets that contains the target decides."""

    program: Program

    def __call__(self, target: str, running: Sequence[str], /) -> tuple[str, ...]:
        return self.program.solve(target, running).evict

    def explain(self, target: str, running: Sequence[str], /) -> str:
        solution = self.program.solve(target, running)
        if solution.set_name is None:
            return "matrix: in no set, runs alone"
        kept = ", ".join(solution.members)
        return f"matrix set {solution.set_name} ({solution.expression}) with {kept}, cost {solution.cost}"


def build(settings: RouterSettings, pinned: frozenset[str]) -> MatrixEviction | None:
    """The policy for these settings, which prefers combinations that keep the pinned models; None without a matrix."""
    if settings.matrix is None:
        return None
    program = settings.matrix.program
    return MatrixEviction(evolve(program, costs={**program.costs, **dict.fromkeys(pinned, PINNED_COST)}))
