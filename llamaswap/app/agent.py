"""The agent: llamaswap on another host, whose models a front decides about. `hosts join` starts it.

It is the ordinary service with two differences. Its models come from the front, one by one, and it listens with one
interface alone: every request needs the token of the hosts. A start carries the number of the front's process and of
its decision; the agent refuses what is older than what it knows, so that of two fronts, or of a front that was cut off
for a while, the older one cannot change anything.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from hmac import compare_digest
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from attrs import define, evolve, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from llamaswap.app.host_files import HostFiles
from llamaswap.cluster.agent_protocol import (
    MAX_MODELS,
    MAX_TEXT,
    CommandResult,
    EngineState,
    HostState,
    StateVersion,
    agent_config,
    needs_of,
    result_document,
    sizes_of,
    state_document,
    stop_identity,
)
from llamaswap.config import diff, load
from llamaswap.config.endpoints import TOKEN_HEADER
from llamaswap.config.ports import keep
from llamaswap.errors import ConfigError, LlamaswapError, ShuttingDown
from llamaswap.events import StateChanged
from llamaswap.proxy.exchange import Exchange, RequestHead
from llamaswap.proxy.forward import RequestForwarder
from llamaswap.proxy.task import Task
from llamaswap.proxy.upstream import UpstreamTarget
from llamaswap.web.error_response import send_response
from llamaswap.web.upstream_request import joined
from llamaswap.wire import headers as header_rules

if TYPE_CHECKING:
    from llamaswap.app.parts import ServiceParts

log = Logger()

BODY_LIMIT = 1 << 20  # bytes of a request that is not for a model
NEEDS_LIMIT = 1 << 24  # bytes of what all models need
LONGEST_WAIT = 5.0  # seconds that a request for the state waits for a change
CHECK_INTERVAL = 1.0  # seconds between two looks at whether the front is there
DEFAULT_GRACE = 600.0
LEAVE_GRACE = 5.0  # seconds; if the host is to leave, no longer is waited for a front that might come back
_TOKEN = TOKEN_HEADER.lower().encode()


def agent_token(environ: Mapping[str, str]) -> str:
    """The token of the hosts, as Ray's processes have it too. Raises ValueError."""
    path = environ.get("RAY_AUTH_TOKEN_PATH")
    token = Path(path).read_text(encoding="ascii").strip() if path else environ.get("RAY_AUTH_TOKEN", "")
    if not token:
        raise ValueError("an agent needs the token of the hosts; `llamaswap hosts join` starts it with one")
    return token


class Refused(Exception):
    """A request of the front is refused; `status` is that of the response."""

    def __init__(self, status: int, message: str, missing: str = "") -> None:
        super().__init__(message)
        self.status, self.missing = status, missing


