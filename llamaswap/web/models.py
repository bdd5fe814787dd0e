"""One model up close, what asking for it would do, and what became of earlier swaps."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from statistics import median
from typing import Any

from attrs import define
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from llamaswap.config import Config, Model
from llamaswap.config.schema import DEFAULT_GROUP
from llamaswap.errors import LlamaswapError
from llamaswap.observe.history import SwapHistory
from llamaswap.observe.inflight import InflightRequests
from llamaswap.observe.logs import LogRegistry
from llamaswap.observe.query import timestamp
from llamaswap.routing.router import Router
from llamaswap.web.admin_request import AdminRequest, Response, json_answer
from llamaswap.web.errors import HttpError
from llamaswap.web.listing import every_alias
from llamaswap.web.route import QueryParameter, RouteTable
from llamaswap.web.secret_masking import known_secrets, masked_command, masked_text
from llamaswap.web.shield import shielded

TAIL_LINES = 20

log = Logger()


@define(eq=False)
class ModelEndpoints:
    """/api/models/<id> and its verbs, /api/plan, /api/residency, /api/swaps. `clock` is the statuses' scale, `stall`
    says by which thresholds a model's server counts as hung, and how it stands, `vram` how many MiB of GPU memory a
    loaded model took, where that is known, `slot_cache` how it fares with what its servers save."""

    router: Router
    inflight: InflightRequests
    history: SwapHistory
    book: LogRegistry
    clock: IReactorTime
    stall: Callable[[str], dict[str, Any]] = lambda model: {"watched": False}
    vram: Callable[[str], int | None] = lambda model: None
    slot_cache: Callable[[str], dict[str, Any]] = lambda model: {"state": "off"}

    # -- one model -----------------------------------------------------------------------------------------

    def detail(self, call: AdminRequest) -> Response:
        """Everything known about one model; its command as it runs, without secrets."""
        model = self._model(call.variables["model"])
        config, status = self.router.config, self.router.status(model.id)
        secrets = known_secrets(config)
        error = status.last_error or None
        now = self.clock.seconds()
        detail: dict[str, Any] = {
            "id": model.id,
            "name": model.name,
            "description": model.description,
            "state": status.state,
            "aliases": every_alias(model),
            "unlisted": model.unlisted,
            "cmd": self._command(model, status.cmd, secrets),
            "proxy": masked_text(model.proxy, secrets),
            "pid": status.pid,
            "port": status.port,
            "uptime_s": None if status.ready_at is None else round(max(0.0, now - status.ready_at), 3),
            "ttl_s": model.ttl,
            "ttl_left_s": self.router.seconds_until_idle(model.id),
            "pinned": model.id in self.router.pinned,
            "slots": model.concurrency_limit or None,
            "active": self.inflight.by_model().get(model.id, 0),
            "waiting": sum(1 for waiting in self.router.queue() if waiting.model == model.id),
            "groups": _groups(config, model.id),
            "context_length": model.capabilities.context or None,
            "last_error": None if error is None else masked_text(str(error), secrets),
            "vram_mb": self.vram(model.id),
            "load_ms": [round(seconds * 1000) for seconds in status.load_seconds],
            "asleep": status.asleep_since is not None,
            "asleep_s": None if status.asleep_since is None else round(max(0.0, now - status.asleep_since), 3),
            "slot_cache": self.slot_cache(model.id),
            "wake_ms": [round(seconds * 1000) for seconds in status.wake_seconds],
            "stall": self.stall(model.id),
        }
        if error is not None:
            lines = self.book.model(model.id).history().decode("utf-8", "replace").splitlines()
            detail["log_tail"] = [masked_text(line, secrets) for line in lines[-TAIL_LINES:]]
        return json_answer(detail)

    def load(self, call: AdminRequest) -> Response:
        """Begin to load; how it goes is told on the event stream."""
        model = self._model(call.variables["model"])
        _watched(self.router.load(model.id), f"loading {model.id}")
        return self._accepted(model)

    async def restart(self, call: AdminRequest) -> Response:
        """Stop the server and load it anew; answers when it is down and the load has begun."""
        model = self._model(call.variables["model"])
        await shielded(self.router.unload([model.id]), f"restarting {model.id}")
        _watched(self.router.load(model.id), f"loading {model.id}")
        return self._accepted(model)

    def pin(self, call: AdminRequest) -> Response:
        """Keep the model once it is loaded, until it is unloaded by name."""
        model = self._model(call.variables["model"])
        self.router.pin(model.id)
        return self._accepted(model, 200)

    def unpin(self, call: AdminRequest) -> Response:
        """Take a pin back."""
        model = self._model(call.variables["model"])
        self.router.unpin(model.id)
        return self._accepted(model, 200)

    def _accepted(self, model: Model, status: int = 202) -> Response:
        pinned = model.id in self.router.pinned
        return json_answer({"model": model.id, "state": self.router.state(model.id), "pinned": pinned}, status)

    def _model(self, name: str) -> Model:
        config = self.router.config
        real = config.real(name)
        if real is None:
            raise HttpError(404, "model not found")
        return config.models[real]

    @staticmethod
    def _command(model: Model, running: Any, secrets: list[str]) -> list[str]:
        if running:
            return masked_command(list(running), secrets)
        try:
            words = shlex.split(model.cmd, comments=True)
        except ValueError:  # an unclosed quote: the command cannot start, but it can be shown
            words = model.cmd.split()
        return masked_command(words, secrets)

    # -- what would happen, what happened ------------------------------------------------------------------

    def plan(self, call: AdminRequest) -> Response:
        """What a request for a model would do now; nothing is done."""
        model = self._model(call.text("model"))
        forecast = self.router.forecast(model.id)
        active = self.inflight.by_model()
        status = self.router.status(model.id)
        asleep = status.asleep_since is not None
        loads = status.wake_seconds if asleep else status.load_seconds
        serves = forecast.action == "serve"
        eta = 0 if serves else round(median(loads) * 1000) if loads else None
        document = {
            "model": model.id,
            "action": forecast.action,
            "running": self.router.state(model.id) == "ready",
            "asleep": asleep,
            "evicts": [{"model": name, "active": active.get(name, 0)} for name in forecast.evicts],
            "waits_for": list(forecast.waits_for),
            "reason": forecast.reason,
            "eta_ms": eta,
        }
        return json_answer(document)

    def queue(self, call: AdminRequest) -> Response:
        """Who waits, for what, since when."""
        rows = [
            {
                "number": waiting.number,
                "model": waiting.model,
                "position": waiting.position,
                "wait_ms": round(waiting.age * 1000),
                "priority": waiting.priority,
            }
            for waiting in self.router.queue()
        ]
        return json_answer({"queue": rows})

    def residency(self, call: AdminRequest) -> Response:
        """Which model was in which state from when to when; what is so now also says how busy and how big it is."""
        segments = self.history.residency(_time(call, "since"), _time(call, "until"))
        busy = self.inflight.busy()
        for segment in segments:
            if segment["t1"] is None:
                model = str(segment["model"])
                segment |= {"busy": busy.get(model, 0), "vram_mb": self.vram(model)}
        return json_answer(segments)

    def swaps(self, call: AdminRequest) -> Response:
        """The last swaps, newest first."""
        return json_answer([_outward(swap) for swap in self.history.swaps()])

    def swap(self, call: AdminRequest) -> Response:
        """One swap with its phases and, where it failed, the end of the model's log."""
        text = call.variables["number"]
        found = self.history.swap(int(text)) if text.isascii() and text.isdigit() and len(text) < 19 else None
        if found is None:
            raise HttpError(404, "swap not found")
        secrets = known_secrets(self.router.config)
        return json_answer({**_outward(found), "log_tail": masked_text(str(found["log_tail"]), secrets)})


