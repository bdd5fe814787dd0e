"""Replicas: further servers of a model, each as a model of its own with another port.

The first server has the model's ID, the others are MODEL.r2, MODEL.r3 and so on. They are added to a configuration that
is checked already, so that groups, the matrix, selectors and profiles name the model alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from attrs import evolve

from llamaswap.config.diagnostics import Diagnostics
from llamaswap.config.schema import Config
from llamaswap.config.schema.model import Model


def with_replicas(config: Config, ports: Iterator[int], report: Diagnostics) -> Config:
    """The configuration with the replicas of its models on the next `ports`."""
    added: dict[str, Model] = {}
    for model in config.models.values():
        if model.replicas < 2:
            continue
        path = f"models.{model.id}.replicas"
        if model.port is None or f"{model.port}" not in model.proxy:
            report.error(
                f"model {model.id}: replicas needs ${{PORT}} in cmd and proxy, because each server listens on its own "
                "port",
                path,
                hint="write ${PORT} in place of the fixed port",
            )
            continue
        for number in range(2, model.replicas + 1):
            name = f"{model.id}.r{number}"
            if config.base(name) is not None or name in config.selectors:
                report.error(
                    f"model {model.id}: its replica {number} has the name {name!r}, which is taken",
                    path,
                    hint="rename one of the two",
                )
            else:
                added[name] = _replica(model, name, next(ports), ())
    return evolve(config, models={**config.models, **added}) if added else config


def _replica(model: Model, name: str, port: int | None, gpu_ids: tuple[int, ...]) -> Model:
    """A replica of a model. Requests that name it reach the server under the model's own name."""
    placed = model.with_gpus(gpu_ids)
    return evolve(
        placed if port is None else placed.with_port(port),
        id=name,
        replica_of=model.id,
        aliases=(),
        tags=(),
        unlisted=True,
        use_model_name=model.use_model_name or model.id,
        rebuild=partial(_replica, model, name),
    )
