"""Which servers run, how to stop them, and whether this process is well."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import attrgetter

from attrs import define, field, frozen

from llamaswap.config import Model
from llamaswap.config.diagnostics import nearest
from llamaswap.routing.router import Router
from llamaswap.web.admin_request import AdminRequest, Response, json_answer
from llamaswap.web.errors import HttpError
from llamaswap.web.route import QueryParameter, Route, RouteTable
from llamaswap.web.secret_masking import known_secrets, masked_text
from llamaswap.web.shield import shielded

OK = Response(200, b"OK")


@frozen
class RunningModel:
    """A server that is not stopped."""

    model: str
    state: str
    cmd: str
    proxy: str
    ttl: int
    name: str
    description: str


@frozen
class SleepingModel:
    """A suspended server."""

    model: str
    pid: int | None


@frozen
class FailingModel:
    """A model whose server failed, and when a request may start it again."""

    model: str
    failures: int
    retry_in_s: float
    error: str
    log_tail: list[str]


@frozen
class Running:
    """The servers by state."""

    running: list[RunningModel]
    sleeping: list[SleepingModel] = field(factory=list)
    failing: list[FailingModel] = field(factory=list)


@frozen
class ReadinessReport:
    """Whether requests move, and from what that was concluded.

    `hosts` says why nothing new is loaded on other hosts.
    """

    ready: bool
    oldest_waiter_seconds: float | None
    last_decision_seconds: float | None
    running: int
    waiting: int
    serving: int
    loading: int
    hosts: str = ""


@frozen
class Message:
    """The acknowledgement of a command."""

    msg: str


@frozen
class Success:
    """The acknowledgement of llama.cpp's router."""

    success: bool


@frozen
class ModelNameBody:
    """A body that names a model."""

    model: str


route = RouteTable("processes", Route)
_PLAIN = "text/plain"
_NAMED = (QueryParameter("model", "Stop only this model's server (id or alias).", repeatable=True),)


@define(eq=False)
class ProcessEndpoints:
    """/running, /unload, /health and the like. `hosts_problem` says why nothing new is loaded on other hosts, or ""."""

    router: Router
    hosts_problem: Callable[[], str] = lambda: ""

    @route("GET", "/running", answer=Running)
    def running(self, call: AdminRequest) -> Response:
        """The servers that are not stopped, by model id; beside them the suspended and the failing ones, if any."""
        config = self.router.config
        hide = partial(masked_text, known=known_secrets(config))
        rows = []
        for status in self.router.running():
            model = config.models.get(status.model, Model(status.model))
            rows.append(
                RunningModel(
                    model=status.model,
                    state=status.state,
                    cmd=hide(model.cmd),
                    proxy=hide(model.proxy),
                    ttl=model.ttl,
                    name=model.name or "",
                    description=model.description or "",
                )
            )
        sleeping = [SleepingModel(status.model, status.pid) for status in self.router.suspended()]
        failing = [
            FailingModel(one.model, one.count, round(wait, 3), hide(one.cause), list(map(hide, one.tail.splitlines())))
            for one, wait in self.router.failing()
        ]
        counted = {row.model for row in failing}
        for name in (
            config.models.keys() - counted
        ):  # such as one whose command does not exist: its loads fail at once, so they are not paused
            if why := self.router.failure(name):
                failing.append(FailingModel(name, 0, 0.0, hide(why), []))
        failing.sort(key=attrgetter("model"))
        return json_answer(Running(rows, sleeping, failing))

    @route("GET", "/unload", changes_state=True, content=_PLAIN, query=_NAMED)
    @route("GET", "/models/unload", changes_state=True, content=_PLAIN, query=_NAMED, summary="The same as /unload")
    async def unload_all(self, call: AdminRequest) -> Response:
        """Stop the named models' servers, or every server; answers when they have stopped."""
        await self._unload(call)
        return OK

    @route("POST", "/models/unload", content="*/*", query=_NAMED, body=ModelNameBody)
    async def unload_named(self, call: AdminRequest) -> Response:
        """Stop the named models' servers, or every server; answers a JSON body like llama.cpp's router."""
        await self._unload(call)
        return json_answer(Success(success=True)) if call.body.strip() else OK

    @route("POST", "/api/models/unload", answer=Message, query=_NAMED, body=ModelNameBody)
    async def unload_all_json(self, call: AdminRequest) -> Response:
        """Stop the named models' servers, or every server; answers in JSON."""
        await self._unload(call)
        return json_answer(Message("ok"))

    async def _unload(self, call: AdminRequest) -> None:
        names = named_models(call)
        if not names:
            await shielded(self.router.unload(), "unloading all models")
            return
        config = self.router.config
        models = []
        for name in names:
            model = config.real(name)
            if model is None:
                near = nearest(name, list(config.models))
                hint = f"; did you mean {near!r}?" if near else ""
                raise HttpError(404, f"model {name!r} not found, nothing is unloaded{hint}")
            models.append(model)
        await shielded(self.router.unload(models), f"unloading {', '.join(models)}")

    @route("POST", "/api/models/unload/<rest:model>", content=_PLAIN)
    async def unload_one(self, call: AdminRequest) -> Response:
        """Stop one model's server, named by id or alias; succeeds also if it did not run."""
        model = self.router.config.real(call.variables["model"])
        if model is None:
            raise HttpError(404, "model not found")
        await shielded(self.router.unload([model]), f"unloading {model}")
        return OK

    @route("GET", "/wol-health", key="not needed", content=_PLAIN, summary="The same, never in the access log")
    @route("GET", "/health", key="not needed", content=_PLAIN)
    def health(self, call: AdminRequest) -> Response:
        """Whether this process serves; says nothing about models and never loads one."""
        return OK

    @route("GET", "/readyz", key="not needed", answer=ReadinessReport)
    def ready(self, call: AdminRequest) -> Response:
        """Whether requests move: 503 if requests are queued but nothing is in progress."""
        health = self.router.health()
        report = ReadinessReport(
            ready=not health.stalled,
            oldest_waiter_seconds=health.oldest_waiter,
            last_decision_seconds=health.last_decision,
            running=len(self.router.running()),
            waiting=health.waiting,
            serving=health.serving,
            loading=health.loading,
            hosts=self.hosts_problem(),
        )
        return json_answer(report, 200 if report.ready else 503)


def named_models(call: AdminRequest) -> list[str]:
    """The models that the query or the JSON body names; 400 for a body or a name that cannot be understood."""
    names: list[object] = list(call.query.get("model", []))
    if call.body.strip():
        document = call.json_object('the body is not a JSON object such as {"model": "name"}; nothing was done')
        if "model" in document:
            names.append(document["model"])
    texts = [name for name in names if isinstance(name, str) and name]
    if len(texts) != len(names):
        raise HttpError(400, "'model' must be the name of a model; nothing was done")
    return texts
