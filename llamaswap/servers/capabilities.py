"""What running servers report about their models: the context length and the kinds of input, for listings.

llama.cpp reports them under /props, vLLM and SGLang report the context length in /v1/models. A server is asked when its
first requests have been served; if it does not answer, its model is listed without these facts.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, evolve, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from llamaswap.config import Capabilities, Model
from llamaswap.events import CapabilitiesFound, EventBus, StateChanged
from llamaswap.servers.engine_request import authorization, json_of, member, number
from llamaswap.servers.server_request import GetResponse
from llamaswap.servers.supervisor_protocol import ServerStatus

log = Logger()

ASK_DELAY = 1.0  # seconds from readiness: requests that waited for the model come first
ASK_TIMEOUT = 5.0  # seconds for all requests to one server
CONTEXT_LIMIT = 1 << 31  # tokens; a larger number is a mistake of the server
KINDS = {"vision": "image", "audio": "audio"}  # a modality of llama.cpp: its name in the configuration


@define(eq=False)
class CapabilityDirectory:
    """Knows what servers reported, also after their models were unloaded; a changed command forgets it.

    `model` and `status` give a model's present definition (None: it has none) and its server.
    """

    clock: IReactorTime
    get: GetResponse
    bus: EventBus
    model: Callable[[str], Model | None]
    status: Callable[[str], ServerStatus]
    _found: dict[str, tuple[str, Capabilities]] = field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self.bus.subscribe(StateChanged, self._changed)

    def of(self, model: Model) -> Capabilities:
        """A model's configured capabilities, and those that its server reported where none are configured."""
        configured = model.capabilities
        cmd, found = self._found.get(model.id, ("", configured))
        if cmd != model.cmd:
            return configured
        inputs = configured.inputs if configured.inputs or configured.outputs else found.inputs
        return evolve(configured, inputs=inputs, context=configured.context or found.context)

    def _changed(self, event: StateChanged) -> None:
        if event.new == "ready":
            self.ask_soon(event.model)

    def ask_soon(self, model: str) -> None:
        """Ask a model's server in a moment, if it is ready then and the command has not changed."""
        definition = self.model(model)
        if definition is not None:
            self.clock.callLater(ASK_DELAY, self._ask, definition)

    def _ask(self, asked: Model) -> None:
        model = self.model(asked.id)
        if model is not None and model.cmd == asked.cmd and (status := self.status(model.id)).state == "ready":
            Deferred.fromCoroutine(self._learn(model, status))

    async def _learn(self, model: Model, status: ServerStatus) -> None:
        until = self.clock.seconds() + ASK_TIMEOUT
        try:
            found = from_props(*await self._get(status, "/props", until))
            if not found.context:
                found = evolve(found, context=from_model_list(*await self._get(status, "/v1/models", until)))
        except Exception as error:  # whatever it is, only the listing lacks something
            log.debug("{model}: its server did not report its capabilities: {error}", model=model.id, error=error)
            return
        if found != Capabilities() and self._found.get(model.id) != (model.cmd, found):
            self._found[model.id] = model.cmd, found
            self.bus.publish(CapabilitiesFound(model.id))

    async def _get(self, status: ServerStatus, path: str, until: float) -> tuple[int, object]:
        """The status and the JSON of a response, {} if it is not JSON."""
        assert status.endpoint is not None  # its server is ready
        limit = max(0.0, until - self.clock.seconds())
        response = await self.get(status.endpoint, path, limit, authorization(status.cmd))
        return response.status, json_of(response)


def from_props(status: int, answer: object) -> Capabilities:
    """The capabilities in a response of llama.cpp's /props: the context of one slot, which is that of one request."""
    if status != 200:
        return Capabilities()
    kinds = [kind for name, kind in KINDS.items() if member(member(answer, "modalities"), name) is True]
    context = number(member(answer, "default_generation_settings"), "n_ctx")
    return Capabilities(inputs=("text", *kinds) if kinds else (), context=_plausible(context))


def from_model_list(status: int, answer: object) -> int:
    """The context length in a response of /v1/models; 0 if it has none, or if its models differ in it."""
    models = member(answer, "data")
    if status != 200 or not isinstance(models, list):
        return 0
    lengths = {number(model, "max_model_len") or number(member(model, "meta"), "n_ctx_train") for model in models}
    return _plausible(lengths.pop()) if len(lengths) == 1 else 0


def _plausible(context: int) -> int:
    return context if context < CONTEXT_LIMIT else 0
