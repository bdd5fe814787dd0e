"""One model in detail, what a request for it would do, and the outcome of earlier swaps."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from statistics import median

from attrs import define, evolve, field, frozen
from twisted.internet.interfaces import IReactorTime

from llamaswap.config import Capabilities, Config, Model
from llamaswap.config.policies.groups import DEFAULT_GROUP
from llamaswap.observe.history import SwapDocument, SwapHistory
from llamaswap.observe.inflight import InflightRequests
from llamaswap.observe.log_format import Timestamp
from llamaswap.observe.logs import LogRegistry
from llamaswap.routing.router import Router
from llamaswap.web.admin_request import AdminRequest, JsonObject, Response, json_answer, positive
from llamaswap.web.errors import HttpError
from llamaswap.web.listing import every_alias
from llamaswap.web.processes import ModelNameBody, Success, named_models
from llamaswap.web.route import QueryParameter, Route, RouteTable
from llamaswap.web.secret_masking import known_secrets, masked_command, masked_text
from llamaswap.web.shield import log_failure, shielded

TAIL_LINES = 20


@frozen
class ModelDetail:
    """Everything known about one model."""

    id: str
    name: str | None
    description: str | None
    state: str
    aliases: list[str]
    tags: list[str]
    unlisted: bool
    cmd: list[str]
    proxy: str
    pid: int | None
    port: int | None
    uptime_s: float | None
    ttl_s: int
    ttl_left_s: float | None
    pinned: bool
    host: str | None
    slots: int | None
    active: int
    waiting: int
    groups: list[str]
    context_length: int | None
    last_error: str | None
    failed: str | None
    vram_mb: int | None
    load_ms: list[int]
    asleep: bool
    asleep_s: float | None
    slot_cache: JsonObject
    wake_ms: list[int]
    stall: JsonObject
    log_tail: list[str] = field(factory=list)


@frozen
class Accepted:
    """The model that a command is for, and its state at the command's end.

    `state` is also `queued`: a load that was accepted waits until it can begin.
    """

    model: str
    state: str
    pinned: bool


@frozen
class PlannedEviction:
    """A model that would be stopped, with the number of its running requests."""

    model: str
    active: int


@frozen
class Plan:
    """What a request for a model would do now; `host` is where, null if there is only one."""

    model: str
    action: str
    host: str | None
    running: bool
    asleep: bool
    evicts: list[PlannedEviction]
    waits_for: list[str]
    reason: str
    eta_ms: int | None


@frozen
class QueueEntry:
    """A request in the queue."""

    number: int
    model: str
    position: int
    wait_ms: int
    priority: int


@frozen
class QueueDocument:
    """The queue."""

    queue: list[QueueEntry]


@frozen
class Residency:
    """A state of a model from `t0` to `t1`; None: it has not ended."""

    model: str
    state: str
    t0: Timestamp
    t1: Timestamp | None
    reason: str
    swap_id: int | None
    busy: int | None = None
    vram_mb: int | None = None


route = RouteTable("models", Route)
_WAIT = (QueryParameter("wait", "Answer when the model is loaded, or with the error of the load.", "boolean"),)


@define(eq=False)
class ModelEndpoints:
    """/api/models/<id> and its verbs, /api/plan, /api/residency, /api/swaps.

    `clock` is the scale of the statuses' times. For a model, `stall` describes its hang detection, `vram` gives the MiB
    of GPU memory it took when it was loaded last (None: unknown), `slot_cache` the state of its saved slots, and
    `capabilities` those that are configured or known.
    """

    router: Router
    inflight: InflightRequests
    history: SwapHistory
    logs: LogRegistry
    clock: IReactorTime
    stall: Callable[[str], JsonObject] = lambda model: {"watched": False}
    vram: Callable[[str], int | None] = lambda model: None
    slot_cache: Callable[[str], JsonObject] = lambda model: {"state": "off"}
    capabilities: Callable[[Model], Capabilities] = attrgetter("capabilities")

    # -- one model -----------------------------------------------------------------------------------------

    @route("GET", "/api/models/<rest:model>", answer=ModelDetail)
    def detail(self, call: AdminRequest) -> Response:
        """Everything known about one model; its command as it runs, without secrets."""
        model = self._model(call.variables["model"])
        config, status = self.router.config, self.router.status(model.id)
        secrets = known_secrets(config)
        log = self.logs.model(model.id).history().decode("utf-8", "replace") if status.last_error else ""
        detail = ModelDetail(
            id=model.id,
            name=model.name,
            description=model.description,
            state=status.state,
            aliases=every_alias(model),
            tags=list(model.tags),
            unlisted=model.unlisted,
            cmd=masked_command(status.cmd or _words(model.cmd), secrets),
            proxy=masked_text(model.proxy, secrets),
            pid=status.pid,
            port=status.port,
            uptime_s=self._since(status.ready_at),
            ttl_s=model.ttl,
            ttl_left_s=self.router.seconds_until_idle(model.id),
            pinned=model.id in self.router.pinned,
            host=self.router.shown_host(model.id),
            slots=model.concurrency_limit or None,
            active=(self.inflight.by_server() if model.replica_of else self.inflight.by_model()).get(model.id, 0),
            waiting=sum(1 for waiting in self.router.queue() if waiting.model in config.copies(model.id)),
            groups=groups_of(config, model.replica_of or model.id),
            context_length=self.capabilities(model).context or None,
            last_error=masked_text(status.last_error, secrets) if status.last_error else None,
            failed=masked_text(self.router.failure(model.id), secrets) or None,
            vram_mb=self.vram(model.id),
            load_ms=[round(seconds * 1000) for seconds in status.load_seconds],
            asleep=status.asleep_since is not None,
            asleep_s=self._since(status.asleep_since),
            slot_cache=self.slot_cache(model.id),
            wake_ms=[round(seconds * 1000) for seconds in status.wake_seconds],
            stall=self.stall(model.id),
            log_tail=[masked_text(line, secrets) for line in log.splitlines()[-TAIL_LINES:]],
        )
        return json_answer(detail)

    def _since(self, began: float | None) -> float | None:
        return None if began is None else round(max(0.0, self.clock.seconds() - began), 3)

    @route("POST", "/api/models/load/<rest:model>", query=_WAIT, status=202, answer=Accepted)
    async def load(self, call: AdminRequest) -> Response:
        """Begin to load a model; the event stream shows the progress.

        A load that is refused or fails at once, because a pinned model is in the way or the command cannot be run, is
        answered with its error.
        """
        model = self._model(call.variables["model"])
        wait = call.text("wait") in ("1", "true")
        await self._load(model, wait=wait)
        return self._accepted(model, loading=not wait)

    @route("POST", "/models/load", body=ModelNameBody, answer=Success)
    async def load_named(self, call: AdminRequest) -> Response:
        """Begin to load the model that the body names, like llama.cpp's router."""
        names = named_models(call)
        if len(names) != 1:
            raise HttpError(400, "'model' must be the name of one model, nothing is loaded")
        await self._load(self._model(names[0]), wait=False)
        return json_answer(Success(success=True))

    async def _load(self, model: Model, *, wait: bool) -> None:
        """Begin to load; raises the error of a load that fails at once, or also later if the client waits."""
        loading = self.router.load(model.id)
        if wait or loading.called:
            await shielded(loading, f"loading {model.id}")
        else:
            loading.addErrback(log_failure, f"loading {model.id}")

    @route("POST", "/api/models/restart/<rest:model>", status=202, answer=Accepted)
    async def restart(self, call: AdminRequest) -> Response:
        """Restart a model's server; answers when it has stopped and the load has begun."""
        model = self._model(call.variables["model"])
        await shielded(self.router.unload([model.id]), f"restarting {model.id}")
        await self._load(model, wait=False)
        return self._accepted(model, loading=True)

    @route("POST", "/api/models/pin/<rest:model>", answer=Accepted)
    def pin(self, call: AdminRequest) -> Response:
        """Keep a model loaded until it is unloaded by name."""
        model = self._model(call.variables["model"])
        self.router.pin(model.id)
        return self._accepted(model, 200)

    @route("DELETE", "/api/models/pin/<rest:model>", answer=Accepted)
    def unpin(self, call: AdminRequest) -> Response:
        """Remove a model's pin."""
        model = self._model(call.variables["model"])
        self.router.unpin(model.id)
        return self._accepted(model, 200)

    def _accepted(self, model: Model, status: int = 202, *, loading: bool = False) -> Response:
        state = self.router.state(model.id)
        state = "queued" if loading and state in ("stopped", "stopping") else state
        return json_answer(Accepted(model.id, state, model.id in self.router.pinned), status)

    def _model(self, name: str) -> Model:
        config = self.router.config
        model = config.real(name)
        if model is None:
            raise HttpError(404, "model not found")
        return config.models[model]

    # -- what would happen, what happened ------------------------------------------------------------------

    @route("GET", "/api/plan", query=(QueryParameter("model", "The model."),), answer=Plan)
    def plan(self, call: AdminRequest) -> Response:
        """What a request for a model would do now, without doing it."""
        model = self._model(call.text("model"))
        copies = self.router.config.copies(model.id)
        name = next((copy for copy in copies if self.router.state(copy) == "ready"), model.id)
        forecast = self.router.forecast(name)
        active = self.inflight.by_server()
        status = self.router.status(name)
        asleep = status.asleep_since is not None
        durations = status.wake_seconds if asleep else status.load_seconds
        serves = forecast.action == "serve"
        plan = Plan(
            model=model.id,
            action=forecast.action,
            host=self.router.shown_host(name, forecast),
            running=self.router.state(name) == "ready",
            asleep=asleep,
            evicts=[PlannedEviction(name, active.get(name, 0)) for name in forecast.evicts],
            waits_for=list(forecast.waits_for),
            reason=forecast.reason,
            eta_ms=0 if serves else round(median(durations) * 1000) if durations else None,
        )
        return json_answer(plan)

    @route("GET", "/api/queue", answer=QueueDocument)
    def queue(self, call: AdminRequest) -> Response:
        """The requests in the queue."""
        rows = [
            QueueEntry(each.number, each.model, each.position, round(each.age * 1000), each.priority)
            for each in self.router.queue()
        ]
        return json_answer(QueueDocument(rows))

    @route("GET", "/api/residency", answer=list[Residency])
    def residency(self, call: AdminRequest) -> Response:
        """Model states over time; a state that has not ended comes with the model's requests and its GPU memory."""
        intervals = self.history.residency(call.time("since"), call.time("until"))
        busy = self.inflight.busy()
        for interval in intervals:
            if interval["t1"] is None:
                model = str(interval["model"])
                interval |= {"busy": busy.get(model, 0), "vram_mb": self.vram(model)}
        return json_answer(intervals)

    @route("GET", "/api/swaps", answer=list[SwapDocument])
    def swaps(self, call: AdminRequest) -> Response:
        """The last swaps, newest first."""
        return json_answer([self._shown(swap) for swap in self.history.swaps()])

    @route("GET", "/api/swaps/<string:number>", answer=SwapDocument)
    def swap(self, call: AdminRequest) -> Response:
        """One swap with its phases and, if it failed, the end of the model's log."""
        number = positive(call.variables["number"], 10**18)
        found = self.history.swap(number) if number is not None else None
        if found is None:
            raise HttpError(404, "swap not found")
        return json_answer(self._shown(evolve(found, log_tail=found.log_tail or "")))

    def _shown(self, swap: SwapDocument) -> SwapDocument:
        """A swap without secrets."""
        hide = partial(masked_text, known=known_secrets(self.router.config))
        error, log = swap.error, swap.log_tail
        return evolve(swap, error=error and hide(error), log_tail=log and hide(log))


def _words(command: str) -> Sequence[str]:
    try:
        return shlex.split(command, comments=True)
    except ValueError:  # an unclosed quote: the command cannot start, but it can be shown
        return command.split()


def groups_of(config: Config, model: str) -> list[str]:
    """The groups, or the sets of the matrix, that name a model."""
    settings = config.routing.router.settings
    if settings.matrix is not None:
        short = [name for name, real in settings.matrix.vars.items() if real == model]
        return [name for name, text in settings.matrix.sets if model in text or any(word in text for word in short)]
    groups = settings.groups or {}
    return [name for name, group in groups.items() if model in group.members] or [DEFAULT_GROUP]