@define(eq=False)
class Agent:
    """Serves the front's requests on the parts of a service."""

    parts: ServiceParts
    name: str
    token: bytes = field(repr=False)
    incarnation: str = field(factory=lambda: uuid.uuid4().hex)
    front: int = field(default=0, init=False)
    grace: float = field(default=DEFAULT_GRACE, init=False)
    leaving: bool = field(default=False, init=False)
    engines: dict[str, EngineState] = field(factory=dict, init=False)
    _definitions: dict[str, Mapping[str, object]] = field(factory=dict, init=False)
    _stops: dict[str, tuple[int, int]] = field(factory=dict, init=False)
    _heard: float = field(default=0.0, init=False)
    _number: int = field(default=1, init=False)
    _waiting: list[Deferred[None]] = field(factory=list, init=False)
    _checks: IDelayedCall | None = field(default=None, init=False)
    _ledger: object = field(default=None, init=False)
    _forwarder: RequestForwarder = field(init=False)
    _files: HostFiles = field(init=False)

    def __attrs_post_init__(self) -> None:
        reactor = self.parts.context.reactor
        self._heard = reactor.seconds()
        self._forwarder = RequestForwarder(reactor, self.parts.models.pool)
        self._files = HostFiles(reactor, self.parts.models.disk_thread, self.changed)
        self.parts.context.bus.subscribe(StateChanged, self._state_changed)
        self._checks = reactor.callLater(CHECK_INTERVAL, self._check)

    # -- requests ------------------------------------------------------------------------------------------

    def serve(self, exchange: Exchange) -> Task:
        """Respond to a request; the task never fails."""
        return Task(self._serve(exchange))

    async def _serve(self, exchange: Exchange) -> None:
        head = exchange.head
        try:
            if not compare_digest(head.first(_TOKEN) or b"", self.token):
                raise Refused(401, "the token of the hosts is missing or wrong")
            words = head.path.decode("latin-1").split("/")
            if words[1] == "engine" and len(words) > 4:
                await self._relay(exchange, words[2], unquote(words[3]), words)
                return
            document = await self._answer(head, exchange, [unquote(word) for word in words[1:]])
            _respond(exchange, 200, document)
        except Refused as error:
            _respond(exchange, error.status, {"error": str(error), "missing": error.missing})
        except Exception as error:
            if not isinstance(error, LlamaswapError):
                log.failure("a request of the front failed: {path}", path=head.path)
            if not exchange.gone:
                exchange.sink.abort()  # the front sees at once that it has no response

    async def _relay(self, exchange: Exchange, identity: str, model: str, words: list[str]) -> None:
        """Pass a request on to a model's server. Without it the connection is cut: the front knows what to do then."""
        engine, head = self.engines.get(model), exchange.head
        endpoint = self.parts.models.router.status(model).endpoint if engine is not None else None
        if engine is None or endpoint is None or f"{engine.front}.{engine.generation}" != identity:
            exchange.sink.abort()
            return
        rest = ("/" + "/".join(words[4:])).encode("latin-1")
        raw = rest + (b"?" + head.query if b"?" in head.target else b"")
        sent = header_rules.to_local([item for item in head.headers if item[0].lower() != _TOKEN], socket_address="")
        upstream = UpstreamTarget(endpoint, self.parts.models.router.config.models[model].timeouts, model)
        forwarded = RequestHead(head.method, joined(endpoint, raw), sent, head.version)
        await self._forwarder.forward(exchange, upstream, head=forwarded, body=exchange.body)

    async def _answer(self, head: RequestHead, exchange: Exchange, words: list[str]) -> dict[str, object]:
        body = await exchange.body.read_all(NEEDS_LIMIT if words == ["needs"] else BODY_LIMIT)
        try:
            document = json.loads(body) if body.strip() else {}
            if head.method == b"GET" and words == ["state"]:
                given = dict(part.partition("=")[::2] for part in head.query.decode("latin-1").split("&"))
                if unquote(given.get("host", self.name)) != self.name:
                    # Two hosts at one address are one: its memory must not count twice.
                    raise Refused(421, f"the agent of {self.name} listens at its address")
                wait = min(float(given.get("wait", 0)), LONGEST_WAIT)
                return await self._state(int(given.get("after", 0)), int(given["front"]), float(given["grace"]), wait)
            if head.method == b"POST" and words == ["leave"]:
                return self._leave()
            if head.method == b"POST" and words == ["needs"]:
                self._know_front(int(document["front"]))
                self._files.need(needs_of(document))
                return {}
            if head.method == b"POST" and len(words) == 3 and words[0] == "models":
                identity = int(document["front"]), int(document["generation"])
                if words[2] == "start":
                    new = EngineState(
                        *identity, "starting", str(document["digest"]), sizes=sizes_of(document.get("sizes", {}))
                    )
                    return self._start(words[1], new, document["definition"])
                if words[2] == "stop":
                    return self._stop(words[1], identity)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise Refused(400, f"the request cannot be understood: {error!r}") from None
        raise Refused(404, f"an agent has no {head.path.decode('latin-1')}")

    def _know_front(self, front: int) -> None:
        """Refuse an older front; a newer one takes over what runs."""
        if front < self.front:
            raise Refused(409, f"a newer front ({self.front}) uses this host")
        if front > self.front:
            log.info("front {front} uses this host", front=front)
            self.front = front
            self.changed()
        self._heard = self.parts.context.reactor.seconds()

    async def _state(self, after: int, front: int, grace: float, wait: float) -> dict[str, object]:
        """The state of the host; if it is still number `after`, it is waited for a change."""
        self._know_front(front)
        self.grace = max(1.0, min(grace, 86400.0))
        if self._look_at_memory() == after:
            waiter: Deferred[None] = Deferred()
            self._waiting.append(waiter)
            waiter.addTimeout(max(0.1, wait), self.parts.context.reactor).addErrback(lambda _: None)
            await waiter
            self._waiting = [one for one in self._waiting if one is not waiter]
        return state_document(self.state())

    def _look_at_memory(self) -> int:
        """The number of the state, which is another one if the memory has changed."""
        ledger = self.parts.memory.monitor.ledger
        if ledger is not self._ledger:
            self._ledger = ledger
            self.changed()
        return self._number

    def state(self) -> HostState:
        """How the host is now."""
        router, memory, now = self.parts.models.router, self.parts.memory, self.parts.context.reactor.seconds()
        engines = {}
        for model, engine in self.engines.items():
            status = router.status(model)
            engines[model] = evolve(
                engine,
                up=now - status.ready_at if status.ready_at is not None else 0.0,
                load_seconds=status.load_seconds[-1] if status.load_seconds else 0.0,
                command=" ".join(status.cmd)[:MAX_TEXT],
            )
        return HostState(
            self.incarnation,
            self._number,
            self.front,
            memory.monitor.ledger,
            engines,
            memory.names,
            self._files.missing,
            self._files.cached,
            self.leaving,
        )

    def changed(self) -> None:
        """The state is another one."""
        self._number += 1
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.called:
                waiter.callback(None)

    # -- models --------------------------------------------------------------------------------------------

    def _start(self, model: str, new: EngineState, definition: object) -> dict[str, object]:
        identity = new.identity
        self._know_front(identity[0])
        known = self.engines.get(model)
        if known is not None and known.identity >= identity:
            if known.identity == identity:
                return self._result(model, identity)  # the same request again
            raise Refused(409, f"a later decision about {model} is in force")
        if identity <= self._stops.get(model, (0, 0)):  # on another connection, so they can arrive in any order
            raise Refused(409, f"this start of {model} has been stopped already")
        if self.leaving:
            raise Refused(422, "this host is leaving")
        if not isinstance(definition, dict) or len(self._definitions) >= MAX_MODELS:
            raise Refused(400, "a definition is needed, of at most 10000 models")
        definitions = {**self._definitions, model: definition}
        try:
            loaded = load([agent_config(definitions)], os.environ)
        except ConfigError as error:
            raise Refused(422, f"this host cannot use the definition of {model}: {error}") from None
        router = self.parts.models.router
        self._definitions = definitions
        config = keep(router.config, loaded.config)  # with another port a server would be restarted
        self.parts.apply(config, diff(router.config, config))
        problem = router.start_problem(model)
        if problem:
            raise Refused(422, problem, missing=problem)
        self.engines[model] = new
        self.changed()
        # A process of an earlier decision ends first.
        router.unload([model]).addBoth(self._load, model, identity)
        return self._result(model, identity)

    def _result(self, model: str, identity: tuple[int, int]) -> dict[str, object]:
        """The result of a command about this process."""
        engine = self.engines.get(model)
        runs = engine is not None and engine.identity <= identity
        return result_document(CommandResult(StateVersion(self.incarnation, self._number), runs))

    def _load(self, _: object, model: str, identity: tuple[int, int]) -> None:
        engine = self.engines.get(model)
        if engine is not None and engine.identity == identity and engine.state == "starting":
            self.parts.models.router.load(model, "front").addCallbacks(
                lambda _: self._started(model, identity), lambda failure: self._failed(model, identity, failure)
            )

    def _started(self, model: str, identity: tuple[int, int]) -> None:
        if self.parts.models.router.state(model) == "ready":
            self._note(model, identity, "ready", "")
        else:
            self._note(model, identity, "stopped", "the server ended at once")

    def _failed(self, model: str, identity: tuple[int, int], failure: Failure) -> None:
        if failure.check(ShuttingDown):
            return  # the end of this agent follows, after which the front loads the model elsewhere
        self._note(model, identity, "stopped", failure.getErrorMessage(), getattr(failure.value, "exit_status", None))

    def _note(
        self, model: str, identity: tuple[int, int], state: str, error: str, exit_status: int | None = None
    ) -> None:
        engine = self.engines.get(model)
        if engine is None or engine.identity != identity or engine.state == "stopping":
            return
        tail = self.parts.models.router.log_tail(model)[-MAX_TEXT:] if error else ""
        self.engines[model] = evolve(engine, state=state, error=error, exit_status=exit_status, tail=tail)
        self.changed()

    def _stop(self, model: str, identity: tuple[int, int]) -> dict[str, object]:
        self._know_front(identity[0])
        self._stops[model] = max(identity, self._stops.pop(model, identity))
        while len(self._stops) > MAX_MODELS:
            self._stops.pop(next(iter(self._stops)))
        engine = self.engines.get(model)
        if engine is not None and engine.identity <= identity and engine.state != "stopping":
            self.engines[model] = evolve(engine, state="stopping")
            self.changed()
            self.parts.models.router.unload([model]).addBoth(self._stopped, model, engine.identity)
        return self._result(model, identity)

    def _stopped(self, _: object, model: str, identity: tuple[int, int]) -> None:
        engine = self.engines.get(model)
        if engine is not None and engine.identity == identity:
            del self.engines[model]
            self._definitions.pop(model, None)
            self.changed()

    def _state_changed(self, event: StateChanged) -> None:
        """A server that was ready has exited."""
        engine = self.engines.get(event.model)
        if engine is not None and engine.state == "ready" and event.new in ("stopped", "shutdown"):
            error = self.parts.models.router.status(event.model).last_error or "the server ended"
            self._note(event.model, engine.identity, "stopped", error)

    def _leave(self) -> dict[str, object]:
        """`join` is to end: the front loads nothing more here, and stops what runs when its requests have ended."""
        if not self.leaving:
            log.info("this host leaves: {models} are stopped", models=", ".join(self.engines) or "no models")
            self.leaving = True
            self.changed()
        return {"models": sorted(self.engines)}

    # -- without a front -----------------------------------------------------------------------------------

    def _check(self) -> None:
        """Stop everything if no front has asked for longer than the grace."""
        reactor = self.parts.context.reactor
        self._checks = reactor.callLater(CHECK_INTERVAL, self._check)
        self._look_at_memory()
        running = [model for model, engine in self.engines.items() if engine.state != "stopping"]
        silent, grace = reactor.seconds() - self._heard, min(self.grace, LEAVE_GRACE) if self.leaving else self.grace
        if running and silent > grace:
            log.warn("no front has answered for {grace:.0f} s: stopping {models}", grace=grace, models=running)
            for model in running:
                self._stop(model, stop_identity(self.front, self.engines[model].identity))

    def close(self) -> None:
        """The service ends."""
        self._files.close()
        if self._checks is not None:
            self._checks.cancel()
            self._checks = None


def _respond(exchange: Exchange, status: int, document: Mapping[str, object]) -> None:
    body = json.dumps(document).encode()
    send_response(exchange, status, [(b"Content-Type", b"application/json")], body)