def _outward(swap: dict[str, Any]) -> dict[str, Any]:
    """A swap with its end in one word and its times named as its phases' are."""
    ended = swap["ended"] is not None
    outcome = "loading" if not ended else "ready" if swap["error"] is None else "failed"
    return {**swap, "outcome": outcome, "start": swap["began"], "end": swap["ended"]}


def _groups(config: Config, model: str) -> list[str]:
    settings = config.routing.router.settings
    if settings.matrix is not None:
        short = [name for name, real in settings.matrix.vars.items() if real == model]
        return [name for name, text in settings.matrix.sets if model in text or any(word in text for word in short)]
    groups = settings.groups or {}
    return [name for name, group in groups.items() if model in group.members] or [DEFAULT_GROUP]


def _time(call: AdminRequest, name: str) -> float | None:
    text = call.text(name)
    if not text:
        return None
    try:
        return timestamp(text)
    except (ValueError, OverflowError):
        raise HttpError(400, f"invalid '{name}' timestamp, use RFC3339 format")


def _watched(work: Deferred[None], what: str) -> None:
    """Let it go on; a refusal is news for the event stream and the log, not a fault of ours."""

    def failed(failure: Any) -> None:
        if failure.check(LlamaswapError):
            log.warn("{what} failed: {reason}", what=what, reason=failure.getErrorMessage())
        else:
            log.failure("{what} failed", failure=failure, what=what)

    work.addErrback(failed)


_table = RouteTable(ModelEndpoints, "models")
_named: dict[str, Any] = {"schema": "Model"}
_accepted = {"status": 202, "schema": "Accepted"}
ROUTES = (
    _table.get("/api/residency", ModelEndpoints.residency, "Model states over time", schema="Residency"),
    _table.get("/api/swaps", ModelEndpoints.swaps, "The last swaps", schema="Swaps"),
    _table.get("/api/swaps/<string:number>", ModelEndpoints.swap, "One swap", schema="Swap"),
    _table.get(
        "/api/plan",
        ModelEndpoints.plan,
        "What loading would do",
        query=(QueryParameter("model", "Which."),),
        schema="Plan",
    ),
    _table.get("/api/queue", ModelEndpoints.queue, "Who waits", schema="Queue"),
    _table.post("/api/models/load/<rest:model>", ModelEndpoints.load, "Load a model", changes_state=True, **_accepted),
    _table.post(
        "/api/models/restart/<rest:model>",
        ModelEndpoints.restart,
        "Restart a model's server",
        changes_state=True,
        **_accepted,
    ),
    _table.post(
        "/api/models/pin/<rest:model>", ModelEndpoints.pin, "Keep a model loaded", changes_state=True, schema="Accepted"
    ),
    _table.each(
        ("DELETE",),
        "/api/models/pin/<rest:model>",
        ModelEndpoints.unpin,
        "Take a pin back",
        changes_state=True,
        schema="Accepted",
    ),
    _table.get("/api/models/<rest:model>", ModelEndpoints.detail, "Everything known about a model", **_named),
)
