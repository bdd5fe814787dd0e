"""The records of found models and servers, and the commented configuration made of them. Pure functions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath

from attrs import field, frozen

from llamaswap.config.text_edit import scalar

SPLIT = re.compile(r"-(?P<number>\d{5})-of-\d{5}$")
VARIANT = re.compile(r"(^|[-._])((ud-)?i?q\d\w*|bf16|f16|fp16|f32|mxfp4\w*|mmproj|model)(?=[-._]|$)")
QUANT = re.compile(r"(?:^|[-._/])(?P<quant>(?:UD-)?(?:I?Q\d\w*|BF16|F16|F32|MXFP4\w*))(?=[-./]|$)", re.IGNORECASE)
UNNAMEABLE = re.compile(r"[^A-Za-z0-9._-]+")


@frozen
class FoundModel:
    """A model that an engine could serve.

    `words` is the command without --port, `note` its origin, `files` the model with all its shards, `bytes` their size
    (0 if unknown). An engine for a model that is not `active` was not found. `params` and `system_prompt` are for
    requests without them, and `skipped` names what the program that had the model knows of it and the entry cannot say.
    """

    name: str
    words: tuple[str, ...]
    note: str = ""
    check_endpoint: str = ""
    active: bool = True
    files: tuple[PurePath, ...] = ()
    bytes: int = 0
    aliases: tuple[str, ...] = ()
    params: Mapping[str, object] = field(factory=dict)
    system_prompt: str = ""
    skipped: tuple[str, ...] = ()


@frozen
class FoundServer:
    """A running OpenAI-compatible server: a peer."""

    name: str
    url: str
    models: tuple[str, ...] = ()


@frozen
class ScanResult:
    """Everything found, in that order. `engines` maps names to paths; not `complete` if the search was stopped."""

    models: tuple[FoundModel, ...] = ()
    servers: tuple[FoundServer, ...] = ()
    engines: dict[str, str] = field(factory=dict)
    complete: bool = True


def model_name(text: str) -> str:
    """A name that is easy to type, from the name of a file or a repository."""
    return UNNAMEABLE.sub("-", text).strip("-.").lower() or "model"


def quant_of(name: str) -> str:
    """The quantisation in a file's name; "" if there is none."""
    found = QUANT.findall(name)
    return found[-1].upper() if found else ""


def gguf_models(paths: Iterable[PurePath], program: str = "llama-server") -> list[FoundModel]:
    """One model for each set of GGUF files, with the projector beside it and without its further shards."""
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
    """The projector with the model's name, or one without a name in a folder that only has this model."""
    beside = [path for path in projectors if path.parent == model.parent]
    if not beside:
        return None
    name = _family(model)
    if named := [
        path for path in beside if (family := _family(path)) and (name.startswith(family) or family.startswith(name))
    ]:
        return max(named, key=lambda path: len(_family(path)))
    alone = all(_family(path) == name for path in among if path.parent == model.parent and path not in beside)
    return beside[0] if alone else None


def _family(path: PurePath) -> str:
    """The part that the names of all quantisations of a model and its projector share; "" for "mmproj-F16"."""
    return VARIANT.sub("", SPLIT.sub("", path.stem).lower()).strip("-._")


def _shards(first: PurePath, among: Sequence[PurePath]) -> tuple[PurePath, ...]:
    name = SPLIT.sub("", first.stem)
    return tuple(path for path in among if path.parent == first.parent and SPLIT.sub("", path.stem) == name)


def is_projector(path: PurePath) -> bool:
    """Whether the file is the vision part of a model, which cannot be served alone."""
    return "mmproj" in path.name.lower()


def is_embedder(path: PurePath) -> bool:
    """Whether the name is that of an embedding model."""
    return bool(re.search(r"embed|(^|[-_])(bge|gte|e5|minilm)[-_]", path.name.lower()))


def unique(models: Iterable[FoundModel], names: Iterable[str] = ()) -> list[tuple[str, FoundModel]]:
    """Each model with a unique name that is not among `names`."""
    taken = set(names)
    named = []
    for model in models:
        name, number = model.name, 2
        while name in taken:
            name, number = f"{model.name}-{number}", number + 1
        taken.add(name)
        named.append((name, model))
    return named


def quoted(word: str) -> str:
    """A word of a command, quoted if necessary."""
    if re.fullmatch(r"[\w@%+=:,./${}-]+", word):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


