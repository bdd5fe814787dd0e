"""The matrix policy (`use: matrix`): expressions over models, with costs, say which may be loaded together."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from attrs import Factory, evolve, field, frozen

from llamaswap.config.diagnostics import Diagnostics, did_you_mean
from llamaswap.config.field_types import INTEGER_MAP, TEXT_MAP, TEXT_PAIRS
from llamaswap.config.matrix import MatrixError, Program, compile_sets
from llamaswap.config.policies.eviction import EvictionPolicy

PINNED_COST = 1_000_000  # for evicting a pinned model: any combination that keeps it is cheaper
VAR_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.-")
LONGEST_VAR = 32


@frozen
class Matrix:
    """Sets of models that may run together. `program` is the compiled `sets`, `costs` has variables resolved."""

    vars: Mapping[str, str] = TEXT_MAP.key("Short names for model IDs.")
    evict_costs: Mapping[str, int] = INTEGER_MAP.key(
        "What unloading a model costs; unlisted models cost 1.", name="evict_costs", values_minimum=1
    )
    sets: tuple[tuple[str, str], ...] = TEXT_PAIRS.key("Named expressions of models that may run together.")
    costs: Mapping[str, int] = Factory(dict)
    program: Program | None = field(default=None, eq=False, repr=False)


def _check(matrix: Matrix, models: Collection[str], path: str, report: Diagnostics) -> Matrix:
    """The matrix with its costs by model and its sets compiled."""
    if not matrix.sets:
        report.error("matrix: sets needs at least one set", path)
        return matrix
    before = len(report.errors)
    for name, model in matrix.vars.items():
        if not (0 < len(name) <= LONGEST_VAR and VAR_CHARACTERS.issuperset(name)):
            report.error(
                f"matrix: var {name!r}: allowed characters are letters, digits, . and -, 1-{LONGEST_VAR} of them",
                f"{path}.vars",
            )
        elif model not in models:
            near = did_you_mean(model, models)
            report.error(f"matrix: var {name!r}: unknown model {model!r}", f"{path}.vars.{name}", hint=near)
    costs: dict[str, int] = {}
    for name, cost in matrix.evict_costs.items():
        if cost <= 0:
            report.error(f"matrix: evict_costs: {name!r} must be a positive integer", f"{path}.evict_costs.{name}")
        elif name not in matrix.vars and name not in models:
            report.error(f"matrix: evict_costs: unknown var or model {name!r}", f"{path}.evict_costs.{name}")
        else:
            costs[matrix.vars.get(name, name)] = cost  # of a variable and its model, the later entry counts
    if len(report.errors) > before:
        return matrix
    try:
        program = compile_sets(matrix.sets, matrix.vars, models, costs)
    except MatrixError as error:
        where = f"{path}.sets.{error.set_name}" if error.set_name else f"{path}.sets"
        report.error(str(error), where)
        return matrix
    return evolve(matrix, costs=costs, program=program)


@frozen
class MatrixEviction:
    """The cheapest combination of the matrix sets that contains the target decides."""

    program: Program

    def __call__(self, target: str, running: Sequence[str], /) -> tuple[str, ...]:
        return self.program.solve(target, running).evict

    def protects(self, model: str, target: str, /) -> bool:
        return False

    def explain(self, target: str, running: Sequence[str], /) -> str:
        solution = self.program.solve(target, running)
        if solution.set_name is None:
            return "matrix: in no set, runs alone"
        kept = ", ".join(solution.members)
        return f"matrix set {solution.set_name} ({solution.expression}) with {kept}, cost {solution.cost}"

    def conflict(self, models: Sequence[str], /) -> str:
        if self.program.can_coexist(models):
            return ""
        return f"the local targets {', '.join(models)} are not in one expanded matrix set, so they cannot run together"


def _build(matrix: Matrix, pinned: frozenset[str], by_memory: bool) -> MatrixEviction:
    """The policy that prefers combinations with the pinned models. Its sets count whether memory decides or not."""
    assert matrix.program is not None, "a matrix is checked, and so compiled, before its policy is built"
    costs = {**matrix.program.costs, **dict.fromkeys(pinned, PINNED_COST)}
    return MatrixEviction(evolve(matrix.program, costs=costs))


MATRIX_POLICY = EvictionPolicy("matrix", _check, _build)
