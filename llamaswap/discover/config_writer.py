"""Models and servers found on a machine, and the commented configuration made of them. Reads no disk, no network."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath

from attrs import field, frozen

SPLIT = re.compile(r"-(?P<number>\d{5})-of-\d{5}$")
VARIANT = re.compile(r"(^|[-._])((ud-)?i?q\d\w*|bf16|f16|fp16|f32|mxfp4\w*|mmproj|model)(?=[-._]|$)")
UNNAMEABLE = re.compile(r"[^A-Za-z0-9._-]+")


@frozen
class FoundModel:
    """A model that could be served. `words` is the command without --port; `note` says where it comes from."""

    name: str
    words: tuple[str, ...]
    note: str = ""
    check_endpoint: str = ""
    active: bool = True
    files: tuple[PurePath, ...] = ()
    """What is loaded: the model with all its shards."""
    bytes: int = 0
    """Of these files; 0 where nobody looked."""


@frozen
class FoundServer:
    """A running OpenAI-compatible server: a peer."""

    name: str
    url: str
    models: tuple[str, ...] = ()


@frozen
class ScanResult:
    """Everything, in the order it was found."""

    models: tuple[FoundModel, ...] = ()
    servers: tuple[FoundServer, ...] = ()
    engines: dict[str, str] = field(factory=dict)
    """Engine name to program path."""
    complete: bool = True
    """False where the search was ended before it was over."""


def model_name(text: str) -> str:
    """A name that is comfortable to type, from a file or repository name."""
    return UNNAMEABLE.sub("-", text).strip("-.").lower() or "model"


def gguf_models(paths: Iterable[PurePath], program: str = "llama-server") -> list[FoundModel]:
    """One model for each set of GGUF files; a projector beside a model goes with it, further shards are not told."""
    ordered = sorted(paths)
    projectors = [path for path in ordered if is_projector(path)]
    models = []
    for path in ordered:
        shard = SPLIT.search(path.stem)
        if path in projectors or (shard and shard["number"] != "00001"):
            continue
        words = [program, "-m", str(path)]
        files = _shards(path, ordered) if shard else (path,)
        projector = _projector(path, ordered, projectors)
        if projector is not None:
            words += ["--mmproj", str(projector)]
        if is_embedder(path):
            words.append("--embedding")
        name = model_name(SPLIT.sub("", path.stem))
        models.append(FoundModel(name, tuple(words), str(path.parent), files=files))
    return models


def _projector(model: PurePath, among: Sequence[PurePath], projectors: Sequence[PurePath]) -> PurePath | None:
    """The projector of a model: the one that bears its name, or one without a name in a folder of that model alone."""
    beside = [path for path in projectors if path.parent == model.parent]
    if not beside:
        return None
    name = _kin(model)
    if named := [path for path in beside if (kin := _kin(path)) and (name.startswith(kin) or kin.startswith(name))]:
        return max(named, key=lambda path: len(_kin(path)))
    alone = all(_kin(path) == name for path in among if path.parent == model.parent and path not in beside)
    return beside[0] if alone else None


def _kin(path: PurePath) -> str:
    """What the quantisations of one model, and its projector, have in common in their names; "" for "mmproj-F16"."""
    return VARIANT.sub("", SPLIT.sub("", path.stem).lower()).strip("-._")


def _shards(first: PurePath, among: Sequence[PurePath]) -> tuple[PurePath, ...]:
    name = SPLIT.sub("", first.stem)
    return tuple(path for path in among if path.parent == first.parent and SPLIT.sub("", path.stem) == name)


def is_projector(path: PurePath) -> bool:
    """A file that is of no use alone: the vision half of a model."""
    return "mmproj" in path.name.lower()


def is_embedder(path: PurePath) -> bool:
    """By its name a model that embeds."""
    return bool(re.search(r"embed|(^|[-_])(bge|gte|e5|minilm)[-_]", path.name.lower()))


def unique(models: Iterable[FoundModel], names: Iterable[str] = ()) -> list[tuple[str, FoundModel]]:
    """Each model with a name nobody else has; `names` are given away already."""
    taken = set(names)
    named = []
    for model in models:
        name, number = model.name, 2
        while name in taken:
            name, number = f"{model.name}-{number}", number + 1
        taken.add(name)
        named.append((name, model))
    return named


def _text(value: str) -> str:
    """A YAML scalar: plain where that is safe, else in double quotes (JSON's are YAML's)."""
    if re.fullmatch(r"[A-Za-z][\w./:-]*[\w/]", value) and value.lower() not in ("true", "false", "yes", "no", "null"):
        return value
    return json.dumps(value, ensure_ascii=False)


def _word(word: str) -> str:
    """A word of a command, quoted where it has to be, and safe from macros."""
    if re.fullmatch(r"[\w@%+=:,./${}-]+", word):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def command(words: Sequence[str], indent: str) -> str:
    """A `cmd:` of several lines: the program with its port, then one flag a line."""
    lines = [_word(words[0])]
    for word in words[1:]:
        if word.startswith("-") or len(lines) == 1:
            lines.append(_word(word))
        else:
            lines[-1] += f" {_word(word)}"
    return "\n".join(f"{indent}{line}" for line in lines)


def configuration(found: ScanResult) -> str:
    """A configuration file of it, with comments. Loads as it stands."""
    lines = [
        "# Written by `llamaswap init`. Every key: config/example.yaml and the documentation.",
        "",
        "# Seconds a server may take to become ready. Big models on slow disks need more.",
        "healthCheckTimeout: 300",
        "",
        "# Seconds without a request after which a model is unloaded; 0 never. `ttl` overrides it for one model.",
        "globalTTL: 0",
        "",
        "# Keys that clients must present. Without any, whoever reaches the port may use it.",
        "# apiKeys:",
        '#   - "${env.LLAMASWAP_API_KEY}"',
        "",
    ]
    lines += _engines(found)
    lines += _models(found)
    lines += _servers(found)
    return "\n".join(lines).rstrip("\n") + "\n"


def _engines(found: ScanResult) -> list[str]:
    if not found.engines:
        return ["# No engine was found on PATH. llama.cpp's llama-server is what most of the commands below need.", ""]
    return ["# Engines found on this machine:", *(f"#   {name}: {path}" for name, path in found.engines.items()), ""]


def _models(found: ScanResult) -> list[str]:
    named = unique(found.models)
    active = [(name, model) for name, model in named if model.active]
    lines = ["# ${PORT} is a free port that llamaswap hands out; `proxy` follows it by itself."]
    lines += ["models:"] if active else ["models: {}"]
    for name, model in active:
        lines += _model(name, model, "  ")
    asleep = [(name, model) for name, model in named if not model.active]
    if asleep:
        lines += ["", "# Found too, but the engine they need was not:"]
        for name, model in asleep:
            lines += [f"#{line}" for line in _model(name, model, "  ")]
    return [*lines, ""]


def _model(name: str, model: FoundModel, indent: str, port: str = "--port") -> list[str]:
    lines = [f"{indent}# {model.note}"] if model.note else []
    # The port is the first flag: `vllm serve NAME` must stay together.
    verbs = next((place for place, word in enumerate(model.words) if word.startswith("-")), len(model.words))
    lines += [f"{indent}{_text(name)}:", f"{indent}  cmd: |"]
    lines += command(model.words[:verbs], indent + "    ").split("\n")
    lines.append(f"{indent}    {port} ${{PORT}}")
    if model.words[verbs:]:
        lines += command(("", *model.words[verbs:]), indent + "    ").split("\n")[1:]
    if model.check_endpoint:
        lines.append(f"{indent}  checkEndpoint: {model.check_endpoint}")
    return lines


def model_entry(name: str, model: FoundModel) -> str:
    """A model as it stands below `models:`."""
    return "\n".join(_model(name, model, "  ")) + "\n"


def server_entry(name: str, server: FoundServer) -> str:
    """A server as it stands below `peers:`."""
    return "\n".join(_server(name, server)) + "\n"


TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "llama-server": ("-m", "/path/to/model.gguf"),
    "llamafile": ("--server", "-m", "/path/to/model.gguf"),
    "koboldcpp": ("--model", "/path/to/model.gguf", "--quiet"),
    "vllm": ("serve", "PUBLISHER/MODEL"),
    "sglang": ("serve", "--model-path", "PUBLISHER/MODEL"),
    "mlx_lm.server": ("--model", "PUBLISHER/MODEL"),
    "whisper-server": ("-m", "/path/to/ggml-model.bin", "--inference-path", "/v1/audio/transcriptions"),
    "sd-server": ("-m", "/path/to/model.safetensors"),
}
"""What follows an engine's program and its port in a command; a program that serves no model by itself has none."""
PORT_FLAGS = {"sd-server": "--listen-port"}


def engine_entry(name: str, program: str) -> str:
    """An example below `models:` of how this engine is started; empty where it serves nothing by itself."""
    words = TEMPLATES.get(name)
    if words is None:
        return ""
    check = {"whisper-server": "/", "sd-server": "/", "mlx_lm.server": "/v1/models"}.get(name, "")
    model = FoundModel(f"my-{model_name(name)}", (program, *words), "put the model's own path or name here", check)
    return "\n".join(_model(model.name, model, "  ", PORT_FLAGS.get(name, "--port"))) + "\n"


def _servers(found: ScanResult) -> list[str]:
    if not found.servers:
        return []
    lines = ["# Servers that run already; their models are asked for as NAME/MODEL, or by their bare name."]
    lines.append("peers:")
    for server in found.servers:
        lines += _server(server.name, server)
    return [*lines, ""]


def _server(name: str, server: FoundServer) -> list[str]:
    lines = [f"  {_text(name)}:", f"    proxy: {server.url}"]
    if server.models:
        return [*lines, "    models:", *(f"      - {_text(model)}" for model in server.models)]
    return [*lines, "    models: auto"]
