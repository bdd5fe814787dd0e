"""The Ollama API's inference requests as requests of the OpenAI API, which local servers understand.

Only text is translated here: which model a name means, and whether it is loaded, is decided elsewhere. Responses are
translated by `ollama_response`.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from math import inf, isfinite

from attrs import frozen

from llamaswap.errors import BadRequest

JsonObject = dict[str, object]

# The paths whose requests a model serves. The others of the API are in `web/ollama`.
CHAT, GENERATE, EMBED, EMBEDDINGS = "/api/chat", "/api/generate", "/api/embed", "/api/embeddings"
INFERENCE_PATHS = frozenset((CHAT, GENERATE, EMBED, EMBEDDINGS))
ADMIN_PATHS = frozenset(
    ("/api/tags", "/api/ps", "/api/show", "/api/pull", "/api/copy", "/api/delete", "/api/create", "/api/push")
)
BLOBS = "/api/blobs/"  # what the other paths of the API begin with
DEFAULT_TAG = ":latest"
FOREVER = 100 * 365 * 86400.0  # seconds; a longer time counts as for ever

# Options that servers know under the same name.
SAME_OPTIONS = (
    *("temperature", "top_p", "min_p", "typical_p", "presence_penalty", "frequency_penalty"),
    *("repeat_penalty", "mirostat_tau", "mirostat_eta"),
)
WHOLE_OPTIONS = {
    "top_k": "top_k",
    "seed": "seed",
    "num_predict": "max_tokens",
    "num_keep": "n_keep",
    "repeat_last_n": "repeat_last_n",
    "mirostat": "mirostat",
}
EFFORTS = {"low": "low", "medium": "medium", "high": "high", "max": "high"}  # of `think`: the OpenAI API's

# Go's durations, which are written as in 1h30m or 300s.
UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)", re.ASCII)
_WHOLE_DURATION = re.compile(rf"([-+]?)((?:{_DURATION.pattern})+)", re.ASCII)
_IMAGES = ((b"\x89PNG", "png"), (b"\xff\xd8", "jpeg"), (b"GIF8", "gif"), (b"RIFF", "webp"), (b"BM", "bmp"))


@frozen
class TranslatedRequest:
    """A request of the Ollama API in the terms of the OpenAI API.

    `path` is the one that was asked, `target` the one to forward to with `body`. `keep_alive` are the seconds that the
    model is kept when it is unused (None: the request does not say, infinity: for ever). `empty`: it generates nothing,
    and only loads or unloads the model. `think` False: the client wants no thinking. `context` is `num_ctx`, if given.
    """

    path: str
    target: str
    body: JsonObject
    model: str
    streaming: bool
    keep_alive: float | None = None
    empty: bool = False
    think: bool = True
    context: int | None = None

    @property
    def unloads(self) -> bool:
        """Whether all it asks for is to unload the model."""
        return self.empty and self.keep_alive is not None and self.keep_alive <= 0


def translate(path: str, data: bytes) -> TranslatedRequest:
    """The request of an inference path with this JSON body. Raises BadRequest."""
    try:
        asked = json.loads(data)
    except (ValueError, RecursionError):
        asked = None
    if not isinstance(asked, dict):
        raise BadRequest("the request's body is not a JSON object")
    return {CHAT: _chat, GENERATE: _generate, EMBED: _embed, EMBEDDINGS: _embed}[path](path, asked)


def keep_alive_of(value: object) -> float | None:
    """The seconds of a `keep_alive`: a number of seconds or a duration of Go; negative is for ever. Raises
    BadRequest."""
    if value is None:
        return None
    seconds: float | None = None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value) if isfinite(value) else None
    elif isinstance(value, str):
        seconds = _seconds(value.strip())
    if seconds is None:
        raise BadRequest(f"invalid keep_alive {value!r}: give seconds, or a duration such as 5m; -1 keeps it for ever")
    return inf if seconds < 0 or seconds > FOREVER else seconds


def _seconds(text: str) -> float | None:
    if re.fullmatch(r"[-+]?\d{1,15}(\.\d{1,9})?", text, re.ASCII):  # Go takes 0 alone; clients send others too
        return float(text)
    found = _WHOLE_DURATION.fullmatch(text) if len(text) < 100 else None
    if found is None:
        return None
    total = sum(float(number) * UNITS[unit] for number, unit in _DURATION.findall(found[2]))
    return -total if found[1] == "-" else total


def _common(path: str, asked: Mapping[str, object], target: str, body: JsonObject, **more: object) -> TranslatedRequest:
    """The request with what all inference requests have in common; `more` are fields of `TranslatedRequest`."""
    options = asked.get("options")
    context = _whole(options.get("num_ctx")) if isinstance(options, dict) else None
    model = body["model"] = asked.get("model") or asked.get("name")
    fields = {"streaming": False, "keep_alive": keep_alive_of(asked.get("keep_alive")), "context": context, **more}
    return TranslatedRequest(path, target, body, model if isinstance(model, str) else "", **fields)  # type: ignore[arg-type] # from this module


# -- chat and generate -------------------------------------------------------------------------------------


def _chat(path: str, asked: JsonObject) -> TranslatedRequest:
    messages = asked.get("messages")
    if messages is not None and not isinstance(messages, list):
        raise BadRequest("'messages' must be a list")
    body = _generation(asked)
    body["messages"] = list(_messages(messages or ()))
    if isinstance(asked.get("tools"), list) and asked["tools"]:
        body["tools"] = asked["tools"]
    return _common(path, asked, "/v1/chat/completions", body, empty=not messages, **_how(asked))


def _generate(path: str, asked: JsonObject) -> TranslatedRequest:
    prompt, suffix, images = asked.get("prompt") or "", asked.get("suffix") or "", asked.get("images") or []
    if not isinstance(prompt, str) or not isinstance(suffix, str):
        raise BadRequest("'prompt' and 'suffix' must be texts")
    body = _generation(asked)
    target = "/v1/chat/completions"
    if suffix:
        target = "/infill"
        body |= {"input_prefix": prompt, "input_suffix": suffix}
        if "max_tokens" in body:
            body["n_predict"] = body.pop("max_tokens")
    elif asked.get("raw") is True:
        target = "/v1/completions"
        body["prompt"] = prompt
    else:
        system = asked.get("system")
        first = [{"role": "system", "content": system}] if isinstance(system, str) and system else []
        body["messages"] = [*first, *_messages([{"role": "user", "content": prompt, "images": images}])]
    empty = not prompt and not suffix and not images
    return _common(path, asked, target, body, empty=empty, **_how(asked))


def _how(asked: JsonObject) -> JsonObject:
    return {"streaming": asked.get("stream") is not False, "think": asked.get("think") is not False}


def _generation(asked: JsonObject) -> JsonObject:
    """The members of a generation's body that say how to generate."""
    body: JsonObject = {"model": ""}
    if asked.get("stream") is not False:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    options = asked.get("options")
    if isinstance(options, dict):
        body |= options_of(options)
    body |= _thinking(asked.get("think")) | _format(asked.get("format"))
    if asked.get("logprobs") is True:
        body["logprobs"] = True
        if (top := _whole(asked.get("top_logprobs"))) is not None:
            body["top_logprobs"] = top
    return body


