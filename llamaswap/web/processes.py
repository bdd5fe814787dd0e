"""Which servers run, and how to start, stop and judge them."""

from __future__ import annotations

from typing import Any

from attrs import define

from llamaswap.config import Config
from llamaswap.config.diagnostics import nearest
from llamaswap.routing.interfaces import HealthSnapshot
from llamaswap.routing.router import Router
from llamaswap.web.admin_request import AdminRequest, Response, first_json, json_answer, text_answer
from llamaswap.web.errors import HttpError
from llamaswap.web.route import QueryParameter, RouteTable
from llamaswap.web.secret_masking import known_secrets, masked_text
from llamaswap.web.shield import shielded

# Who waits, waits for a load or for somebody's request. With neither under way a waiter is one that was forgotten;
# so long it may take a stop or an effect to be performed.
FORGOTTEN_AFTER = 15.0


def stalled(vitals: HealthSnapshot) -> bool:
    """Whether requests are queued but nothing is in progress that could serve them."""
    idle = not vitals.loading and not vitals.serving
    return vitals.oldest_waiter is not None and vitals.oldest_waiter > FORGOTTEN_AFTER and idle


@define(eq=False)
class ProcessEndpoints:
    """/running, /unload, /health and their kin."""

    router: Router

    def running(self, call: AdminRequest) -> Response:
        """The servers that are not stopped, by model id; those that sleep and those that fail beside them, if any."""
        models, secrets = self.router.config.models, known_secrets(self.router.config)
        rows: list[dict[str, Any]] = []
        for status in self.router.running():
            model = models.get(status.model)
            rows.append(
                {
                    "model": status.model,
                    "state": status.state,
                    "cmd": masked_text(model.cmd, secrets) if model else "",
                    "proxy": masked_text(model.proxy, secrets) if model else "",
                    "ttl": model.ttl if model else 0,
                    "name": (model.name if model else "") or "",
                    "description": (model.description if model else "") or "",
                }
            )
        told: dict[str, Any] = {"running": sorted(rows, key=lambda row: str(row["model"]))}
        sleeping = [{"model": status.model, "pid": status.pid} for status in self.router.suspended()]
        if sleeping:
            told["sleeping"] = sleeping
        failing = failures(self.router, self.router.config)
        if failing:
            told["failing"] = [{"model": name, **facts} for name, facts in failing.items()]
        return json_answer(told)

    async def unload_all(self, call: AdminRequest) -> Response:
        """Stop the named models' servers, every server where none is named; answers when they are gone."""
        await self._unload(call)
        return text_answer("OK")

    async def unload_all_json(self, call: AdminRequest) -> Response:
        """The same, answered in JSON."""
        await self._unload(call)
        return json_answer({"msg": "ok"})

    async def _unload(self, call: AdminRequest) -> None:
        names = _named(call)
        if not names:
            await shielded(self.router.unload(), "unloading all models")
            return
        config = self.router.config
        reals = []
        for name in names:
            real = config.real(name)
            if real is None:
                near = nearest(name, list(config.models))
                hint = f"; did you mean {near!r}?" if near else ""
                raise HttpError(404, f"model {name!r} not found, nothing is unloaded{hint}")
            reals.append(real)
        await shielded(self.router.unload(reals), f"unloading {', '.join(reals)}")

    async def unload_one(self, call: AdminRequest) -> Response:
        """Stop one model's server (id or alias); also when it was not running."""
        real = self.router.config.real(call.variables["model"])
        if real is None:
            raise HttpError(404, "model not found")
        await shielded(self.router.unload([real]), f"unloading {real}")
        return text_answer("OK")

    def health(self, call: AdminRequest) -> Response:
        """This process serves; says nothing about models and never touches one."""
        return text_answer("OK")

    def ready(self, call: AdminRequest) -> Response:
        """Whether requests move: 503 if requests are queued but nothing is in progress."""
        vitals = self.router.health()
        moves = not stalled(vitals)
        report = {
            "ready": moves,
            "oldest_waiter_seconds": vitals.oldest_waiter,
            "last_decision_seconds": vitals.last_decision,
            "running": len(self.router.running()),
            "waiting": vitals.waiting,
            "serving": vitals.serving,
            "loading": vitals.loading,
        }
        return json_answer(report, 200 if moves else 503)


def _named(call: AdminRequest) -> list[str]:
    """The models that the query or the JSON body names; 400 for a body or a name that cannot be understood."""
    names: list[object] = list(call.query.get("model", []))
    if body := call.body.strip():
        try:
            told = first_json(body)
        except ValueError:
            told = None
        if not isinstance(told, dict):
            raise HttpError(400, 'the body is not a JSON object such as {"model": "name"}, nothing is unloaded')
        if "model" in told:
            names.append(told["model"])
    texts = [name for name in names if isinstance(name, str) and name]
    if len(texts) != len(names):
        raise HttpError(400, "'model' must be the name of a model, nothing is unloaded")
    return texts


def failures(router: Router, config: Config) -> dict[str, dict[str, Any]]:
    """The models that are down because they fail, with how often, why, and when a request may try again."""
    secrets = known_secrets(config)
    return {
        failure.model: {
            "failures": failure.count,
            "retry_in_s": round(retry_in, 3),
            "error": masked_text(failure.cause, secrets),
            "log_tail": [masked_text(line, secrets) for line in failure.tail.splitlines()],
        }
        for failure, retry_in in router.failing()
    }


_table = RouteTable(ProcessEndpoints, "processes")
_PLAIN = "text/plain"
_NAMED = (QueryParameter("model", "Stop only this model's server (id or alias).", repeatable=True),)
ROUTES = (
    _table.get("/running", ProcessEndpoints.running, "The servers that are not stopped", schema="Running"),
    _table.get(
        "/unload",
        ProcessEndpoints.unload_all,
        "Stop the named servers, or every server",
        changes_state=True,
        content=_PLAIN,
        query=_NAMED,
    ),
    _table.get(
        "/models/unload",
        ProcessEndpoints.unload_all,
        "The same as /unload",
        changes_state=True,
        content=_PLAIN,
        query=_NAMED,
    ),
    _table.post(
        "/models/unload",
        ProcessEndpoints.unload_all,
        "The same, the model named in the body",
        changes_state=True,
        content=_PLAIN,
        query=_NAMED,
        body="ModelName",
    ),
    _table.post(
        "/api/models/unload",
        ProcessEndpoints.unload_all_json,
        "Stop the named servers, or every server",
        changes_state=True,
        schema="Message",
        query=_NAMED,
        body="ModelName",
    ),
    _table.post(
        "/api/models/unload/<rest:model>",
        ProcessEndpoints.unload_one,
        "Stop one model's server",
        changes_state=True,
        content=_PLAIN,
    ),
    _table.get("/health", ProcessEndpoints.health, "Whether this process serves", open=True, content=_PLAIN),
    _table.get("/wol-health", ProcessEndpoints.health, "The same, never in the access log", open=True, content=_PLAIN),
    _table.get("/readyz", ProcessEndpoints.ready, "Whether requests move", open=True, schema="Readiness"),
)
