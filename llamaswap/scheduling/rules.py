"""The scheduler's rules, made from a configuration."""

from __future__ import annotations

from collections import Counter

from llamaswap.config import Config, Model
from llamaswap.config.policies.replicas import ReplicaEviction
from llamaswap.config.routing import eviction_of
from llamaswap.config.schema.hosts import HERE, Place
from llamaswap.scheduling.state import ModelRules, Rules

HERE_ONLY = Place((HERE,))


def listens_on_its_host(model: Model) -> bool:
    """Whether the server of a model listens on the host that runs it, so that any host may."""
    return model.endpoint is None or model.endpoint.on_this_machine


def _local_port(model: Model) -> int | None:
    """The port of a model's server on this machine; None if the server is on another machine."""
    endpoint = model.endpoint
    return endpoint.port if endpoint is not None and endpoint.on_this_machine else None


def rules_of(config: Config, pinned: frozenset[str] = frozenset()) -> Rules:
    """Everything in `config` that decisions depend on; `pinned` are the models that an operator has pinned."""
    pinned &= config.models.keys()
    users = Counter(map(_local_port, config.models.values()))
    models = {}
    for name, model in config.models.items():
        port = _local_port(model)
        models[name] = ModelRules(
            limit=max(0, model.concurrency_limit),
            ttl=max(0, model.ttl),
            # A suspended model keeps its port: another model with the same port could not be loaded beside it.
            can_suspend=bool(model.sleep.sleep) and (port is None or users[port] == 1),
            suspended_ttl=model.sleep.ttl,
            has_stop_command=bool(model.cmd_stop.strip()),
            place=model.place if listens_on_its_host(model) else HERE_ONLY,
        )
    fifo = config.routing.scheduler.settings.fifo
    model_of = {name: model.replica_of for name, model in config.models.items() if model.replica_of}
    by_memory = config.routing.memory.mode == "on"
    eviction = eviction_of(config.routing.router, frozenset(model_of.get(name, name) for name in pinned), by_memory)
    if model_of:
        eviction = ReplicaEviction(eviction, model_of)
    default = config.real(config.routing.default_model) if config.routing.restore_default else None
    returning = frozenset(() if default is None else config.copies(default))
    return Rules(models, eviction, fifo, pinned, by_memory, config.hosts is not None, returning)
