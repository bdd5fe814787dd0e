"""The group policy (`use: group`): groups say which models may be loaded together."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from attrs import evolve, field, frozen

from llamaswap.config.diagnostics import Diagnostics, did_you_mean
from llamaswap.config.field_types import BOOLEAN, TEXT_LIST
from llamaswap.config.policies.eviction import EvictionPolicy

DEFAULT_GROUP = "(default)"


@frozen
class Group:
    """Models that share a rule about which models may run beside them."""

    swap: bool = BOOLEAN.key("Only one member runs at a time.", default=True)
    exclusive: bool = BOOLEAN.key("Loading a member unloads models of other groups.", default=True)
    persistent: bool = BOOLEAN.key("Other groups cannot unload this group's members.")
    members: tuple[str, ...] = TEXT_LIST.key("Model IDs in the group.")


def _check(
    groups: Mapping[str, Group] | None, models: Collection[str], path: str, report: Diagnostics
) -> Mapping[str, Group] | None:
    """The groups without unknown members, and the default group of the models that are in no other one."""
    home: dict[str, str] = {}
    checked: dict[str, Group] = {}
    for group_id, group in (groups or {}).items():
        where = f"{path}.{group_id}"
        if group_id == DEFAULT_GROUP:
            report.error(
                f"{where}: the group {DEFAULT_GROUP} is created automatically, from the models in no other group",
                where,
                hint="give the group another name",
            )
            continue
        kept: list[str] = []
        for index, member in enumerate(group.members):
            at = f"{where}.members[{index}]"
            if home.get(member) == group_id:
                report.error(f"member {member!r} appears twice in group {group_id!r}", at)
            elif member in home:
                report.error(f"member {member!r} is in groups {home[member]!r} and {group_id!r}", at)
            elif member not in models:
                near = did_you_mean(member, models)
                report.warn(f"group {group_id!r}: unknown model {member!r}, ignored", at, hint=near)
            else:
                kept.append(member)
            home.setdefault(member, group_id)
        checked[group_id] = evolve(group, members=tuple(kept))
    checked[DEFAULT_GROUP] = Group(members=tuple(name for name in sorted(models) if name not in home))
    return checked


@frozen
class GroupEviction:
    """Members of a swapping group replace one another; an exclusive group evicts all but persistent groups.

    A running model that is in no group (it has left the configuration) counts as a member of the default group.
    """

    groups: Mapping[str, Group]
    _group_of: Mapping[str, tuple[str, Group]] = field(init=False, repr=False)

    @_group_of.default
    def _by_member(self) -> Mapping[str, tuple[str, Group]]:
        return {member: (name, group) for name, group in self.groups.items() for member in group.members}

    def _find(self, model: str) -> tuple[str, Group]:
        return self._group_of.get(model) or (DEFAULT_GROUP, self.groups.get(DEFAULT_GROUP, Group()))

    def __call__(self, target: str, running: Sequence[str], /) -> tuple[str, ...]:
        name, group = self._find(target)
        evict = []
        for model in running:
            other_name, other = self._find(model)
            if group.swap if other_name == name else (group.exclusive and not other.persistent):
                evict.append(model)
        return tuple(evict)

    def protects(self, model: str, target: str, /) -> bool:
        name, group = self._find(model)
        return group.persistent and name != self._find(target)[0]

    def explain(self, target: str, running: Sequence[str], /) -> str:
        name, group = self._find(target)
        kinds = [word for word, applies in (("swap", group.swap), ("exclusive", group.exclusive)) if applies]
        return f"group {name}" + (f" ({', '.join(kinds)})" if kinds else "")

    def conflict(self, models: Sequence[str], /) -> str:
        for model in models:
            if self._find(model)[0] == DEFAULT_GROUP:
                return f"target {model} is not in a group; local targets must share a group with swap: false"
        if len({self._find(model)[0] for model in models}) > 1:
            return "local targets must share one group"
        name, group = self._find(models[0])
        return f"group {name} of the local targets must have swap: false" if group.swap else ""


def _build(groups: Mapping[str, Group] | None, pinned: frozenset[str], by_memory: bool) -> GroupEviction:
    """The policy. Groups express no preference, so the pinned models change nothing.

    If memory decides, models of the default group may run together: the configuration does not forbid it.
    """
    known = dict(groups or {})
    if by_memory:
        known[DEFAULT_GROUP] = evolve(known.get(DEFAULT_GROUP, Group()), swap=False, exclusive=False)
    return GroupEviction(known)


GROUP_POLICY = EvictionPolicy("groups", _check, _build, required=False)
