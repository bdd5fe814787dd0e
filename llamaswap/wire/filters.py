"""Changes to a request's parameters: the configured filters, and naming another model.

They edit the bodies of `json_body` in place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from attrs import frozen

from llamaswap.config.schema.model import Filters
from llamaswap.errors import BadRequest, LlamaswapError
from llamaswap.wire.json_body import EditError, JsonBody, MalformedBodyError
from llamaswap.wire.model_routes import generates_text

TOKEN_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict")
CHOICES = ("n", "n_cmpl", "best_of")  # how often the server writes a response to each prompt
IF_ABSENT = "?"  # after a parameter's name: set it only if the request does not contain it


@frozen
class FilterError(LlamaswapError):
    """A configured filter cannot be applied to this request. `message` names the parameter; see `filters:`."""

    message: str

    def __str__(self) -> str:
        return self.message


def apply(body: JsonBody, rules: Filters, *, requested: str, use_model_name: str = "") -> None:
    """Rename, strip, set, set by name, clamp, add the system prompt, in this order.

    Raises FilterError if a rule can fit no body, BadRequest if the body does not fit. `requested` is the name that
    the request asked for, after profile and selector. `model` is only changed by `use_model_name`.
    """
    if use_model_name:
        _edit("rewriting model name in JSON", body.set_model, use_model_name)
    for parameter, new_name in rules.rename_params.items():
        _edit(f"renaming parameter {parameter} in request", body.rename, parameter, new_name)
    for parameter in rules.strip_params:
        if parameter != "model":
            _edit(f"stripping parameter {parameter} from request", body.delete, parameter)
    if rules.set_params:
        _set_all(body, rules.set_params)
    if rules.set_params_by_id:
        _set_all(body, rules.set_params_by_id.get(requested) or {})
    for parameter, bounds in rules.clamp_params.items():
        _edit(f"clamping parameter {parameter} in request", body.clamp, parameter, bounds.least, bounds.most)
    if prompt := rules.system_prompt_by_id.get(requested) or rules.system_prompt:
        _edit("adding the system prompt to request", body.add_system_prompt, prompt)


def is_bounded(path: str) -> bool:
    """Whether it is known how many tokens a request on this path asks for, so that `bound_tokens` can bound them."""
    return generates_text(_without_ending(path))


def _without_ending(path: str) -> str:
    return path.rstrip("/").removesuffix("/batch")


def bound_tokens(body: JsonBody, path: str, limit: int) -> None:
    """Ask for at most `limit` tokens in the API of `path`, over all choices. Null, a text and a negative number ask for
    any number. Raises BadRequest if there are more choices than tokens."""
    if not is_bounded(path):
        return
    path = _without_ending(path)
    choices = max(1.0, *map(body.largest, CHOICES))
    choices *= body.item_count("prompt", b'"[{', limit) * body.item_count("messages", b"[", limit)
    if choices > limit:
        raise BadRequest(
            f"the response may have {limit} tokens in all (maxTokens), and the request asks for more choices: "
            "n is too large, or there are too many prompts"
        )
    limit = int(limit // choices)
    found = {name: body.bound(name, limit) for name in TOKEN_LIMITS}
    if path.endswith("/responses"):
        name = "max_output_tokens"
    elif path.endswith(("/completion", "/infill")):
        name = "n_predict"
    else:
        name = "max_tokens"
    if not found[name] and not (path.endswith("/chat/completions") and found["max_completion_tokens"]):
        body.set(name, limit)


def _set_all(body: JsonBody, parameters: Mapping[str, object]) -> None:
    for parameter in sorted(parameters):
        path = parameter.removesuffix(IF_ABSENT)
        if path != "model":
            value = _plain(parameters[parameter])
            _edit(f"setting parameter {parameter} in request", body.set, path, value, path != parameter)


def _edit(action: str, edit: Callable[..., None], *arguments: object) -> None:
    """Edit the body. That it fails is the client's fault (400) if its body does not fit, else the configuration's."""
    try:
        edit(*arguments)
    except EditError as error:
        failure = BadRequest if isinstance(error, MalformedBodyError) else FilterError
        raise failure(f"error {action}: {error}")


def _plain(value: object) -> object:
    """The value with whole floats as integers, because servers mean the same by YAML's 2.0 and 2."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
