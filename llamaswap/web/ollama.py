"""The Ollama API beside its inference requests: which models there are, which are loaded, and what they can do.

The names are those of /v1/models. What this server cannot do answers 501 with the reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256

from attrs import AttrsInstance, asdict, define, field, frozen
from twisted.web.resource import IResource

from llamaswap.config import Filters, Model
from llamaswap.routing.router import Router
from llamaswap.web.admin_request import TEXT, AdminRequest, JsonObject, Response, json_answer
from llamaswap.web.errors import HttpError
from llamaswap.web.listing import ListingEndpoints, ModelRecord
from llamaswap.web.memory_api import MemorySource
from llamaswap.web.model_list import quant_of
from llamaswap.web.ollama_sink import timestamp
from llamaswap.web.route import Route, RouteTable
from llamaswap.wire.filters import IF_ABSENT
from llamaswap.wire.ollama import DEFAULT_TAG

MIB = 1 << 20
NEVER = "2318-01-01T00:00:00.000000+00:00"  # when a model expires that is never unloaded; clients cannot read null
RUNNING = Response(200, b"Ollama is running", TEXT)  # what clients look for at /

_PARAMETERS = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?(?:x\d+)?[bBmM])(?![A-Za-z0-9])")
_FAMILY = re.compile(r"[A-Za-z]+\d*")
_EMBEDDER = re.compile(r"(?i)embed|(^|[-_/])(bge|gte|e5|minilm)[-_]")
_UNSUPPORTED = "this server cannot do that: {}"


@frozen
class ModelDetails:
    """What a model is, as far as its name and its command say."""

    format: str = ""
    family: str = ""
    families: list[str] = field(factory=list)
    parameter_size: str = ""
    quantization_level: str = ""
    parent_model: str = ""


@frozen
class TagEntry:
    """A model of the list."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: JsonObject


@frozen
class TagList:
    """The models."""

    models: list[TagEntry]


@frozen
class LoadedModel:
    """A loaded model: `size` are the bytes of memory it uses, `size_vram` those of GPUs."""

    name: str
    model: str
    size: int
    digest: str
    details: JsonObject
    expires_at: str
    size_vram: int
    context_length: int


@frozen
class LoadedList:
    """The loaded models."""

    models: list[LoadedModel]


@frozen
class ShowDocument:
    """A model in detail."""

    modelfile: str
    parameters: str
    template: str
    system: str
    details: JsonObject
    model_info: JsonObject
    capabilities: list[str]
    modified_at: str


@frozen
class NamedBody:
    """A body that names a model."""

    model: str


route = RouteTable("ollama", Route)


