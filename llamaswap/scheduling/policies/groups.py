"""The group policy (`use: group`): groups say which models may be loaded together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import field, frozen

from llamaswap.config.schema import Group, RouterSettings

DEFAULT_GROUP = "(default)"


@frozen
class _Group:
    name: str
    swap: bool = True
    exclusive: bool = True
    persistent: bool = False


_DEFAULT = _Group(DEFAULT_GROUP)


@frozen
class GroupEviction:
    """Members of a swapping group replace one another; an exclusive group evicts all but persistent groups.

    A running model that is in no group (it has left the configuration) counts as a member of the default group.
    """

    groups: Mapping[str, Group]
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


def build(settings: RouterSettings, pinned: frozenset[str]) -> GroupEviction:
    """The policy for these settings. Groups express no preference, so `pinned` changes nothing."""
    return GroupEviction(settings.groups or {})
