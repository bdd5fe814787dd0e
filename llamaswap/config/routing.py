"""The routing section: older and newer spelling as one, the eviction policy's settings checked, priorities resolved."""

from __future__ import annotations

from attrs import evolve

from llamaswap.config.diagnostics import Diagnostics, did_you_mean
from llamaswap.config.nodes import MappingNode
from llamaswap.config.policies import DEFAULT_POLICY, POLICIES, RouterSettings
from llamaswap.config.policies.eviction import Eviction
from llamaswap.config.schema import Config
from llamaswap.config.schema.routing import SCHEDULERS, EvictionSettings, QueueSettings, SchedulerSettings


def normalise(config: Config, root: MappingNode, report: Diagnostics) -> EvictionSettings:
    """The eviction policy in use with its settings checked and complete; those of the others are None."""
    groups, matrix, settings = config.groups, config.matrix, config.routing.router.settings
    use = config.routing.router.use
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
        report.error("cannot use both groups and matrix", "matrix", hint="keep one of the two")
        return EvictionSettings()
    if use not in ("", *POLICIES):
        report.error(
            f"routing.router.use: unknown router {use!r}, use one of {', '.join(POLICIES)}",
            "routing.router.use",
            hint=did_you_mean(use, POLICIES),
        )
        return EvictionSettings()
    if legacy:
        use, settings = "group" if matrix is None else "matrix", RouterSettings(groups, matrix)
    policy = POLICIES[use or DEFAULT_POLICY]
    given = getattr(settings, policy.section)
    path = policy.section if legacy else f"routing.router.settings.{policy.section}"
    if given is None and policy.required:
        report.error(f"routing.router.use is {use}, but {path} is not set", path)
        return EvictionSettings()
    checked = policy.check(given, config.models, path, report)
    return EvictionSettings(use or DEFAULT_POLICY, evolve(RouterSettings(), **{policy.section: checked}))


def eviction_of(router: EvictionSettings, pinned: frozenset[str] = frozenset(), by_memory: bool = False) -> Eviction:
    """The eviction policy that a checked configuration selects; `pinned` are the models that an operator keeps.

    `by_memory`: memory decides besides it, so it allows together what the settings do not keep apart.
    """
    policy = POLICIES[router.use or DEFAULT_POLICY]
    return policy.build(getattr(router.settings, policy.section), pinned, by_memory)


def scheduler(config: Config, report: Diagnostics) -> QueueSettings:
    """The scheduler's settings with priorities by model ID."""
    path = "routing.scheduler"
    given = config.routing.scheduler
    if given.use not in ("", *SCHEDULERS):
        report.error(f"{path}.use: unknown scheduler {given.use!r}, use {', '.join(SCHEDULERS)}", f"{path}.use")
    priority: dict[str, int] = {}
    for name, rank in given.settings.fifo.priority.items():
        real = config.real(name)
        if real is None:
            near = did_you_mean(name, [*config.models, *config.names.aliases])
            where = f"{path}.settings.fifo.priority"
            report.error(f"{where}: unknown model {name!r}", f"{where}.{name}", hint=near)
        else:
            priority[real] = rank
    return QueueSettings("fifo", SchedulerSettings(evolve(given.settings.fifo, priority=priority)))
