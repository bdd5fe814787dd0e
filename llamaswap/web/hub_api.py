"""What the page needs to add a model: searches of Hugging Face, downloads, and the memory that a command will use.

A download continues when its page is closed. None of this changes the configuration, but it fills disks, reads paths
and may start an engine to ask it, so it is served only if the operator allows edits of the configuration.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

from attrs import define, evolve, field, frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from llamaswap.config import Config
from llamaswap.discover.config_writer import (
    FoundModel,
    gguf_models,
    is_projector,
    model_entry,
    model_name,
    quant_of,
    unique,
)
from llamaswap.observe.worker import RunBlocking
from llamaswap.web.admin_request import AdminRequest, JsonObject, Response, json_answer
from llamaswap.web.discovery import names_in_use
from llamaswap.web.errors import HttpError, message_of
from llamaswap.web.ollama_models import CONCURRENT_PULLS, ModelPuller, PulledFiles
from llamaswap.web.route import QueryParameter, Route, RouteTable
from llamaswap.web.shield import shielded

if TYPE_CHECKING:
    from llamaswap.memory.spread import Estimate

MAX_RESULTS = 20
MAX_DOWNLOADS = 16  # that can be read
MAX_FILES = 2000  # of a repository
MAX_COMMAND = 20_000  # characters of a command to be estimated
REPOSITORY = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)
NAME = re.compile(rf"{REPOSITORY.pattern}(?::[\w./-]{{1,200}})?", re.ASCII)

log = Logger()


@frozen
class HubModel:
    """A repository with GGUF files."""

    repository: str
    downloads: int
    likes: int
    updated: str
    gated: bool


@frozen
class HubResults:
    """The most downloaded repositories that match."""

    models: list[HubModel]


@frozen
class HubQuant:
    """The files of one quantisation with the vision part that comes along; `bytes` is their size."""

    quant: str
    files: list[str]
    bytes: int


@frozen
class HubRepository:
    """What can be downloaded of a repository, smallest first."""

    repository: str
    quants: list[HubQuant]


@frozen
class DownloadBody:
    """What to download: REPOSITORY or REPOSITORY:QUANT."""

    name: str


@frozen
class DownloadedModel:
    """A model among the downloaded files, with its YAML below `models`."""

    name: str
    yaml: str


@frozen
class DownloadDocument:
    """A download. `state` is running, done, failed or cancelled; `completed` of `total` bytes of `file` are there."""

    id: str
    name: str
    state: str
    file: str = ""
    total: int = 0
    completed: int = 0
    error: str = ""
    models: list[DownloadedModel] = field(factory=list)


@frozen
class DownloadList:
    """The downloads that can be read, newest first."""

    downloads: list[DownloadDocument]


@frozen
class EstimateBody:
    """A command as it would stand in `cmd`."""

    cmd: str


@frozen
class DeviceNeed:
    """What the command needs of a device; `device` is `ram`, `gpu0` and so on, or empty for any GPU."""

    device: str
    mib: int


@frozen
class EstimateDocument:
    """What a command will need, and how that is known; `known` is false if nothing says it."""

    known: bool
    why: str = ""
    needs: list[DeviceNeed] = field(factory=list)


route = RouteTable("config", Route)


@define(eq=False)
class HubEndpoints:
    """`hub` gets a JSON document of Hugging Face by its path, blocking, on the thread of `run`; `estimate` says what a
    command will need."""

    allowed: Callable[[], bool]
    config: Callable[[], Config]
    hub: Callable[[str], object]
    run: RunBlocking
    puller: ModelPuller
    estimate: Callable[[str], Deferred[Estimate | None]]
    _downloads: dict[str, DownloadDocument] = field(factory=dict, init=False)
    _work: dict[str, Deferred[PulledFiles]] = field(factory=dict, init=False)
    _last: int = field(default=0, init=False)

    @route("GET", "/api/hub/models", query=(QueryParameter("q", "Words of the name."),), answer=HubResults)
    async def search(self, call: AdminRequest) -> Response:
        """Search Hugging Face for models in GGUF files, the most downloaded ones first."""
        self._allowed()
        asked = {"search": call.text("q")[:200], "filter": "gguf", "sort": "downloads", "limit": MAX_RESULTS}
        found = await self._get(f"/api/models?{urlencode(asked)}")
        rows = [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []
        return json_answer(HubResults([_hub_model(row) for row in rows[:MAX_RESULTS]]))

    @route("GET", "/api/hub/models/<rest:repository>", answer=HubRepository)
    async def files(self, call: AdminRequest) -> Response:
        """The quantisations of a repository with their sizes."""
        self._allowed()
        name = call.variables["repository"]
        if REPOSITORY.fullmatch(name) is None:
            raise HttpError(400, "a repository is written ORGANISATION/NAME")
        found = await self._get(f"/api/models/{quote(name)}?blobs=true")
        siblings = found.get("siblings") if isinstance(found, dict) else None
        return json_answer(HubRepository(name, _quants(siblings if isinstance(siblings, list) else [])))

    @route("POST", "/api/hub/downloads", runs_commands=True, body=DownloadBody, status=202, answer=DownloadDocument)
    def begin(self, call: AdminRequest) -> Response:
        """Begin to download a model into Hugging Face's cache."""
        self._allowed()
        name = call.json_object("invalid download request").get("name")
        if not isinstance(name, str) or NAME.fullmatch(name) is None:
            raise HttpError(400, "'name' must be REPOSITORY or REPOSITORY:QUANT")
        if len(self._work) >= CONCURRENT_PULLS:
            raise HttpError(429, f"{CONCURRENT_PULLS} downloads are running; wait for the end of one or cancel it")
        self._last += 1
        number = str(self._last)
        self._downloads[number] = DownloadDocument(number, name, "running")
        ended = [old for old in self._downloads if old not in self._work and old != number]
        for old in ended[: max(0, len(self._downloads) - MAX_DOWNLOADS)]:
            del self._downloads[old]
        work = self._work[number] = self.puller.pull(name, lambda line: self._progress(number, line))
        work.addCallbacks(lambda pulled: self._done(number, pulled), lambda failure: self._failed(number, failure))
        return json_answer(self._downloads[number], 202)

    @route("GET", "/api/hub/downloads", answer=DownloadList)
    def downloads(self, call: AdminRequest) -> Response:
        """The last downloads, newest first."""
        return json_answer(DownloadList(list(reversed(self._downloads.values()))))

    @route("DELETE", "/api/hub/downloads/<string:number>", answer=DownloadDocument)
    def cancel(self, call: AdminRequest) -> Response:
        """Cancel a download; what is there of it is used when it is begun again."""
        number = call.variables["number"]
        if number not in self._downloads:
            raise HttpError(404, "download not found")
        if number in self._work:
            self._work[number].cancel()
        return json_answer(self._downloads[number])

    @route("POST", "/api/memory/estimate", runs_commands=True, body=EstimateBody, answer=EstimateDocument)
    async def need(self, call: AdminRequest) -> Response:
        """What a command will use of the memory, before it was ever run."""
        self._allowed()
        command = call.json_object("invalid estimate request").get("cmd")
        if not isinstance(command, str) or len(command) > MAX_COMMAND:
            raise HttpError(400, f"'cmd' must be a command of at most {MAX_COMMAND} characters")
        found = await shielded(self.estimate(command), "an estimate of memory")
        if found is None:
            return json_answer(EstimateDocument(False))
        shares = [DeviceNeed(share.device, share.size) for share in next(iter(found.need.options), ())]
        ram = [DeviceNeed("ram", found.need.ram)] if found.need.ram else []
        return json_answer(EstimateDocument(True, found.why, [*shares, *ram]))

    def close(self) -> None:
        """Cancel the downloads, because the service stops."""
        for work in tuple(self._work.values()):
            work.cancel()

    # -- shared parts --------------------------------------------------------------------------------------

    def _allowed(self) -> None:
        if not self.allowed():
            raise HttpError(403, "adding models needs configuration editing; start with --allow-config-edit")

    async def _get(self, path: str) -> object:
        try:
            return await shielded(self.run(lambda: self.hub(path)), "a question to Hugging Face")
        except (OSError, ValueError) as error:
            raise HttpError(502, f"Hugging Face cannot be reached: {error}")

    def _progress(self, number: str, line: JsonObject) -> None:
        total, completed = line.get("total"), line.get("completed")
        if isinstance(total, int) and isinstance(completed, int):
            known = self._downloads[number]
            self._downloads[number] = evolve(known, file=str(line.get("file")), total=total, completed=completed)

    def _done(self, number: str, pulled: PulledFiles) -> None:
        found = gguf_models(PurePath(path) for path in pulled.paths if path.lower().endswith(".gguf"))
        if not found:
            name = model_name(pulled.repository.rpartition("/")[2])
            found = [FoundModel(name, ("vllm", "serve", pulled.repository), pulled.repository)]
        named = unique(found, names_in_use(self.config()))
        models = [DownloadedModel(name, model_entry(name, evolve(model, note=""))) for name, model in named]
        del self._work[number]
        self._downloads[number] = evolve(self._downloads[number], state="done", models=models)

    def _failed(self, number: str, failure: Failure) -> None:
        error = failure.value
        if not isinstance(error, (CancelledError, HttpError)):
            log.failure("a download from Hugging Face failed", failure)
        del self._work[number]
        state = "cancelled" if isinstance(error, CancelledError) else "failed"
        text = message_of(error) if error is not None and state == "failed" else ""
        self._downloads[number] = evolve(self._downloads[number], state=state, error=text)


