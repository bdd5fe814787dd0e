"""Ports after a reload: a model that had a port keeps it, new models get free ones."""

from __future__ import annotations

from attrs import evolve

from llamaswap.config.schema import Config
from llamaswap.config.schema.model import Model
from llamaswap.errors import ConfigError


def keep(old: Config, new: Config) -> Config:
    """`new` with the ports of `old` for models that have one in both.

    With another startPort no port is kept. New models get the lowest ports from startPort on that neither
    configuration uses, because the server of a removed model may still be stopping.
    """
    if old.start_port != new.start_port:
        return new
    taken = {model.port for model in old.models.values() if model.port is not None}
    models: dict[str, Model] = {}
    following = new.start_port
    for name, model in new.models.items():
        if model.port is None:
            models[name] = model
            continue
        before = old.models.get(name)
        port = before.port if before is not None else None
        if port is None:
            while following in taken:
                following += 1
            port = following
            taken.add(port)
        try:
            models[name] = model.with_port(port)
        except ConfigError:  # two keys with ${PORT} became equal; the configuration is valid as it was loaded
            return new
    if _clash(models):
        return new
    return evolve(new, models=models)


def _clash(models: dict[str, Model]) -> bool:
    """Whether a ${PORT} in an alias made it equal to another one."""
    aliases = [alias for model in models.values() for alias in set(model.aliases)]
    return len(set(aliases)) < len(aliases)
