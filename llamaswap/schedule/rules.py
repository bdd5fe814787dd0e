"""From a configuration to the rules the scheduler decides by."""

from __future__ import annotations

from attrs import evolve

from llamaswap.config import Config
from llamaswap.schedule.backoff import Backoff
from llamaswap.schedule.eviction import Eviction, GroupEviction, MatrixEviction
from llamaswap.schedule.picture import ModelRules, Rules

COMFYUI = "comfyui_auto"
COMFYUI_LIMIT = 50  # its page opens dozens of requests at once

NEVER_CHEAPER = 1_000_000
"""What evicting a pinned model costs the matrix: any combination that keeps it is better."""


def eviction_of(config: Config, pinned: frozenset[str] = frozenset()) -> Eviction:
    """The policy in force; the matrix is told to prefer combinations that keep the pinned models."""
    settings = config.routing.router.settings
    if config.routing.router.use == "matrix" and settings.matrix is not None:
        program = settings.matrix.program
        costs = {**program.costs, **dict.fromkeys(pinned, NEVER_CHEAPER)}
        return MatrixEviction(evolve(program, costs=costs))
    return GroupEviction(settings.groups or {})


def rules_of(config: Config, pinned: frozenset[str] = frozenset()) -> Rules:
    """Everything in `config` that decisions depend on; `pinned` are the models an operator wants kept."""
    kept = pinned & config.models.keys()
    fifo = config.routing.scheduler.settings.fifo
    models = {}
    for name, model in config.models.items():
        limit = max(0, model.concurrency_limit)
        bound = max(limit, COMFYUI_LIMIT) if limit and name == COMFYUI else limit
        models[name] = ModelRules(bound, max(0, model.ttl), bool(model.sleep.sleep), model.sleep.ttl)
    backoff = Backoff(fifo.backoff, fifo.backoff_max)
    evict = eviction_of(config, kept)
    return Rules(models, evict, fifo.patience, fifo.max_queue, kept, backoff, fifo.max_wait, fifo.max_asleep)