@define(eq=False)
class OllamaEndpoints:
    """/api/tags, /api/ps, /api/show and what is not supported.

    `listing` has the names, `memory` the sizes. `fallback` serves the POST requests while the API is switched off: a
    model's server may have it. `now` gives unix seconds.
    """

    router: Router
    listing: ListingEndpoints
    memory: MemorySource
    fallback: IResource
    now: Callable[[], float]
    _since: str = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._since = timestamp(self.now())

    # -- which models there are ----------------------------------------------------------------------------

    @route("GET", "/api/tags", cross_origin=True, scope="any", answer=TagList)
    def tags(self, call: AdminRequest) -> Response:
        """Every name that a request may use now, as Ollama lists its models. Its copies and created models are aliases
        here, so these are listed too."""
        self._enabled()
        sizes = self._needs()
        entries = [
            TagEntry(
                record.id,
                record.id,
                self._since,
                sizes.get(self._real(record.id), 0),
                self._digest(record.id),
                self._details(record.id),
            )
            for record in sorted(self.listing.visible(call, aliases=True), key=lambda record: record.id)
        ]
        return json_answer({"models": [_all_members(entry) for entry in entries]})

    @route("GET", "/api/ps", scope="any", answer=LoadedList)
    def loaded(self, call: AdminRequest) -> Response:
        """The models that are loaded, with the memory they use and when they will be unloaded."""
        self._enabled()
        config, used = self.router.config, self._used()
        found: dict[str, LoadedModel] = {}
        for status in self.router.running():
            model = config.models.get(status.model)
            name = "" if model is None else model.replica_of or model.id
            if model is None or status.state != "ready" or not call.access.may_know(name, config):
                continue
            before = found.get(name)
            size, vram = used.get(model.id, (0, 0))
            found[name] = LoadedModel(
                name,
                name,
                size + (before.size if before is not None else 0),
                self._digest(name),
                self._details(name),
                self._expires(model),
                vram + (before.size_vram if before is not None else 0),
                self.listing.capabilities(config.models.get(name, model)).context,
            )
        return json_answer({"models": [_all_members(entry) for entry in found.values()]})

    @route(
        "POST", "/api/show", changes_state=False, cross_origin=True, scope="any", body=NamedBody, answer=ShowDocument
    )
    def show(self, call: AdminRequest) -> Response | IResource:
        """What a model is and can do."""
        if not self.router.config.ollama.enabled:
            return self.fallback
        record = self._record(call, _named(call))
        architecture = _family(record.id)
        info: JsonObject = {"general.architecture": architecture, "general.basename": record.name or record.id}
        if record.context_length:
            info[f"{architecture}.context_length"] = record.context_length
        model = self._model(record.id)
        filters = Filters() if model is None else model.filters
        system, given = filters.system_prompt_by_id.get(record.id, ""), filters.set_params_by_id.get(record.id, {})
        parameters = {"num_ctx": record.context_length} if record.context_length else {}
        parameters |= {name.removesuffix(IF_ABSENT): value for name, value in given.items()}
        document = ShowDocument(
            f"# llamaswap serves this model with the command in its configuration.\nFROM {record.id}\n",
            "\n".join(_parameter_lines(parameters)),
            # Editors look for .Suffix before they ask for an insertion, which llama.cpp's server knows.
            "{{ .Prompt }}{{ .Suffix }}" if model is not None and "llama-server" in model.cmd else "{{ .Prompt }}",
            system,
            self._details(record.id),
            info,
            list(_capabilities(record, model)),
            self._since,
        )
        return json_answer(_all_members(document))

    # -- what is not supported -----------------------------------------------------------------------------

    @route("POST", "/api/push", body=NamedBody, status=501)
    def push(self, call: AdminRequest) -> Response | IResource:
        """Refused: models are not uploaded from here."""
        return self._refused("models are not uploaded; use the tools of the place where they are published")

    @route("POST HEAD", "/api/blobs/<string:digest>", status=501)
    def blob(self, call: AdminRequest) -> Response | IResource:
        """Refused: models are not made from uploaded files."""
        return self._refused("models are not made from uploaded files; put the file on the server, and add the model")

    def _refused(self, reason: str) -> IResource:
        if not self.router.config.ollama.enabled:
            return self.fallback
        raise HttpError(501, _UNSUPPORTED.format(reason))

    # -- shared parts --------------------------------------------------------------------------------------

    def _enabled(self) -> None:
        if not self.router.config.ollama.enabled:
            raise HttpError(404, "the Ollama API is switched off by ollama.enabled")

    def _record(self, call: AdminRequest, name: str) -> ModelRecord:
        records = {record.id: record for record in self.listing.visible(call, unlisted=True)}
        record = records.get(name) or records.get(name.removesuffix(DEFAULT_TAG))
        if record is None:
            raise HttpError(404, f"model {name!r} not found")
        return record

    def _model(self, name: str) -> Model | None:
        return self.router.config.models.get(self._real(name))

    def _real(self, name: str) -> str:
        return self.router.config.real(name) or name

    def _digest(self, name: str) -> str:
        model = self._model(name)
        text = name if model is None else f"{model.id}\0{model.cmd}"
        return sha256(text.encode("utf-8", "replace")).hexdigest()

    def _details(self, name: str) -> JsonObject:
        return _all_members(model_details(name, self._model(name)))

    def _expires(self, model: Model) -> str:
        left = self.router.seconds_until_idle(model.id)
        if left is None and model.ttl > 0 and model.id not in self.router.pinned:
            left = model.ttl  # it is in use: from the end of its requests on
        return NEVER if left is None else timestamp(self.now() + left)

    def _used(self) -> dict[str, tuple[int, int]]:
        """The bytes that each loaded model uses, and those of GPUs among them."""
        found: dict[str, tuple[int, int]] = {}
        for device, model, size in _uses(self.memory.document()):
            total, vram = found.get(model, (0, 0))
            found[model] = total + size, vram + (0 if device == "ram" else size)
        return found

    def _needs(self) -> dict[str, int]:
        """The bytes that each model is expected to use, as far as they are known."""
        needs = self.memory.document().get("needs")
        found: dict[str, int] = {}
        for model, need in (needs if isinstance(needs, dict) else {}).items():
            ram, gpus = need["ram_mib"], need["gpus"]
            found[model] = (ram + sum(gpus[0] if gpus else ())) * MIB
        return found


def model_details(name: str, model: Model | None) -> ModelDetails:
    """What is known from a model's name and its command."""
    text = f"{name} {model.cmd if model is not None else ''}"
    parameters = _PARAMETERS.search(text)
    family = _family(name)
    return ModelDetails(
        "gguf" if ".gguf" in text or "GGUF" in text else "",
        family,
        [family],
        parameters[1].upper() if parameters is not None else "",
        quant_of((text,)) or "",
    )


def embeds_only(name: str, model: Model | None) -> bool:
    """Whether a model makes embeddings, and no text, as far as its name and its command say."""
    return _EMBEDDER.search(name) is not None or (model is not None and "--embedding" in model.cmd)


def _uses(document: JsonObject) -> Iterator[tuple[str, str, int]]:
    devices = document.get("devices")
    for device in devices if isinstance(devices, list) else ():
        for row in device["models"]:
            yield device["device"], row["model"], row["mib"] * MIB


def _parameter_lines(parameters: Mapping[str, object]) -> Iterator[str]:
    """Each value of each parameter on a line, a text in quotes: clients read the lines by a pattern."""
    for name, value in parameters.items():
        for one in value if isinstance(value, (list, tuple)) else (value,):
            yield f"{name} {json.dumps(one, ensure_ascii=False)}"


def _all_members(record: AttrsInstance) -> JsonObject:
    """A record as an object with all its members: clients fail without some of them."""
    return asdict(record, recurse=False)


def _named(call: AdminRequest) -> str:
    body = call.json_object("the request's body is not a JSON object")
    name = body.get("model") or body.get("name")
    if not isinstance(name, str):
        raise HttpError(400, "'model' must be the name of a model")
    return name


def _family(name: str) -> str:
    found = _FAMILY.match(name.rpartition("/")[2])
    return found[0].lower() if found is not None else "unknown"


def _capabilities(record: ModelRecord, model: Model | None) -> Iterator[str]:
    """What clients may ask of a model. One whose capabilities are not configured may be able to call tools."""
    words = f"{record.id} {model.cmd if model is not None else ''}"
    if embeds_only(record.id, model):
        yield "embedding"
        return
    yield "completion"
    if record.supported_parameters or not record.architecture.output_modalities:
        yield "tools"
    if "image" in record.architecture.input_modalities:
        yield "vision"
    if "llama-server" in words:
        yield "insert"
