"""Ports over a reload: a model that was there before keeps its port, newcomers take free ones."""

from __future__ import annotations

from attrs import evolve

from llamaswap.config.schema import Config, Model
from llamaswap.errors import ConfigError


def keep(old: Config, new: Config) -> Config:
    """`new` with the ports that `old` handed out where a model has one in both.

    A changed startPort is a wish for other ports: then nothing is kept. Newcomers get the lowest ports from
    startPort on that neither configuration holds, since a removed model's server may still be stopping.
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
        except ConfigError:  # two keys with ${PORT} in them became equal: as it was loaded, it was right
            return new
    if _clash(models):
        return new
    return evolve(new, models=models)


def _clash(models: dict[str, Model]) -> bool:
    """Did a ${PORT} in an alias run into another name?"""
    aliases = [alias for model in models.values() for alias in set(model.aliases)]
    return len(set(aliases)) < len(aliases)
