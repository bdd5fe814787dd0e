"""LM Studio's list of the models, with their states and context lengths.

Its inference paths are model routes; they are forwarded as those of the OpenAI API.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from attrs import define, field, frozen

from llamaswap.web.admin_request import AdminRequest, Response, json_answer
from llamaswap.web.errors import HttpError
from llamaswap.web.listing import ListingEndpoints, ModelRecord
from llamaswap.web.ollama import embeds_only, model_details
from llamaswap.web.route import Route, RouteTable

_REPOSITORY = re.compile(r"(?:^|\s)(?:-hfr?|--hf-repo|--model|serve)[\s=]+([\w.-]+)/[\w.-]+(?=[\s:]|$)")
_MLX = re.compile(r"(?i)\bmlx")


@frozen
class StudioModel:
    """A model as LM Studio's clients read it. The lengths are given if they are known; `loaded_context_length` also
    says that the model is loaded."""

    id: str
    object: str
    type: str
    publisher: str
    arch: str
    compatibility_type: str
    quantization: str
    state: str
    max_context_length: int | None = None
    loaded_context_length: int | None = None
    capabilities: list[str] = field(factory=list)


@frozen
class StudioList:
    """The models."""

    object: str
    data: list[StudioModel]


route = RouteTable("lmstudio", Route)


@define(eq=False)
class LmStudioEndpoints:
    """/api/v0/models. `listing` has the names."""

    listing: ListingEndpoints

    @route("GET", "/api/v0/models", cross_origin=True, scope="any", answer=StudioList)
    def models(self, call: AdminRequest) -> Response:
        """Every name that a request may use now, as LM Studio lists its models."""
        return json_answer(StudioList("list", list(self._entries(call))))

    @route("GET", "/api/v0/models/<rest:model>", cross_origin=True, scope="any", answer=StudioModel)
    def model(self, call: AdminRequest) -> Response:
        """One name that a request may use, listed or not."""
        name = call.variables["model"]
        for record in self.listing.visible(call, unlisted=True):
            if record.id == name:
                return json_answer(self._entry(record))
        raise HttpError(404, f"model {name!r} not found", "model_not_found")

    def _entries(self, call: AdminRequest) -> Iterator[StudioModel]:
        return map(self._entry, sorted(self.listing.visible(call), key=lambda record: record.id))

    def _entry(self, record: ModelRecord) -> StudioModel:
        config, state = self.listing.router.config, self.listing.router.state
        model = config.models.get(config.real(record.id) or "")
        details, command = model_details(record.id, model), "" if model is None else model.cmd
        # Only a model that is ready serves at once; the listing of OpenAI's API counts one that is loading too.
        loaded = model is not None and any(state(copy) == "ready" for copy in config.copies(model.id))
        repository = _REPOSITORY.search(command)
        kind = "vlm" if "image" in record.architecture.input_modalities else "llm"
        context = record.context_length or None
        return StudioModel(
            id=record.id,
            object="model",
            type="embeddings" if embeds_only(record.id, model) else kind,
            publisher=repository[1] if repository is not None else record.id.rpartition("/")[0],
            arch=details.family,
            # Clients know only these two; most servers that are neither take what is meant for the first.
            compatibility_type="mlx" if _MLX.search(command) else "gguf",
            quantization=details.quantization_level,
            state="loaded" if loaded else "not-loaded",
            max_context_length=context,
            loaded_context_length=context if loaded else None,
            capabilities=["tool_use"] if record.supported_parameters else [],
        )
