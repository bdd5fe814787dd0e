"""GET /v1/models: every name that a request may use, with the facts about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import attrgetter

from attrs import define, field, frozen

from llamaswap.config import Capabilities, Config, Model
from llamaswap.proxy.peers import UNKNOWN, PeerDirectory
from llamaswap.routing.router import Router
from llamaswap.web.admin_request import AdminRequest, JsonObject, Response, json_answer
from llamaswap.web.errors import HttpError
from llamaswap.web.key_access import KeyAccess
from llamaswap.web.route import Route, RouteTable
from llamaswap.web.secret_masking import known_secrets, masked_text

LOADED_STATES = frozenset(("starting", "ready", "stopping"))
NO_CAPABILITIES = Capabilities()
CAPABILITY_MEMBERS = ("architecture", "capabilities", "supported_parameters", "context_length")


@frozen
class Architecture:
    """What a model reads and writes."""

    input_modalities: list[str] = field(factory=list)
    output_modalities: list[str] = field(factory=list)
    modality: str = ""


@frozen
class ModelRecord:
    """One name of the listing."""

    id: str
    object: str
    created: int
    owned_by: str
    meta: JsonObject
    status: JsonObject
    name: str = ""
    description: str = ""
    architecture: Architecture = Architecture()
    capabilities: dict[str, bool] = field(factory=dict)
    supported_parameters: list[str] = field(factory=list)
    context_length: int = 0


@frozen
class ModelList:
    """The listing."""

    object: str
    data: list[ModelRecord]


route = RouteTable("models", Route)


@define(eq=False)
class ListingEndpoints:
    """The model listing. `now` gives unix seconds, `capabilities` those of a model that are configured or known."""

    router: Router
    now: Callable[[], float]
    peers: PeerDirectory
    capabilities: Callable[[Model], Capabilities] = attrgetter("capabilities")

    @route("GET", "/models", cross_origin=True, scope="any", answer=ModelList, summary="The same as /v1/models")
    @route("GET", "/v1/models", cross_origin=True, scope="any", answer=ModelList)
    @route("GET", "/api/names", scope="any", answer=ModelList, summary="The same as /v1/models, read by the web page")
    def models(self, call: AdminRequest) -> Response:
        """Every name that a request may use now, in ascending order."""
        records = sorted(self.visible(call), key=lambda record: record.id.encode())
        return json_answer(ModelList("list", records), headers=_echoed_origin(call))

    @route("GET", "/v1/models/<rest:model>", cross_origin=True, scope="any", answer=ModelRecord)
    def model(self, call: AdminRequest) -> Response:
        """One name that a request may use, listed or not."""
        name = call.variables["model"]
        if not name:
            return self.models(call)
        for found in self.visible(call, unlisted=True):
            if found.id == name:
                return json_answer(found, headers=_echoed_origin(call))
        raise HttpError(404, f"model {name!r} not found", "model_not_found")

    def visible(self, call: AdminRequest, *, unlisted: bool = False, aliases: bool = False) -> Iterator[ModelRecord]:
        """The names that the client may use; with `unlisted` also those that are not listed, with `aliases` also those
        of listed models."""
        records = self._records(int(self.now()), call.access, unlisted=unlisted, aliases=aliases)
        return (record for record in records if _may_use(call, record))

    def _records(self, created: int, access: KeyAccess, *, unlisted: bool, aliases: bool) -> Iterator[ModelRecord]:
        config = self.router.config
        aliases = aliases or unlisted or config.include_aliases_in_list
        failing = {failure.model: failure.count for failure, _ in self.router.failing()}
        for model in config.models.values():
            if unlisted or not model.unlisted:
                with_aliases = aliases or not access.may_use(model.id)
                yield from self._local(model, created, failing.get(model.id, 0), with_aliases=with_aliases)
        for peer in config.peers.values():
            health = self.peers.health(peer.id).state
            facts = {"type": "peer", "peerID": peer.id, **({} if health == UNKNOWN else {"health": health})}
            for name in peer.models:
                yield record(f"{peer.id}/{name}", created, f"{peer.id}: {name}", "", facts, loaded=False)
            for alias, name in peer.aliases.items():
                origin = {**facts, "modelID": f"{peer.id}/{name}"}
                yield record(alias, created, f"{peer.id}: {name}", "", origin, loaded=False)
        for selector in config.selectors.values():
            if unlisted or not selector.unlisted:
                targets = list(filter(access.may_use, selector.targets))
                choice = {"type": "selector", "strategy": selector.strategy, "targets": targets}
                spillover = {"spillover": selector.spillover} if selector.strategy == "spillover" else {}
                meta = {**selector.metadata, **choice, **spillover}
                loaded = self._selector_loaded(config, selector.strategy, selector.targets)
                yield record(selector.id, created, selector.name, selector.description, meta, loaded=loaded)
        yield from self._pins(config, created)

    def _local(self, model: Model, created: int, failures: int, *, with_aliases: bool) -> Iterator[ModelRecord]:
        loaded = any(self.router.state(name) in LOADED_STATES for name in self.router.config.copies(model.id))
        block = self.capabilities(model)
        # Configured capabilities speak for these members, so metadata of the same name could contradict them.
        hidden = () if model.capabilities == NO_CAPABILITIES else CAPABILITY_MEMBERS
        shared = {key: value for key, value in model.metadata.items() if key not in hidden}
        aliases = every_alias(model)
        optional = {"aliases": aliases, "tags": list(model.tags), "failures": failures}
        names: dict[str, JsonObject] = {model.id: {"type": "model", **{key: v for key, v in optional.items() if v}}}
        for alias in filter(str.strip, aliases if with_aliases else ()):
            names.setdefault(alias, {"type": "alias", "modelID": model.id})
        for name, facts in names.items():
            meta = {**shared, **facts}
            row = record(name, created, model.name, model.description, meta, loaded=loaded, capabilities=block)
            if not loaded and self.router.failure(model.id):
                row.status["failed"] = True
            yield row

    def _selector_loaded(self, config: Config, strategy: str, targets: Iterable[str]) -> bool:
        considered = list(targets)[:1] if strategy == "pin" else targets
        models = filter(None, map(config.real, considered))
        return any(self.router.state(model) in ("ready", "starting") for model in models)

    def _pins(self, config: Config, created: int) -> Iterator[ModelRecord]:
        profile = config.profiles.get(self.router.profile) if self.router.profile is not None else None
        if profile is None:
            return
        for name, target in profile.pins.items():
            known = config.real(name) is not None or config.peer(name) is not None or name in config.selectors
            if target and not known:
                yield record(name, created, "", "", {"type": "profile"}, loaded=False)


def _may_use(call: AdminRequest, record: ModelRecord) -> bool:
    """Whether the client's key may use this name."""
    facts = record.meta["llamaswap"]
    model = facts.get("modelID") if isinstance(facts, dict) else None
    return call.access.may_use(record.id, *filter(None, (model,)))


