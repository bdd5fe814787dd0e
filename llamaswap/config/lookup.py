"""The names of models: IDs, aliases and the models of peers. Built once per configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from llamaswap.config.policies.groups import Group
    from llamaswap.config.schema.model import Model
    from llamaswap.config.schema.routing import Peer


@frozen
class NameIndex:
    """The tables for the lookups of Config.

    `qualified` are the models of peers by PEER/MODEL, `bare` by their own name (None if several peers offer it) and by
    the aliases of peers. `sets` are the members of groups and tags.
    """

    aliases: Mapping[str, str]
    qualified: Mapping[str, tuple[str, str]]
    bare: Mapping[str, tuple[str, str] | None]
    sets: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(
        cls,
        models: Mapping[str, Model],
        peers: Mapping[str, Peer],
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
        return cls(aliases, qualified, bare, sets)
