"""The routing section: older and newer spelling as one, groups and the matrix checked, priorities resolved."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import evolve

from llamaswap.config.diagnostics import Diagnostics, did_you_mean
from llamaswap.config.lookup import NameIndex
from llamaswap.config.matrix import MatrixError, compile_sets
from llamaswap.config.nodes import MappingNode, Node, ScalarNode, is_null
from llamaswap.config.schema import (
    DEFAULT_GROUP,
    ROUTERS,
    SCHEDULERS,
    EvictionSettings,
    Group,
    Matrix,
    Model,
    QueueSettings,
    RouterSettings,
    Routing,
)

VAR_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.-")
LONGEST_VAR = 32


def normalise(
    root: MappingNode,
    routing: Routing,
    groups: Mapping[str, Group] | None,
    matrix: Matrix | None,
    models: Mapping[str, Model],
    report: Diagnostics,
) -> EvictionSettings:
    """The engine in use with its settings checked and complete; the other engine's are None."""
    settings = routing.router.settings
    use_node = _dig(root, "routing", "router", "use")
    use = use_node.text if isinstance(use_node, ScalarNode) and not is_null(use_node) else ""
    legacy = matrix is not None or bool(groups)
    current = bool(use) or settings.matrix is not None or bool(settings.groups)
    if legacy and current:
        report.error(
            "top-level groups or matrix together with routing.router: migrate the older keys into routing.router",
            "routing.router",
            root.where("matrix" if matrix is not None else "groups"),
            "move groups to routing.router.settings.groups, matrix to routing.router.settings.matrix",
        )
        return EvictionSettings()
    if legacy and matrix is not None and groups:
        report.error("cannot use both groups and matrix", "matrix", root.where("matrix"), "keep one of the two")
        return EvictionSettings()
    if not legacy:
        groups, matrix = settings.groups, settings.matrix
        if use not in ("", *ROUTERS):
            report.error(
                f"routing.router.use: unknown router {use!r}, use one of {', '.join(ROUTERS)}",
                "routing.router.use",
                use_node,
                did_you_mean(use, ROUTERS),
            )
            return EvictionSettings()
        if use == "matrix" and matrix is None:
            report.error(
                "routing.router.use is matrix, but routing.router.settings.matrix is not set",
                "routing.router.settings.matrix",
                use_node,
            )
            return EvictionSettings()
        matrix = matrix if use == "matrix" else None
    path = "" if legacy else "routing.router.settings."
    if matrix is not None:
        return EvictionSettings("matrix", RouterSettings(None, _matrix(matrix, models, f"{path}matrix", report)))
    return EvictionSettings("group", RouterSettings(_groups(groups or {}, models, f"{path}groups", report), None))


def _dig(node: Node | None, *names: str) -> Node | None:
    for name in names:
        node = node.get(name) if isinstance(node, MappingNode) else None
    return node


def _groups(
    groups: Mapping[str, Group], models: Mapping[str, Model], path: str, report: Diagnostics
) -> dict[str, Group]:
    home: dict[str, str] = {}
    checked: dict[str, Group] = {}
    for group_id, group in groups.items():
        where = f"{path}.{group_id}"
        if group_id == DEFAULT_GROUP:
            report.error(
                f"{where}: the group {DEFAULT_GROUP} is created automatically, from the models in no other group",
                where,
                hint="give the group another name",
            )
            continue
        kept: list[str] = []
        for member in group.members:
            if home.get(member) == group_id:
                report.error(f"member {member!r} appears twice in group {group_id!r}", f"{where}.members")
            elif member in home:
                report.error(f"member {member!r} is in groups {home[member]!r} and {group_id!r}", f"{where}.members")
            elif member not in models:
                near = did_you_mean(member, models)
                report.warn(f"group {group_id!r}: unknown model {member!r}, ignored", f"{where}.members", hint=near)
            else:
                kept.append(member)
            home.setdefault(member, group_id)
        checked[group_id] = evolve(group, members=tuple(kept))
    rest = tuple(name for name in sorted(models) if name not in home)
    checked[DEFAULT_GROUP] = Group(members=rest)
    return checked


def _matrix(matrix: Matrix, models: Mapping[str, Model], path: str, report: Diagnostics) -> Matrix:
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


def scheduler(given: QueueSettings, names: NameIndex, root: MappingNode, report: Diagnostics) -> QueueSettings:
    """Priorities by real ID; bounds checked."""
    path = "routing.scheduler"
    node = _dig(root, "routing", "scheduler", "use")
    if given.use not in ("", *SCHEDULERS):
        report.error(f"{path}.use: unknown scheduler {given.use!r}, use {', '.join(SCHEDULERS)}", f"{path}.use", node)
    fifo = given.settings.fifo
    priority: dict[str, int] = {}
    for name, rank in fifo.priority.items():
        real = names.real(name)
        if real is None:
            near = did_you_mean(name, [*names.models, *names.aliases])
            report.error(
                f"{path}.settings.fifo.priority: unknown model {name!r}",
                f"{path}.settings.fifo.priority.{name}",
                _dig(root, "routing", "scheduler", "settings", "fifo", "priority"),
                near,
            )
        else:
            priority[real] = rank
    for name, seconds in (
        ("patience", fifo.patience),
        ("maxWait", fifo.max_wait),
        ("stalledReader", fifo.stalled_reader),
        ("backoff", fifo.backoff),
        ("backoffMax", fifo.backoff_max),
        ("reclaim", fifo.reclaim),
        ("maxAsleep", fifo.max_asleep),
    ):
        if seconds < 0:
            report.error(f"{path}.settings.fifo.{name} must not be negative", f"{path}.settings.fifo.{name}", node)
    if fifo.max_queue < 1:
        report.error(f"{path}.settings.fifo.maxQueue must be at least 1", f"{path}.settings.fifo.maxQueue", node)
    settled = evolve(fifo, priority=priority)
    return QueueSettings("fifo", evolve(given.settings, fifo=settled))
