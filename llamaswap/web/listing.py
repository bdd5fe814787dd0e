"""GET /v1/models: what can be asked for by name, and the facts about each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from attrs import define

from llamaswap.config import Config, Model
from llamaswap.proxy.peers import PeerDirectory
from llamaswap.routing.router import Router
from llamaswap.web.admin_request import AdminRequest, Response, json_answer
from llamaswap.web.route import RouteTable

LOADED_STATES = frozenset(("starting", "ready", "stopping"))
# The four members a non-empty capabilities block speaks for; user metadata of the same name would contradict it.
CAPABILITY_KEYS = ("architecture", "capabilities", "supported_parameters", "context_length")

Record = dict[str, Any]


@define(eq=False)
class ListingEndpoints:
    """The model listing. `now` gives unix seconds."""

    router: Router
    now: Callable[[], float]
    peers: PeerDirectory | None = None

    def models(self, call: AdminRequest) -> Response:
        """Every name a request may use now, ascending."""
        records = sorted(self._records(int(self.now())), key=lambda record: str(record["id"]).encode())
        origin = call.first(b"origin")
        headers = ((b"Access-Control-Allow-Origin", origin),) if origin else ()
        return json_answer({"object": "list", "data": records}, headers=headers)

    def _records(self, created: int) -> Iterator[Record]:
        config = self.router.config
        failing = {failure.model: failure.count for failure, _ in self.router.failing()}
        for model in config.models.values():
            if not model.unlisted:
                yield from self._local(config, model, created, failing.get(model.id, 0))
        for peer in config.peers.values():
            facts = {"type": "peer", "peerID": peer.id}
            if self.peers is not None and self.peers.health(peer.id).state != "unknown":
                facts["health"] = self.peers.health(peer.id).state
            for name in peer.models:
                yield record(f"{peer.id}/{name}", created, f"{peer.id}: {name}", "", facts, loaded=False)
        for selector in config.selectors.values():
            if not selector.unlisted:
                meta: dict[str, Any] = {
                    **selector.metadata,
                    "type": "selector",
                    "strategy": selector.strategy,
                    "targets": list(selector.targets),
                }
                if selector.strategy == "spillover":
                    meta["spillover"] = selector.spillover
                loaded = self._selector_loaded(config, selector.strategy, selector.targets)
                yield record(selector.id, created, selector.name, selector.description, meta, loaded=loaded)
        yield from self._pins(config, created)

    def _local(self, config: Config, model: Model, created: int, failures: int) -> Iterator[Record]:
        loaded = self.router.state(model.id) in LOADED_STATES
        block = capability_members(model)
        shared = {key: value for key, value in model.metadata.items() if not (block and key in CAPABILITY_KEYS)}
        aliases = every_alias(model)
        meta = {**shared, "type": "model"}
        if aliases:
            meta["aliases"] = aliases
        if failures:
            meta["failures"] = failures
        yield record(model.id, created, model.name, model.description, meta, loaded=loaded, members=block)
        if config.include_aliases_in_list:
            for alias in aliases:
                if alias.strip():
                    meta = {**shared, "type": "alias", "modelID": model.id}
                    yield record(alias, created, model.name, model.description, meta, loaded=loaded, members=block)

    def _selector_loaded(self, config: Config, strategy: str, targets: Iterable[str]) -> bool:
        considered = list(targets)[:1] if strategy == "pin" else targets
        for target in considered:
            real = config.real(target)
            if real is not None and self.router.state(real) in ("ready", "starting"):
                return True
        return False

    def _pins(self, config: Config, created: int) -> Iterator[Record]:
        profile = config.profiles.get(self.router.profile) if self.router.profile is not None else None
        if profile is None:
            return
        for name, target in profile.pins.items():
            known = config.real(name) is not None or config.peer(name) is not None or name in config.selectors
            if target and not known:
                yield record(name, created, "", "", {"type": "profile"}, loaded=False)


def record(
    name: str,
    created: int,
    title: str | None,
    description: str | None,
    meta: Mapping[str, Any],
    *,
    loaded: bool,
    members: Mapping[str, Any] | None = None,
) -> Record:
    """One entry of the listing; what is empty is left out."""
    entry: Record = {"id": name, "object": "model", "created": created, "owned_by": "llama-swap"}
    for key, text in (("name", title), ("description", description)):
        if text and text.strip():
            entry[key] = text.strip()
    entry.update(members or {})
    entry["meta"] = {"llamaswap": dict(meta)}
    if "context_length" in entry:
        entry["meta"]["n_ctx"] = entry["context_length"]
    entry["status"] = {"value": "loaded" if loaded else "unloaded"}
    return entry


def every_alias(model: Model) -> list[str]:
    """The other names of a model: its aliases and the keys of setParamsByID, each once, in order."""
    names = dict.fromkeys(model.aliases)
    names.update(dict.fromkeys(key for key in model.filters.set_params_by_id if key != model.id))
    return list(names)


def capability_flags(model: Model) -> dict[str, bool]:
    """The true ones among the flags that clients look for."""
    block = model.capabilities
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


def capability_members(model: Model) -> dict[str, Any]:
    """The record members a model's capabilities block speaks for; empty when the block is."""
    block = model.capabilities
    members: dict[str, Any] = {}
    architecture: dict[str, Any] = {}
    if block.inputs:
        architecture["input_modalities"] = list(block.inputs)
    if block.outputs:
        architecture["output_modalities"] = list(block.outputs)
    if block.inputs and block.outputs:
        architecture["modality"] = "+".join(block.inputs) + "->" + "+".join(block.outputs)
    if architecture:
        members["architecture"] = architecture
    flags = capability_flags(model)
    if flags:
        members["capabilities"] = flags
    if block.tools:
        members["supported_parameters"] = ["tools", "tool_choice"]
    if block.context:
        members["context_length"] = block.context
    return members


_table = RouteTable(ListingEndpoints, "models")
ROUTES = (
    _table.get("/v1/models", ListingEndpoints.models, "Every name a request may use", schema="ModelList"),
    _table.get("/models", ListingEndpoints.models, "The same as /v1/models", schema="ModelList"),
)
