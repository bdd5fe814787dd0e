"""From a configuration to the rules the scheduler decides by."""

from __future__ import annotations

from collections import Counter

from llamaswap.config import Config, Model
from llamaswap.config.routing import eviction_of
from llamaswap.scheduling.backoff import Backoff
from llamaswap.scheduling.state import ModelRules, Rules

COMFYUI = "comfyui_auto"
COMFYUI_LIMIT = 50  # its page opens dozens of requests at once

THIS_MACHINE = ("localhost", "::1", "0.0.0.0", "::")


def _port(model: Model) -> int | None:
    """The port of this machine that a model's server has; None where it is another machine's."""
    here = model.endpoint
    if here is None or not (here.host in THIS_MACHINE or here.host.startswith("127.")):
        return None
    return here.port


def rules_of(config: Config, pinned: frozenset[str] = frozenset()) -> Rules:
    """Everything in `config` that decisions depend on; `pinned` are the models an operator wants kept."""
    kept = pinned & config.models.keys()
    fifo = config.routing.scheduler.settings.fifo
    tenants = Counter(map(_port, config.models.values()))
    models = {}
    for name, model in config.models.items():
        limit = max(0, model.concurrency_limit)
        bound = max(limit, COMFYUI_LIMIT) if limit and name == COMFYUI else limit
        port = _port(model)
        # Who sleeps keeps its port: another model that has the same could not be loaded beside it.
        sleeps = bool(model.sleep.sleep) and (port is None or tenants[port] == 1)
        models[name] = ModelRules(bound, max(0, model.ttl), sleeps, model.sleep.ttl, bool(model.cmd_stop.strip()))
    backoff = Backoff(fifo.backoff, fifo.backoff_max)
    evict = eviction_of(config.routing.router, kept)
    return Rules(
        *(models, evict, fifo.patience, fifo.max_queue, kept, backoff, fifo.max_wait, fifo.max_asleep),
        stalled_reader=fifo.stalled_reader,
    )