def options_of(options: Mapping[str, object]) -> JsonObject:
    """The members of a body of the OpenAI API, and of llama.cpp's and vLLM's, for Ollama's options."""
    found = {name: options[name] for name in SAME_OPTIONS if _is_number(options.get(name))}
    for name, target in WHOLE_OPTIONS.items():
        number = _whole(options.get(name))
        if number is not None and not (name == "num_predict" and number < 0):  # negative: as many as fit
            found[target] = number
    if "repeat_penalty" in found:
        found["repetition_penalty"] = found["repeat_penalty"]  # the name that vLLM and SGLang know
    stop = options.get("stop")
    if stop and isinstance(stop, (str, list)):
        found["stop"] = stop
    return found


def _thinking(think: object) -> JsonObject:
    if isinstance(think, bool):
        return {"chat_template_kwargs": {"enable_thinking": think}}
    effort = EFFORTS.get(think) if isinstance(think, str) else None
    if effort is None:
        return {}
    return {
        "reasoning_effort": effort,
        "chat_template_kwargs": {"enable_thinking": True, "reasoning_effort": effort},
    }


def _format(value: object) -> JsonObject:
    if value == "json":
        return {"response_format": {"type": "json_object"}}
    if isinstance(value, dict) and value:
        schema = {"name": "response", "strict": True, "schema": value}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    return {}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)


