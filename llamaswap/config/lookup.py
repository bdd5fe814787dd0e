"""The names of models: IDs, aliases and the models of peers. Built once per configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from llamaswap.config.policies.groups import Group
    from llamaswap.config.schema.model import Model
    from llamaswap.config.schema.routing import Peer


@frozen
class NameIndex:
    """The tables for the lookups of Config.

    `bare` has the models of peers by their names, None if several peers offer one, and the aliases of peers. `sets` are
    the members of the groups and tags.
    """

    models: frozenset[str]
    aliases: Mapping[str, str]
    qualified: Mapping[str, tuple[str, str]]
    bare: Mapping[str, tuple[str, str] | None]
    selectors: frozenset[str]
    sets: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(
        cls,
        models: Mapping[str, Model],
        peers: Mapping[str, Peer],
        selectors: Sequence[str],
        groups: Mapping[str, Group],
    ) -> NameIndex:
        aliases: dict[str, str] = {}
        tagged: dict[str, dict[str, None]] = {}
        for model in models.values():
            for alias in model.aliases:
                aliases.setdefault(alias, model.id)
            for tag in model.tags:
                tagged.setdefault(tag, {})[model.id] = None
        sets = {tag: tuple(members) for tag, members in tagged.items()}
        sets |= {name: group.members for name, group in groups.items()}
        qualified: dict[str, tuple[str, str]] = {}
        bare: dict[str, tuple[str, str] | None] = {}
        written = {name for peer in peers.values() if not peer.auto for name in peer.models}
        for peer_id in sorted(peers):
            for name in dict.fromkeys(peers[peer_id].models):
                qualified.setdefault(f"{peer_id}/{name}", (peer_id, name))
                if peers[peer_id].auto and name in written:
                    continue  # names in the configuration come before those that a peer lists
                bare[name] = None if name in bare else (peer_id, name)
        bare |= {alias: (peer.id, name) for peer in peers.values() for alias, name in peer.aliases.items()}
        return cls(frozenset(models), aliases, qualified, bare, frozenset(selectors), sets)

    def real(self, name: str) -> str | None:
        return name if name in self.models else self.aliases.get(name)

    def peer(self, name: str) -> tuple[str, str] | None:
        return self.qualified.get(name) or self.bare.get(name)

    def base(self, name: str) -> str | None:
        return self.real(name) or (name if self.peer(name) else None)

    def split_path(self, segments: Sequence[str]) -> tuple[str, int] | None:
        found: tuple[str, int] | None = None
        kept: list[str] = []
        for used, segment in enumerate(segments, start=1):
            if not segment:
                continue
            kept.append(segment)
            name = "/".join(kept)
            if self.base(name) is not None:
                found = (name, used)
        return found