def _hub_model(row: Mapping[str, object]) -> HubModel:
    downloads, likes = row.get("downloads"), row.get("likes")
    return HubModel(
        repository=str(row.get("id")),
        downloads=downloads if isinstance(downloads, int) else 0,
        likes=likes if isinstance(likes, int) else 0,
        updated=str(row.get("lastModified") or ""),
        gated=bool(row.get("gated")),
    )


def _quants(siblings: Sequence[object]) -> list[HubQuant]:
    """The quantisations among the files of a repository; the smallest vision part goes with each."""
    sizes: dict[str, int] = {}
    for each in siblings[:MAX_FILES]:
        name, size = (each.get("rfilename"), each.get("size")) if isinstance(each, dict) else (None, None)
        if isinstance(name, str) and name.lower().endswith(".gguf"):
            sizes[name] = size if isinstance(size, int) else 0
    projectors = sorted((name for name in sizes if is_projector(PurePath(name))), key=sizes.__getitem__)[:1]
    groups: dict[str, list[str]] = {}
    for name in sizes:
        if not is_projector(PurePath(name)):
            groups.setdefault(quant_of(name) or name, []).append(name)
    quants = [
        HubQuant(quant, sorted(names), sum(sizes[name] for name in [*names, *projectors]))
        for quant, names in groups.items()
    ]
    return sorted(quants, key=lambda quant: quant.bytes)