def _whole(value: object) -> int | None:
    """A whole number; clients send some of them as 8192.0."""
    return int(value) if isinstance(value, (int, float)) and _is_number(value) else None


# -- messages ----------------------------------------------------------------------------------------------


def _messages(messages: object) -> Iterator[JsonObject]:
    """The messages of the OpenAI API. Calls of tools get IDs, which Ollama's do not have, and their results the ID of
    the first call of that tool that has no result yet."""
    open_calls: deque[tuple[str, str]] = deque()
    numbers = iter(range(1, 1 << 31))
    for message in messages if isinstance(messages, (list, tuple)) else ():
        if not isinstance(message, dict):
            raise BadRequest("each of 'messages' must be an object with 'role' and 'content'")
        role = message.get("role")
        found: JsonObject = {"role": role, "content": _content(message)}
        if isinstance(message.get("thinking"), str) and message["thinking"]:
            found["reasoning_content"] = message["thinking"]
        calls = message.get("tool_calls")
        if isinstance(calls, list) and calls:
            found["tool_calls"] = [_call(call, lambda: f"call_{next(numbers)}", open_calls) for call in calls]
        if role == "tool":
            found["tool_call_id"] = _answered(message, open_calls) or f"call_{next(numbers)}"
            name = message.get("tool_name") or message.get("name")
            if isinstance(name, str) and name:
                found["name"] = name
        yield found


def _call(call: object, new_id: Callable[[], str], open_calls: deque[tuple[str, str]]) -> JsonObject:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict):
        raise BadRequest("each of 'tool_calls' must be an object with 'function'")
    given, name, arguments = call.get("id"), function.get("name"), function.get("arguments")
    identity = given if isinstance(given, str) and given else new_id()
    open_calls.append((identity, str(name)))
    text = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": text}}


def _answered(message: Mapping[str, object], open_calls: deque[tuple[str, str]]) -> str:
    """The ID of the call that a tool's message answers; "" if there is none."""
    given, name = message.get("tool_call_id"), message.get("tool_name") or message.get("name")
    found = next((call for call in open_calls if given == call[0] or (not given and name in (None, call[1]))), None)
    if found is None and open_calls and not given:
        found = open_calls[0]
    if found is not None:
        open_calls.remove(found)
    return given if isinstance(given, str) and given else found[0] if found is not None else ""


def _content(message: Mapping[str, object]) -> object:
    text, images = message.get("content"), message.get("images")
    if not isinstance(images, list) or not images:
        return text if text is not None else ""
    parts: list[JsonObject] = [{"type": "text", "text": text}] if text else []
    return [*parts, *({"type": "image_url", "image_url": {"url": _data_url(image)}} for image in images)]


def _data_url(image: object) -> str:
    """An image in base64 as a URL; its first bytes say what it is."""
    if not isinstance(image, str):
        raise BadRequest("each of 'images' must be an image in base64")
    if image.startswith("data:"):
        return image
    try:
        begin = b64decode(image[:16])
    except ValueError:
        raise BadRequest("each of 'images' must be an image in base64") from None
    kind = next((kind for lead, kind in _IMAGES if begin.startswith(lead)), "png")
    return f"data:image/{kind};base64,{image}"


# -- embeddings --------------------------------------------------------------------------------------------


def _embed(path: str, asked: JsonObject) -> TranslatedRequest:
    given = asked.get("input" if path == EMBED else "prompt")
    texts = given if isinstance(given, list) else [given]
    if any(not isinstance(text, str) for text in texts if text is not None):
        raise BadRequest("the texts to embed must be a text or a list of texts")
    body: JsonObject = {"model": "", "input": given, "encoding_format": "float"}
    if (dimensions := _whole(asked.get("dimensions"))) is not None:
        body["dimensions"] = dimensions
    return _common(path, asked, "/v1/embeddings", body, empty=not given)