def _echoed_origin(call: AdminRequest) -> tuple[tuple[bytes, bytes], ...]:
    origin = call.first(b"origin")
    return ((b"Access-Control-Allow-Origin", origin),) if origin else ()


def record(
    name: str,
    created: int,
    title: str | None,
    description: str | None,
    meta: Mapping[str, object],
    *,
    loaded: bool,
    capabilities: Capabilities = NO_CAPABILITIES,
) -> ModelRecord:
    """One record of the listing."""
    takes, gives = list(capabilities.inputs), list(capabilities.outputs)
    both = "+".join(takes) + "->" + "+".join(gives) if takes and gives else ""
    context = {"n_ctx": capabilities.context} if capabilities.context else {}
    return ModelRecord(
        id=name,
        object="model",
        created=created,
        owned_by="llama-swap",
        meta={"llamaswap": dict(meta), **context},
        status={"value": "loaded" if loaded else "unloaded"},
        name=(title or "").strip(),
        description=(description or "").strip(),
        architecture=Architecture(takes, gives, both),
        capabilities=capability_flags(capabilities),
        supported_parameters=["tools", "tool_choice"] if capabilities.tools else [],
        context_length=capabilities.context,
    )


def every_alias(model: Model) -> list[str]:
    """The other names of a model: its aliases and the keys of its filters, each once, in order."""
    names = dict.fromkeys(model.aliases)
    if not model.replica_of:
        names.update(dict.fromkeys(key for key in model.filters.ids if key != model.id))
    return list(names)


def capability_flags(block: Capabilities) -> dict[str, bool]:
    """The true ones among the flags that clients look for."""
    takes, gives = set(block.inputs), set(block.outputs)
    both = bool(takes and gives)
    flags = {
        "vision": "image" in takes,
        "audio_transcriptions": both and "audio" in takes and "text" in gives,
        "audio_speech": both and "text" in takes and "audio" in gives,
        "image_generation": both and "text" in takes and "image" in gives,
        "image_to_image": both and "image" in takes and "image" in gives,
        "function_calling": block.tools,
        "reranker": block.reranker,
    }
    return {name: True for name, value in flags.items() if value}


def status_rows(
    router: Router, peers: PeerDirectory, capabilities: Callable[[Model], Capabilities] = attrgetter("capabilities")
) -> list[JsonObject]:
    """Every model with its state, then the models of the peers: the `modelStatus` event.

    `failed` is why a stopped model failed when it was last started or used.
    """
    config = router.config
    secrets = known_secrets(config)
    suspended = {status.model for status in router.suspended()}
    rows: list[JsonObject] = []
    for model in sorted(config.models.values(), key=lambda model: model.id):
        state, block = router.state(model.id), capabilities(model)
        failure = router.failure(model.id)
        optional = {
            "aliases": every_alias(model),
            "tags": list(model.tags),
            "capabilities": capability_flags(block),
            "context_length": block.context,
            "asleep": model.id in suspended,
            "replica_of": model.replica_of,
            "host": router.shown_host(model.id),
            "failed": masked_text(failure, secrets) if failure else "",
        }
        rows.append(
            {
                "id": model.id,
                "name": model.name or "",
                "description": model.description or "",
                "state": state if state in LOADED_STATES else "stopped",
                "unlisted": model.unlisted,
                "peerID": "",
                **{key: value for key, value in optional.items() if value},
            }
        )
    for peer in config.peers.values():
        health = peers.health(peer.id).state
        shared = {"name": "", "description": "", "state": "", "unlisted": False, "peerID": peer.id}
        aliases: dict[str, list[str]] = {}
        for alias, name in peer.aliases.items():
            aliases.setdefault(name, []).append(alias)
        for name in peer.models:
            optional = {"aliases": aliases[name]} if name in aliases else {}
            rows.append({"id": f"{peer.id}/{name}", **shared, **optional, "peerHealth": health})
    return rows
