"""The model routes, in one table: where a request names its model, how it is documented, what a capture leaves out.

The routes, their rows in the API document, and what captures leave out are made from this table.
"""

from __future__ import annotations

from typing import Literal

from attrs import frozen


@frozen
class ModelRoute:
    """A method and a path that are served by a model. A GET route answers HEAD too.

    `body` says what names the model: "json" (a JSON body), "form" (a form, usually multipart) or "query" (the query
    alone). A capture leaves the request's body out without `keep_request`, and the answer's without `keep_response`.
    """

    method: Literal["POST", "GET"]
    path: str
    body: Literal["json", "form", "query"]
    summary: str
    keep_request: bool = True
    keep_response: bool = True


def _json(path: str, summary: str, *, keep_request: bool = True, keep_response: bool = True) -> ModelRoute:
    return ModelRoute("POST", path, "json", summary, keep_request, keep_response)


def _forwarded(path: str) -> ModelRoute:
    return _json(f"/v{path}", f"Forwarded as {path}")


def _lmstudio(path: str) -> ModelRoute:
    return _json(f"/api/v0{path}", f"LM Studio's name of /v1{path}")


MODEL_ROUTES: tuple[ModelRoute, ...] = (
    _json("/v1/chat/completions", "OpenAI chat"),
    _json("/v1/responses", "OpenAI responses"),
    _json("/v1/completions", "OpenAI completions"),
    _json("/v1/messages", "Anthropic messages"),
    _json("/v1/messages/count_tokens", "Anthropic token count"),
    _json("/v1/chat/completions/batch", "OpenAI chat, several at once"),
    _json("/v1/chat/completions/input_tokens", "OpenAI token count of a chat"),
    _json("/v1/responses/input_tokens", "OpenAI token count of a response's input"),
    _json("/v1/embeddings", "Embeddings"),
    _json("/v1/moderations", "OpenAI moderations"),
    _json("/reranking", "Rerank documents"),
    _json("/rerank", "Rerank documents"),
    _json("/v1/rerank", "Rerank documents"),
    _json("/v1/reranking", "Rerank documents"),
    _json("/v2/rerank", "Rerank documents"),
    _json("/score", "vLLM scores"),
    _json("/v1/score", "vLLM scores"),
    _json("/classify", "vLLM classification"),
    _json("/pooling", "vLLM pooling"),
    _json("/v1/pooling", "vLLM pooling"),
    _json("/tokenize", "Tokens of a text"),
    _json("/v1/tokenize", "Tokens of a text"),
    _json("/infill", "llama.cpp infill"),
    _json("/completion", "llama.cpp completion"),
    _json("/v1/audio/speech", "Text to speech", keep_response=False),
    _json("/v1/audio/voices", "Voices", keep_request=False),
    _json("/v1/images/generations", "Text to image", keep_response=False),
    _json("/sdapi/v1/txt2img", "Text to image (stable-diffusion API)", keep_response=False),
    _json("/sdapi/v1/img2img", "Image to image (stable-diffusion API)", keep_request=False, keep_response=False),
    _json("/api/chat", "Ollama chat"),
    _json("/api/generate", "Ollama completion"),
    _json("/api/embed", "Ollama embeddings"),
    _json("/api/embeddings", "Ollama embedding of one text"),
    _lmstudio("/chat/completions"),
    _lmstudio("/completions"),
    _lmstudio("/embeddings"),
    _json("/audioapi/v1/tasks/run", "Audio task, forwarded as /v1/tasks/run"),
    _forwarded("/chat/completions"),
    _forwarded("/responses"),
    _forwarded("/completions"),
    _forwarded("/messages"),
    _forwarded("/messages/count_tokens"),
    _forwarded("/embeddings"),
    _forwarded("/rerank"),
    _forwarded("/reranking"),
    ModelRoute("POST", "/v1/audio/transcriptions", "form", "Speech to text", keep_request=False),
    ModelRoute("POST", "/v1/audio/translations", "form", "Speech to English text", keep_request=False),
    ModelRoute(
        "POST", "/v1/images/variations", "form", "Variations of an image", keep_request=False, keep_response=False
    ),
    ModelRoute("POST", "/v1/images/edits", "form", "Edit an image", keep_request=False, keep_response=False),
    ModelRoute("POST", "/v1/videos", "form", "Begin to make a video", keep_request=False),
    ModelRoute("POST", "/v1/files", "form", "Upload a file for a batch", keep_request=False),
    _json("/v1/batches", "Begin a batch"),
    ModelRoute("GET", "/v1/videos", "query", "Videos of a loaded model", keep_request=False),
    ModelRoute("GET", "/v1/files", "query", "Files of a loaded model", keep_request=False),
    ModelRoute("GET", "/v1/batches", "query", "Batches of a loaded model"),
    ModelRoute("GET", "/v1/audio/voices", "query", "Voices of a model", keep_request=False),
    ModelRoute("GET", "/sdapi/v1/loras", "query", "LoRAs of a model"),
    ModelRoute("GET", "/props", "query", "llama.cpp properties of a loaded model"),
    ModelRoute("GET", "/slots", "query", "llama.cpp slots of a loaded model"),
)

_TEXT = ("/chat/completions", "/completions", "/responses", "/messages", "/completion", "/infill")


def generates_text(path: str) -> bool:
    """Whether a model writes text for a request on this path; as a stream it is one of events."""
    return path.endswith(_TEXT)