_HEAD = """\
# Written by `llamaswap init`. Every key: config/example.yaml and the documentation.

# Seconds a server may take to become ready. Big models on slow disks need more.
healthCheckTimeout: 300

# Seconds without a request after which a model is unloaded; 0 never. `ttl` overrides it for one model.
globalTTL: 0

# Models stay loaded together as far as their memory fits; `llamaswap memory` shows what they use.
routing:
  memory: on

# Keys that clients must present. Without any, everyone who can reach the port may use it.
# apiKeys:
#   - "${env.LLAMASWAP_API_KEY}"

"""


def configuration(found: ScanResult) -> str:
    """A configuration file with comments, which loads unchanged."""
    return (_HEAD + _engines(found) + _models(found) + _servers(found)).rstrip("\n") + "\n"


def _engines(found: ScanResult) -> str:
    if not found.engines:
        return "# No engine was found on PATH. llama.cpp's llama-server is what most of the commands below need.\n\n"
    lines = (f"#   {name}: {path}\n" for name, path in found.engines.items())
    return "# Engines found on this machine:\n" + "".join(lines) + "\n"


def _models(found: ScanResult) -> str:
    named = unique(found.models)
    active = "".join(model_entry(name, model) for name, model in named if model.active)
    text = "# ${PORT} is a free port that llamaswap chooses; `proxy` follows it by itself.\n"
    text += f"models:\n{active}" if active else "models: {}\n"
    inactive = "".join(model_entry(name, model) for name, model in named if not model.active)
    if inactive:
        text += "\n# Found too, but the engine they need was not:\n" + re.sub(
            "^", "#", inactive.rstrip("\n"), flags=re.M
        )
    return text.rstrip("\n") + "\n\n"


def _servers(found: ScanResult) -> str:
    if not found.servers:
        return ""
    comment = "# Servers that run already; their models are asked for as NAME/MODEL, or by their bare name.\n"
    return comment + "peers:\n" + "".join(server_entry(server.name, server) for server in found.servers)


def model_entry(name: str, model: FoundModel, port: str = "--port") -> str:
    """The entry of a model below `models:`; `port` is the flag of its engine."""
    note = f"  # {model.note}\n" if model.note else ""
    check = f"    checkEndpoint: {model.check_endpoint}\n" if model.check_endpoint else ""
    return f"{note}  {scalar(name)}:\n    cmd: |\n{_command(with_port(model.words, port))}{check}{_extras(model)}"


def _extras(model: FoundModel) -> str:
    """The lines for aliases and filters."""
    lines = f"    aliases: [{', '.join(map(scalar, model.aliases))}]\n" if model.aliases else ""
    if model.params or model.system_prompt:
        lines += "    filters:\n"
    if model.system_prompt:
        lines += f"      systemPrompt: {json.dumps(model.system_prompt, ensure_ascii=False)}\n"
    if model.params:
        lines += "      setParams:\n"
    for name, value in model.params.items():
        lines += f"        {name}?: {json.dumps(value, ensure_ascii=False)}  # if the client sends none\n"
    return lines


def with_port(words: Sequence[str], flag: str = "--port") -> list[str]:
    """A command with its port, before the other flags: `vllm serve NAME` must not be split."""
    flags = next((index for index, word in enumerate(words) if word.startswith("-")), len(words))
    return [*words[:flags], flag, "${PORT}", *words[flags:]]


def _command(words: Sequence[str]) -> str:
    """The lines below `cmd:`: the program, then one flag per line."""
    lines = [quoted(words[0])]
    for word in words[1:]:
        if word.startswith("-") or len(lines) == 1:
            lines.append(quoted(word))
        else:
            lines[-1] += f" {quoted(word)}"
    return "".join(f"      {line}\n" for line in lines)


def server_entry(name: str, server: FoundServer) -> str:
    """The entry of a server below `peers:`."""
    models = "\n" + "".join(f"      - {scalar(model)}\n" for model in server.models) if server.models else " auto\n"
    return f"  {scalar(name)}:\n    proxy: {server.url}\n    models:{models}"


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
"""The arguments of an engine besides its port; programs that serve no model by themselves are not listed."""
PORT_FLAGS = {"sd-server": "--listen-port"}


def engine_entry(name: str, program: str) -> str:
    """An example entry below `models:` for an engine; "" for a program that serves no model by itself."""
    words = TEMPLATES.get(name)
    if words is None:
        return ""
    check = {"whisper-server": "/", "sd-server": "/", "mlx_lm.server": "/v1/models"}.get(name, "")
    model = FoundModel(f"my-{model_name(name)}", (program, *words), "put the model's path or name here", check)
    return model_entry(model.name, model, PORT_FLAGS.get(name, "--port"))
