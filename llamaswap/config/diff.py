"""The difference between two configurations: added, removed, restarted and retuned models, and changed settings."""

from __future__ import annotations

from attrs import fields, frozen

from llamaswap.config import command_line
from llamaswap.config.schema import Config
from llamaswap.config.schema.model import Model

NOT_SETTINGS = frozenset({"models", "macros", "groups", "matrix", "names"})
"""Fields of Config that are not compared: models are compared one by one, the others are copies."""


@frozen
class ConfigDiff:
    """Model IDs in ascending order, and the names of Config's changed fields.

    `restarted` models need a new process; `retuned` ones keep theirs with other settings.
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    restarted: tuple[str, ...] = ()
    retuned: tuple[str, ...] = ()
    settings: frozenset[str] = frozenset()


def diff(old: Config, new: Config) -> ConfigDiff:
    """The changes from `old` to `new`."""
    both = sorted(old.models.keys() & new.models.keys())
    changed = [name for name in both if old.models[name] != new.models[name]]
    restarted = {name for name in changed if not _same_process(old.models[name], new.models[name])}
    return ConfigDiff(
        added=tuple(sorted(new.models.keys() - old.models.keys())),
        removed=tuple(sorted(old.models.keys() - new.models.keys())),
        restarted=tuple(sorted(restarted)),
        retuned=tuple(name for name in changed if name not in restarted),
        settings=frozenset(
            attribute.name
            for attribute in fields(Config)
            if attribute.name not in NOT_SETTINGS and getattr(old, attribute.name) != getattr(new, attribute.name)
        ),
    )


def _same_process(old: Model, new: Model) -> bool:
    """Whether the process of the old model is right for the new one. The text of an equal command may differ."""
    before, after = ((each.env, each.env_policy, each.proxy, each.port, each.gpus, each.place) for each in (old, new))
    return before == after and (old.cmd == new.cmd or _argv(old) == _argv(new))


def _argv(model: Model) -> tuple[str, ...]:
    try:
        return tuple(command_line.split(model.cmd))
    except command_line.EmptyCommand:
        return ()
