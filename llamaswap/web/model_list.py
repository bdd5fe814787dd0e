"""GET /api/catalog: every local model with what tells it from the others, as far as its command and its loads show it.

The sizes of files are read on a thread, because a network folder may hang; without an answer in time they are unknown.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path, PurePath
from statistics import median

from attrs import define, field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from llamaswap.config import Capabilities, Model
from llamaswap.config.command_line import split
from llamaswap.memory.gguf import GgufError, shards
from llamaswap.observe.worker import RunBlocking
from llamaswap.routing.router import Router
from llamaswap.web.admin_request import AdminRequest, Response, json_answer
from llamaswap.web.models import groups_of
from llamaswap.web.route import Route, RouteTable
from llamaswap.web.secret_masking import known_secrets, masked_text
from llamaswap.web.shield import shielded

DISK_TIMEOUT = 2.0  # seconds
CONTEXT_FLAGS = ("-c", "--ctx-size", "--max-model-len", "--contextsize", "--n_ctx", "--context-length")
_WEIGHTS = (".gguf", ".safetensors", ".bin", ".pt")
_QUANT = re.compile(
    r"(?<![a-z0-9])((?:ud-)?i?q\d(?:_[a-z0-9]+)*|tq\d_\d|mxfp4|nvfp4|bf16|fp?16|fp?32|fp8|awq|gptq(?:-int\d)?|exl\d|int[48]|[48]bit)"
    r"(?![a-z0-9])",
    re.IGNORECASE,
)

log = Logger()


@frozen
class ModelSummary:
    """A model. `load_ms` is the median of its last loads, `failed` why it is not loaded any more, `file_bytes` the size
    of its file with all its parts; what is not known is null."""

    id: str
    state: str
    failed: str | None
    pinned: bool
    groups: list[str]
    context_length: int | None
    quant: str | None
    file_bytes: int | None
    load_ms: int | None


@frozen
class ModelSummaries:
    """The local models, by id."""

    models: list[ModelSummary]


route = RouteTable("models", Route)


@define(eq=False)
class ModelListEndpoints:
    """`run` reads sizes of files on a thread of its own, `capabilities` are those of a model that are known."""

    router: Router
    run: RunBlocking
    clock: IReactorTime
    capabilities: Callable[[Model], Capabilities] = attrgetter("capabilities")
    _sizes: dict[str, int] = field(factory=dict, init=False)
    _reading: Deferred[None] | None = field(default=None, init=False)

    @route("GET", "/api/catalog", answer=ModelSummaries)
    async def models(self, call: AdminRequest) -> Response:
        """Every local model with its state, context, quantisation, file, groups and usual load time."""
        config, secrets = self.router.config, known_secrets(self.router.config)
        words = {model.id: command_words(model.cmd) for model in config.models.values()}
        files = {name: file for name, found in words.items() if (file := weights_file(found)) is not None}
        await self._read_sizes(set(files.values()))
        rows = []
        for model in sorted(config.models.values(), key=lambda model: model.id):
            loads, failure = self.router.status(model.id).load_seconds, self.router.failure(model.id)
            file = files.get(model.id, "")
            rows.append(
                ModelSummary(
                    id=model.id,
                    state=self.router.state(model.id),
                    failed=masked_text(failure, secrets) or None,
                    pinned=model.id in self.router.pinned,
                    groups=groups_of(config, model.replica_of or model.id),
                    context_length=self.capabilities(model).context or context_of(words[model.id]),
                    quant=quant_of((PurePath(file).name, *words[model.id])),
                    file_bytes=self._sizes.get(file),
                    load_ms=round(median(loads) * 1000) if loads else None,
                )
            )
        return json_answer(ModelSummaries(rows))

    def _read_sizes(self, files: set[str]) -> Deferred[None]:
        """Read the sizes of these files; fires also if that takes too long."""
        if self._reading is None or self._reading.called:
            self._reading = self.run(lambda: sizes_of(files)).addCallbacks(self._read, _unread)
        waiting = shielded(self._reading, "reading the sizes of model files")
        return waiting.addTimeout(DISK_TIMEOUT, self.clock, onTimeoutCancel=lambda _, seconds: None)

    def _read(self, sizes: Mapping[str, int]) -> None:
        self._sizes = dict(sizes)


def _unread(failure: Failure) -> None:
    log.failure("reading the sizes of model files failed; they are not shown", failure)


def command_words(command: str) -> Sequence[str]:
    """The words of a command; none of one that cannot be started."""
    try:
        return split(command)
    except ValueError:
        return ()


def weights_file(words: Sequence[str]) -> str | None:
    """The first file with weights that a command names, which is not that of a draft model or a projector."""
    before = ""
    for word in words[1:]:
        flag, equals, value = word.partition("=")
        flag, name = (flag, value) if equals and word.startswith("-") else (before, word)
        before = word
        aside = "mmproj" in name.lower() or "draft" in flag or flag in ("-md", "-mm")
        if name.lower().endswith(_WEIGHTS) and not aside:
            return name
    return None


def sizes_of(files: Iterable[str]) -> dict[str, int]:
    """The sizes of those that can be read, each with all its parts. Blocks."""
    sizes = {}
    for name in files:
        try:
            sizes[name] = sum(part.stat().st_size for part in shards(Path(name)))
        except (OSError, GgufError, ValueError):
            continue
    return sizes


def quant_of(texts: Iterable[str]) -> str | None:
    """The quantisation that a file or a repository has in its name."""
    found = next(filter(None, map(_QUANT.search, texts)), None)
    return found[1].upper() if found else None


def context_of(words: Sequence[str]) -> int | None:
    """The size of the context that a command asks for."""
    for index, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag in CONTEXT_FLAGS:
            text = value if equals else next(iter(words[index + 1 : index + 2]), "")
            return int(text) if text.isdecimal() and 0 < len(text) < 10 and int(text) else None
    return None
