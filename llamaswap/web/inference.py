"""The model routes: what a request asks for, from its head and body.

Authentication, name, profile, selector, filters, in this order; then the proxy handler takes over. Requests from the
listening socket and from the Klein app come here alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import define, evolve, field

from llamaswap.config import Config, Selector
from llamaswap.errors import BadRequest, BodyTooLarge, NoModelNamed
from llamaswap.observe.worker import RunBlocking, at_once
from llamaswap.proxy.exchange import Exchange, RequestHead
from llamaswap.proxy.task import Task
from llamaswap.routing.interfaces import TargetChoice
from llamaswap.routing.router import Router
from llamaswap.web.auth import refuse_cross_site
from llamaswap.web.error_response import send_response
from llamaswap.web.errors import HttpError
from llamaswap.web.head_facts import Authenticate, HeadFacts, facts_of
from llamaswap.web.job_list import OwnJobs
from llamaswap.web.jobs import (
    JOB_PATHS,
    JobDirectory,
    JobFollower,
    JobPath,
    input_file,
    job_path,
    may_be_job_path,
    readable,
)
from llamaswap.web.jobs import RESPONSES as RESPONSE_JOB
from llamaswap.web.ollama_requests import OLLAMA_ROUTES, OllamaRequests
from llamaswap.web.ollama_sink import plain_head
from llamaswap.web.proxy_handler import ProxyHandler
from llamaswap.web.proxy_request import ProxyRequest
from llamaswap.web.request_content import RequestContent, parse_json, read_content, short_json
from llamaswap.web.responses import CONTINUED_LIMIT, LARGEST, OWNER_LIMIT, ResponseKeeper, ResponseStore, given_items
from llamaswap.web.responses import PATHS as KEPT_PATHS
from llamaswap.web.target import Target
from llamaswap.web.websockets import EARLY_TOGETHER, RESPONSES, AcceptedWebsocket, is_websocket_route, no_websocket
from llamaswap.wire.byte_budget import ByteBudget, TakenBytes
from llamaswap.wire.filters import FilterError, is_bounded
from llamaswap.wire.form import form_value
from llamaswap.wire.json_body import JsonBody
from llamaswap.wire.json_members import LARGE
from llamaswap.wire.model_routes import MODEL_ROUTES
from llamaswap.wire.ollama import DEFAULT_TAG
from llamaswap.wire.openai import encode

JSON_ROUTES = frozenset(route.path.encode() for route in MODEL_ROUTES if route.body == "json")
POST_ROUTES = frozenset(route.path.encode() for route in MODEL_ROUTES if route.method == "POST")
FORM_ROUTES = POST_ROUTES - JSON_ROUTES
QUERY_ROUTES = frozenset(route.path.encode() for route in MODEL_ROUTES if route.body == "query")
ALL_ROUTES = POST_ROUTES | QUERY_ROUTES
OWN_ROUTES = ALL_ROUTES - OLLAMA_ROUTES  # whose bodies are those of the servers
PLAIN_ROUTES = POST_ROUTES - OLLAMA_ROUTES - KEPT_PATHS - {path for path in POST_ROUTES if job_path(path)}

PAGE_NOT_FOUND = [(b"Content-Type", b"text/plain; charset=utf-8"), (b"X-Content-Type-Options", b"nosniff")]
JSON_TYPE = [(b"Content-Type", b"application/json")]
# What llama.cpp's router says of itself: its web UI and other clients then ask for the states of the models.
ROUTER_PROPERTIES = encode(
    {
        "role": "router",
        "models_autoload": True,
        "model_alias": "llamaswap",
        "model_path": "none",
        "default_generation_settings": {"params": {}, "n_ctx": 0},
        "build_info": "llamaswap",
    }
)
JOB_METHODS = (b"GET", b"HEAD", b"POST", b"DELETE")


def is_model_path(method: bytes, path: bytes) -> bool:
    """Whether a model serves this method on this raw path."""
    if method == b"POST":
        return path in POST_ROUTES
    return method in (b"GET", b"HEAD") and path in QUERY_ROUTES


# A client reads these again and again, so a GET or HEAD of them does not load a model.
READ_PATHS = frozenset((b"/props", b"/slots"))


def load_refusal(head: RequestHead, model: str) -> str | None:
    """Why a request on a model route does not load its model; None: it does."""
    path = head.path
    if head.method == b"HEAD" or (head.method == b"GET" and path in READ_PATHS):
        request_line = f"{head.method.decode()} {path.decode('latin-1')}"
        return f"model {model} is not loaded, and {request_line} does not load it; a POST to a model route does"
    if head.method != b"POST" and path.startswith(JOB_PATHS):
        return f"model {model} is not loaded, so it has no jobs"
    if path == RESPONSES and head.method == b"GET":
        return f"model {model} is not loaded, and whether its server has websockets is known only when it is"
    if form_value(head.query, "autoload").lower() == "false":
        return f"model {model} is not loaded, and the request has autoload=false"
    return None


@define(eq=False)
class Inference:
    """Serves the model routes, and every POST that names a known model and whose path is not another route's.

    `avoided(peer id)` says whether a failover should try this peer last, `other_route(path)` whether the path belongs
    to another route.
    """

    router: Router
    handler: ProxyHandler
    authenticate: Authenticate
    avoided: Callable[[str], bool] = lambda peer: False
    run: RunBlocking = at_once
    other_route: Callable[[bytes], bool] = lambda path: True
    jobs: JobDirectory = field(init=False)
    responses: ResponseStore = field(init=False)
    _ollama: OllamaRequests = field(init=False)
    _continued: ByteBudget = field(
        factory=lambda: ByteBudget("continued responses", lambda _: CONTINUED_LIMIT), init=False
    )
    _early: ByteBudget = field(
        factory=lambda: ByteBudget("early websocket events", lambda _: EARLY_TOGETHER), init=False
    )

    def __attrs_post_init__(self) -> None:
        self.jobs = JobDirectory(self.router, self.handler.clock)
        self.responses = ResponseStore(self.handler.clock)
        self._ollama = OllamaRequests(self.router, self.handler, self.run)

    def is_model_route(self, head: RequestHead) -> bool:
        """Whether `serve` responds to this request, which may be one of the Ollama API, enabled or not."""
        served = is_model_path(head.method, head.path) or is_websocket_route(head)
        served = served or (head.method in JOB_METHODS and job_path(head.path) is not None)
        return served or (head.method == b"POST" and not self.other_route(head.path))

    def serve(self, exchange: Exchange) -> Task:
        """Respond to one request; see `ProxyHandler.serve`."""
        return self.handler.serve(exchange, self.prepare)

    async def prepare(self, exchange: Exchange) -> ProxyRequest | None:
        """Find out which model the request asks for and what it will send. Raises what becomes an error response.

        None if an unknown path names no known model, and if the request only unloads one or asks for the properties of
        none: it got its response.
        """
        config, method, path = self.router.config, exchange.head.method, exchange.head.path
        if method == b"POST" and path in PLAIN_ROUTES:
            facts, content = await self._read(exchange, config)
        elif (about := job_path(path)) is not None:
            return await self._about_job(exchange, config, about)
        elif is_websocket_route(exchange.head):
            facts, content = await self._opened(exchange, config)
        elif path in OLLAMA_ROUTES and config.ollama.enabled:
            exchange.head = plain_head(exchange.head)
            facts, content = await self._read(exchange, config)
            content = await self._ollama.translated(exchange, content)
            if content.model.endswith(DEFAULT_TAG) and not self._names_model(content, config):
                content.rename(content.model.removesuffix(DEFAULT_TAG))
        elif is_model_path(method, path) and path not in OLLAMA_ROUTES:
            if keeping := path in KEPT_PATHS and method == b"POST":
                exchange.head = readable(exchange.head)
            facts, content = await self._read(exchange, config)
            if keeping and content.json is not None:
                await self._continue(facts, content, content.json)
            if path == b"/props" and not (content.model or config.routing.default_model):
                send_response(exchange, 200, JSON_TYPE, ROUTER_PROPERTIES)
                return None
        else:
            try:
                facts, content = await self._read(exchange, config, wants_json=True)
                found = self._names_model(content, config) and not may_be_job_path(path)
            except HttpError:
                found = False  # without a key it does not matter whether the body names a model
            if not found:
                send_response(exchange, 404, PAGE_NOT_FOUND, b"404 page not found\n")
                return None
        try:
            return await self._for_content(exchange, facts, content)
        except BaseException:
            if content.reserved is not None:
                content.reserved.release()
            raise

    async def _continue(self, facts: HeadFacts, content: RequestContent, json: JsonBody) -> None:
        """Put what it continues into the input of a request for a response, and see that its response is kept."""
        if any(map(json.repeats, ("previous_response_id", "background"))):
            raise BadRequest("the request's body has previous_response_id or background twice")
        owner, previous = facts.access.name, json.scalar("previous_response_id")
        given = given_items(json.raw("input")) if previous or json.size <= LARGEST else b""
        if json.flag("background"):
            facts.access.require_no_token_limit("a response in the background")
            content.job = JobFollower(self.jobs, owner, JobPath(RESPONSE_JOB, "", ""), b"POST")
        elif json.raw("store") != b"false" and json.size <= LARGEST:
            content.keeper = ResponseKeeper(self.responses, owner, previous, given)
        if not previous:
            return
        try:
            context = self.responses.context(owner, previous)
        except HttpError as error:
            of_peer = Target.named(facts.config, content.model).peer is not None
            if error.status == 400 and of_peer and not self.responses.is_of_another(owner, previous):
                return  # the peer may have it
            raise
        size = sum(map(len, context)) + json.size
        if size > OWNER_LIMIT:
            raise BodyTooLarge(OWNER_LIMIT)
        content.reserved = TakenBytes.of(self._continued, size)
        json.set_raw("input", b"[" + b",".join((*context, given) if given else context) + b"]")
        json.delete("previous_response_id")
        text = json.render()
        content.json, content.short = await parse_json(text, self.run), content.short and len(text) <= LARGE

    async def _about_job(self, exchange: Exchange, config: Config, path: JobPath) -> ProxyRequest | None:
        """A request about a job, for the server that has it, or for the model that is to have it."""
        head = exchange.head
        if head.method == b"DELETE":
            refuse_cross_site(head.first)
        if not path.part:
            exchange.head = head = readable(head)
        facts, content = await self._read(exchange, config)
        owner = facts.access.name
        if path.kind == RESPONSE_JOB:
            kept = self.responses.answer(owner, head.method, path.id, path.part, head.query)
            if kept is not None:
                send_response(exchange, 200, JSON_TYPE, kept)
                return None
        job = self.jobs.of_client(facts.access, path.kind, path.id, names_model=bool(content.model))
        content.job = JobFollower(self.jobs, owner, path, head.method, job)
        if path.kind == "batches" and head.method == b"POST" and not path.id:
            facts.access.require_unbounded("a batch")
            file = input_file(facts.access, content.json)
            of_file = self.jobs.of_client(facts.access, "files", file, names_model=True)
            job = None if content.model else of_file  # where its file is
        if job is None:
            if head.method == b"GET" and not path.id and not facts.access.sees_all_jobs:
                OwnJobs.install(exchange, facts, content.job)
            return await self._for_content(exchange, facts, content)
        target = job.target(config)
        facts.access.require_model(job.name, *target.names)
        if head.method == b"POST":
            target = evolve(target, load_refusal=None)
        return await self._request(exchange, facts, content, target)

    async def _opened(self, exchange: Exchange, config: Config) -> tuple[HeadFacts, RequestContent]:
        """What a websocket is for; it is accepted if only its first event can tell."""
        facts, content = await self._read(exchange, config)
        optional = exchange.head.path == RESPONSES
        if optional and facts.access.limited:
            raise no_websocket("the API key has limits, and what a websocket uses is not counted")
        facts.access.require_counted(False)
        facts.access.require_ruled(False)
        if not content.model and optional and not config.routing.default_model:
            raise no_websocket("it names no model in its query")
        if not content.model and not optional:
            content.websocket = AcceptedWebsocket(exchange, self.handler.clock, self._early)
            content.model = await content.websocket.model()
        return facts, content

    async def _for_content(self, exchange: Exchange, facts: HeadFacts, content: RequestContent) -> ProxyRequest | None:
        """The request for the model that the content names; None if it only unloads it."""
        config, head = facts.config, exchange.head
        plain = self.router.profile is None
        target = facts.targets.get(content.model) if plain else None
        access, asked = facts.access, content.model
        access.require_ruled(content.json is not None or head.method != b"POST" or head.path in FORM_ROUTES)
        known = not access.key.max_tokens or head.path in OWN_ROUTES or content.ollama is not None
        access.require_bounded(known or head.method != b"POST" or is_bounded(facts.path))
        if access.models is not None and asked:
            content.rename(asked)  # also where the server could read another name than was read here
        if target is not None:
            if access.models is not None:
                access.require_model(asked, *target.names)
            return await self._request(exchange, facts, content, target)
        self._resolve(content, config)
        if content.ollama is not None and content.ollama.request.unloads:
            self._ollama.unload(content.model, content.ollama, facts)
            return None
        selector = config.selectors.get(content.model)
        if selector is None:
            target = self._target(config, content.model, head, content.streaming)
            access.require_model(asked or content.model, *target.names)
            access.require_counted(not target.bypass)
            if plain and target.model is not None and not target.model.send_loading_state:
                facts.targets[content.model] = target
            return await self._request(exchange, facts, content, target)
        return await self._selected(exchange, facts, content, selector, asked)

    async def _selected(
        self, exchange: Exchange, facts: HeadFacts, content: RequestContent, selector: Selector, asked: str
    ) -> ProxyRequest:
        """The request for the target that a selector chooses. `asked` is the name that the client sent."""
        choice = self.router.choose(selector.id)
        try:
            names: Sequence[str] = (choice.target,)
            if selector.strategy == "failover":
                names = sorted((choice.target, *choice.others), key=lambda name: self._is_avoided(facts.config, name))
            targets = [self._target(facts.config, name, exchange.head, content.streaming) for name in names]
            for target in targets:
                facts.access.require_model(asked or selector.id, selector.id, *target.names)
                facts.access.require_counted(not target.bypass)
            return await self._request(exchange, facts, content, targets[0], choice, targets[1:])
        except BaseException:
            choice.release()
            raise

    async def _read(
        self, exchange: Exchange, config: Config, *, wants_json: bool = False
    ) -> tuple[HeadFacts, RequestContent]:
        """The facts about the request's head, and its content."""
        head, facts = exchange.head, facts_of(exchange, config, self.authenticate)
        short = short_json(exchange.body, head.query) if facts.json and not wants_json else None
        wants_json = wants_json or head.path in JSON_ROUTES
        content = short or await read_content(head, exchange.body, wants_json=wants_json, run=self.run)
        if head.method == b"POST" and self.jobs.hides_files(facts.access):
            await self.jobs.require_own_files(facts.access, content.json_text, self.run)
        return facts, content

    def _names_model(self, content: RequestContent, config: Config) -> bool:
        name = content.model
        profile = config.profiles.get(self.router.profile or "")
        pinned = profile is not None and name in profile.pins
        return pinned or bool(config.members(name)) or not self._is_unknown(name, config)

    def _is_unknown(self, name: str, config: Config) -> bool:
        return name not in config.selectors and Target.named(config, name).unknown

    def _resolve(self, content: RequestContent, config: Config) -> None:
        """Replace the name by the default model's if it is missing, by its pin, or by that of a member of the group or
        tag."""
        if not content.model and config.routing.default_model:
            content.rename(config.routing.default_model)
        profile = config.profiles.get(self.router.profile or "")
        pin = profile.pins.get(content.model) if profile is not None and content.model else None
        if pin is not None:
            content.rename(pin)
        if not content.model:
            raise NoModelNamed()
        if (members := config.members(content.model)) and self._is_unknown(content.model, config):
            ready = (member for member in members if self.router.state(member) == "ready")
            content.rename(next(ready, members[0]))

    def _is_avoided(self, config: Config, name: str) -> bool:
        peer = config.peer(name) if config.real(name) is None else None
        return peer is not None and self.avoided(peer[0])

    async def _request(
        self,
        exchange: Exchange,
        facts: HeadFacts,
        content: RequestContent,
        target: Target,
        choice: TargetChoice | None = None,
        others: Sequence[Target] = (),
    ) -> ProxyRequest:
        """The request for `target`, with the others to fall back on, and its body as the target gets it.

        A content that cannot be sent is recorded like the failures that come later.
        """
        if target.peer is not None or (others and any(one.peer is not None for one in others)):
            listed = is_model_path(exchange.head.method, exchange.head.path) or is_websocket_route(exchange.head)
            facts.access.require_model_path(listed or is_bounded(facts.path) or content.job is not None)
        request = ProxyRequest.of(
            exchange,
            facts,
            target,
            path=facts.path,
            raw_target=facts.target if content.ollama is None else content.ollama.request.target.encode(),
            stored_path=facts.stored_path,
            streaming=content.streaming,
            metered=exchange.head.method == b"POST",
        )
        request.ollama, request.ttl = content.ollama, content.ttl
        request.job, request.keeper, request.reserved = content.job, content.keeper, content.reserved
        request.websocket = is_websocket_route(exchange.head)
        request.prefers_post = request.websocket and exchange.head.path == RESPONSES
        if content.websocket is not None and target.own_name != content.model:
            content.websocket.rename(target.own_name)
        if choice is not None:
            request.choice, request.other_targets = choice, [*others]
            request.content = content.copy() if others else None
            request.metadata["selector"] = content.model
            content.rename(target.name)
        try:
            if content.short:
                request.send_short(content)
            else:
                await request.send_content(content, self.run)
        except (BadRequest, FilterError) as error:
            request.failure = error
        return request

    def _target(self, config: Config, name: str, head: RequestHead, streaming: bool) -> Target:
        target = Target.named(config, name)
        if target.model is None:
            return target
        shows_loading = target.model.send_loading_state and streaming and head.path == b"/v1/chat/completions"
        return target.of_request(head, load_refusal(head, target.model.id), shows_loading=shows_loading)
