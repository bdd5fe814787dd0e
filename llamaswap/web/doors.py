"""The model routes and the passthrough in the map: their methods are known here, their work is done elsewhere.

They stand in the map so that a wrong method gets its 405 and the API document lists them.
"""

from __future__ import annotations

from attrs import define
from twisted.web.resource import IResource

from llamaswap.web.calls import Answer, Call, redirect
from llamaswap.web.routes import Query, Route, Table


@define(eq=False)
class Doors:
    """Hands requests over. All three resources are leaves: they read the raw target themselves."""

    model_routes: IResource
    passthrough: IResource
    comfyui: IResource

    def model(self, call: Call) -> IResource:
        """An inference request."""
        return self.model_routes

    def upstream(self, call: Call) -> IResource:
        """A request to one model's own server."""
        return self.passthrough

    def comfy(self, call: Call) -> IResource:
        """A request to the ComfyUI model."""
        return self.comfyui

    def comfy_slash(self, call: Call) -> Answer:
        """ComfyUI's links are relative to its folder."""
        location = f"/comfyui/?{call.query_string}" if call.query_string else "/comfyui/"
        return redirect(location, 301 if call.method in (b"GET", b"HEAD") else 308, call.method)


_table = Table(Doors, "inference")
_JSON_ROUTES = (
    ("/v1/chat/completions", "OpenAI chat"),
    ("/v1/responses", "OpenAI responses"),
    ("/v1/completions", "OpenAI completions"),
    ("/v1/messages", "Anthropic messages"),
    ("/v1/messages/count_tokens", "Anthropic token count"),
    ("/v1/embeddings", "Embeddings"),
    ("/reranking", "Rerank documents"),
    ("/rerank", "Rerank documents"),
    ("/v1/rerank", "Rerank documents"),
    ("/v1/reranking", "Rerank documents"),
    ("/infill", "llama.cpp infill"),
    ("/completion", "llama.cpp completion"),
    ("/v1/audio/speech", "Text to speech"),
    ("/v1/audio/voices", "Voices"),
    ("/v1/images/generations", "Text to image"),
    ("/sdapi/v1/txt2img", "Text to image (stable-diffusion API)"),
    ("/sdapi/v1/img2img", "Image to image (stable-diffusion API)"),
    ("/audioapi/v1/tasks/run", "Audio task, forwarded as /v1/tasks/run"),
    *(
        (f"/v/{name}", f"Forwarded as /{name}")
        for name in (
            *("chat/completions", "responses", "completions", "messages", "messages/count_tokens"),
            *("embeddings", "rerank", "reranking"),
        )
    ),
)
_FORM_ROUTES = (("/v1/audio/transcriptions", "Speech to text"), ("/v1/images/edits", "Edit an image"))
_QUERY_ROUTES = (
    ("/v1/audio/voices", "Voices of a model"),
    ("/sdapi/v1/loras", "LoRAs of a model"),
    ("/props", "llama.cpp properties of a model"),
)
_named = (Query("model", "Which model to ask."),)

ROUTES: tuple[Route, ...] = (
    *(_table.post(rule, Doors.model, about, own_gate=True, body="Inference") for rule, about in _JSON_ROUTES),
    *(_table.post(rule, Doors.model, about, own_gate=True, body="InferenceForm") for rule, about in _FORM_ROUTES),
    *(_table.get(rule, Doors.model, about, own_gate=True, query=_named) for rule, about in _QUERY_ROUTES),
    _table.any("/upstream/<rest:path>", Doors.upstream, "One model's own server", own_gate=True, content="*/*"),
    _table.any("/comfyui", Doors.comfy_slash, "To /comfyui/", content="text/html", status=301),
    _table.any("/comfyui/<rest:path>", Doors.comfy, "The ComfyUI model", own_gate=True, content="*/*"),
)
