"""How Ollama's clients change which models there are: pull, create, copy and delete.

They change the configuration file, so they need the right to edit it. An alias is what Ollama calls a copy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import PurePath
from typing import Protocol

from attrs import define, frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import IResource
from zope.interface import implementer

from llamaswap.config import Config, Model
from llamaswap.config.macros import LEFTOVER
from llamaswap.config.text_edit import NotEditable, add_item, remove, remove_value, scalar, set_key
from llamaswap.discover.config_writer import gguf_models, quoted, with_port
from llamaswap.errors import ConfigError
from llamaswap.observe.worker import RunBlocking
from llamaswap.web.admin_request import AdminRequest, JsonObject, Response, json_answer
from llamaswap.web.config_history import VersionSource
from llamaswap.web.configfile import ConfigFile
from llamaswap.web.errors import HttpError, message_of
from llamaswap.web.route import Route, RouteTable
from llamaswap.web.streaming_response import StreamingResponses
from llamaswap.wire.filters import IF_ABSENT
from llamaswap.wire.ollama import DEFAULT_TAG, options_of
from llamaswap.wire.ollama_response import error_line
from llamaswap.wire.openai import encode

log = Logger()

Tell = Callable[[JsonObject], None]  # takes a step of a change

CONCURRENT_PULLS = 2
RELOAD_TIME = 5.0  # seconds in which a written configuration is in force
RELOAD_POLL = 0.05
PARAMETERS, SYSTEM = "setParamsByID", "systemPromptByID"  # the settings of a created name
PULLED = "pulled"  # the member of a model's metadata that names the files that were pulled for it
_HUB_NAME = re.compile(r"(?:https?://)?(?:(?:hf\.co|huggingface\.co)/)?([\w.-]+/[\w.-]+)(?::([\w.-]+))?", re.ASCII)
_LIBRARY = (
    "only names of Hugging Face can be pulled, such as hf.co/ORG/REPOSITORY:Q4_K_M; models of Ollama's library cannot"
)
# What `create` would need beyond a new name with other parameters and a system prompt.
_NOT_CREATED = ("files", "adapters", "template", "messages", "quantize", "license", "modelfile", "path")
LONGEST_SYSTEM = 65_536  # characters of a system prompt, which stands in the configuration


@frozen
class PulledFiles:
    """What a download brought: the files of a repository, and where they are."""

    repository: str
    files: Sequence[str]
    paths: Sequence[str]


class ModelPuller(Protocol):
    """Downloads models, and removes what it downloaded."""

    def pull(self, name: str, progress: Callable[[JsonObject], None]) -> Deferred[PulledFiles]:
        """Download REPOSITORY[:QUANT]. `progress` gets objects with file, digest, total and completed. Cancelling ends
        the download; it can be resumed. Fails with HttpError."""

    def remove(self, repository: str, files: Sequence[str]) -> None:
        """Remove these files of a repository; called on a thread."""


@frozen
class ModelChangeBody:
    """A body that names a model."""

    model: str
    stream: bool | None = None


@frozen
class CopyBody:
    """A body that gives a model another name."""

    source: str
    destination: str


@frozen
class ChangeStatus:
    """A step of a change; `total` and `completed` are bytes."""

    status: str
    digest: str = ""
    total: int = 0
    completed: int = 0


@implementer(IPushProducer)
@define(eq=False)
class _Cancels:
    """The producer of a stream that ends its work with it."""

    work: Deferred[None]

    def pauseProducing(self) -> None:
        """A few lines a second are not held back."""

    def resumeProducing(self) -> None:
        """Nothing was held back."""

    def stopProducing(self) -> None:
        self.work.cancel()


route = RouteTable("ollama", Route)


@define(eq=False)
class OllamaModelEndpoints:
    """/api/pull, /api/create, /api/copy and /api/delete. `run` edits the file, one edit after another."""

    file: ConfigFile
    config: Callable[[], Config]
    run: RunBlocking
    streams: StreamingResponses
    puller: ModelPuller
    clock: IReactorTime
    fallback: IResource
    pulling: int = 0

    @route(
        "POST",
        "/api/pull",
        runs_commands=True,
        body=ModelChangeBody,
        answer=ChangeStatus,
        content="application/x-ndjson",
    )
    async def pull(self, call: AdminRequest) -> Response | IResource | None:
        """Download a model from Hugging Face and add it to the configuration; streams its progress by default."""
        if not self.config().ollama.enabled:
            return self.fallback
        body = call.json_object("the request's body is not a JSON object")
        name = _text(body, "model", "name")
        known = self._known(name)
        if not known:
            self._allowed()
            if _HUB_NAME.fullmatch(name) is None:
                raise HttpError(501, _LIBRARY)
            if self.pulling >= CONCURRENT_PULLS:
                raise HttpError(429, f"{CONCURRENT_PULLS} models are being pulled; try again when one is complete")
        return await self._answered(call, body, self._nothing_to_do if known else partial(self._pull, name, call))

    @route(
        "POST",
        "/api/create",
        runs_commands=True,
        body=ModelChangeBody,
        answer=ChangeStatus,
        content="application/x-ndjson",
    )
    async def create(self, call: AdminRequest) -> Response | IResource | None:
        """Give a model another name, under which requests have other parameters and a system prompt."""
        if not self.config().ollama.enabled:
            return self.fallback
        body = call.json_object("the request's body is not a JSON object")
        name = _text(body, "model", "name")
        refused = [member for member in _NOT_CREATED if body.get(member)]
        if refused:
            takes = "create takes model, from, parameters and system"
            raise HttpError(501, f"this server cannot do that: {refused[0]}; {takes}")
        source, given, system = _text(body, "from", "from_"), body.get("parameters"), body.get("system") or ""
        if not isinstance(system, str) or len(system) > LONGEST_SYSTEM:
            raise HttpError(400, f"'system' must be a text of at most {LONGEST_SYSTEM} characters")
        parameters = options_of(given) if isinstance(given, dict) else {}
        work = partial(self._create, name, source, parameters, system, call, replaces=True)
        return await self._answered(call, body, work)

    @route("POST", "/api/copy", runs_commands=True, body=CopyBody, content="text/plain")
    async def copy(self, call: AdminRequest) -> Response | IResource:
        """Give a model an alias."""
        if not self.config().ollama.enabled:
            return self.fallback
        body = call.json_object("the request's body is not a JSON object")
        await self._create(_text(body, "destination"), _text(body, "source"), {}, "", call, lambda line: None)
        return Response(200)

    @route("DELETE", "/api/delete", runs_commands=True, body=ModelChangeBody, content="text/plain")
    async def delete(self, call: AdminRequest) -> Response:
        """Remove an alias, or a model that was pulled with its files."""
        if not self.config().ollama.enabled:
            raise HttpError(404, "the Ollama API is switched off by ollama.enabled")
        name = _text(call.json_object("the request's body is not a JSON object"), "model", "name")
        self._allowed()
        config = self.config()
        name = name if config.real(name) else name.removesuffix(DEFAULT_TAG)
        model = config.models.get(config.real(name) or "")
        if model is None:
            raise HttpError(404, f"model {name!r} not found")
        if name != model.id:
            await self._edit(call, partial(_without_alias, model=model.id, name=name))
        else:
            await self._delete_pulled(call, model)
        await self._until(lambda: self.config().real(name) is None)
        return Response(200)

    # -- the work ------------------------------------------------------------------------------------------

    async def _answered(
        self,
        call: AdminRequest,
        body: Mapping[str, object],
        work: Callable[[Tell], Coroutine[Deferred[object], object, None]],
    ) -> Response | None:
        """Do the work, and respond with its steps as lines, or with the last one if the client wants no stream."""
        if body.get("stream") is False:
            await work(lambda line: None)
            return json_answer({"status": "success"})
        stream = self.streams.open(call, b"application/x-ndjson", feed=False)
        doing = Deferred.fromCoroutine(work(lambda line: stream.write(encode(line) + b"\n")))
        stream.register(_Cancels(doing))

        def failed(failure: Failure) -> None:
            error = failure.value
            if not isinstance(error, (CancelledError, HttpError)):
                log.failure("{path} failed", failure, path=call.path)
            stream.write(error_line(message_of(error) if error is not None else "cancelled"))

        doing.addCallbacks(lambda _: stream.write(encode({"status": "success"}) + b"\n"), failed)
        doing.addBoth(lambda _: stream.end())
        await stream.until_end()
        return None

    async def _nothing_to_do(self, tell: Tell) -> None:
        tell({"status": "pulling manifest"})

    async def _pull(self, name: str, call: AdminRequest, tell: Tell) -> None:
        found = _HUB_NAME.fullmatch(name)
        assert found is not None  # it was checked
        repository, quant = found.groups()
        tell({"status": "pulling manifest"})

        def progress(line: JsonObject) -> None:
            digest = str(line.get("digest"))
            counts = {"total": line.get("total"), "completed": line.get("completed")}
            tell({"status": f"pulling {digest[:12]}", "digest": f"sha256:{digest}", **counts})

        self.pulling += 1
        try:
            pulled = await self.puller.pull(f"{repository}:{quant}" if quant else repository, progress)
        finally:
            self.pulling -= 1
        tell({"status": "verifying sha256 digest"})
        tell({"status": "writing manifest"})
        models = gguf_models(PurePath(path) for path in pulled.paths if path.lower().endswith(".gguf"))
        words = models[0].words if models else ("vllm", "serve", repository)
        command = json.dumps(" ".join(map(quoted, with_port(words))))
        source = json.dumps({"repository": pulled.repository, "files": list(pulled.files)})

        def change(text: str) -> str:
            text = set_key(text, ("models", name, "metadata", PULLED), source)
            return set_key(text, ("models", name, "cmd"), command)

        await self._edit(call, change)
        await self._until(lambda: self._known(name))

    async def _create(
        self,
        name: str,
        source: str,
        parameters: JsonObject,
        system: str,
        call: AdminRequest,
        tell: Tell,
        *,
        replaces: bool = False,
    ) -> None:
        """Name a model, with what its name `source` has and what is given; with `replaces` the name may be one already,
        though not a model's ID."""
        self._allowed()
        config = self.config()
        source = source if config.real(source) else source.removesuffix(DEFAULT_TAG)
        model, before = config.models.get(config.real(source) or ""), config.models.get(config.real(name) or "")
        if model is None or model.replica_of:
            raise HttpError(404, f"model {source!r} not found")
        if self._known(name) and (not replaces or before is None or before.id == name):
            raise HttpError(409, f"{name!r} is a name already; delete it first")
        tell({"status": f"using {model.id}"})
        rules = _rules(model, source, parameters, system)
        macro = LEFTOVER.search(json.dumps((name, rules), ensure_ascii=False))
        if macro is not None:
            raise HttpError(
                422, f"{macro[0]} is a macro in a configuration, which would replace it; write it in another way"
            )

        def change(text: str) -> str:
            text = text if before is None else _without_alias(text, before.id, name)
            for setting, value in rules.items():
                written = json.dumps(value, ensure_ascii=False)
                text = set_key(text, ("models", model.id, "filters", setting, name), written)
            return text if rules else add_item(text, ("models", model.id, "aliases"), scalar(name))

        await self._edit(call, change)
        await self._until(lambda: self._has_rules(name, rules))

    def _has_rules(self, name: str, rules: JsonObject) -> bool:
        """Whether the name is in force as it was written."""
        config = self.config()
        model = config.models.get(config.real(name) or "")
        return model is not None and _rules(model, name, {}, "") == rules

    async def _delete_pulled(self, call: AdminRequest, model: Model) -> None:
        pulled = model.metadata.get(PULLED)
        files = pulled.get("files") if isinstance(pulled, Mapping) else None
        if not isinstance(pulled, Mapping) or not isinstance(files, (list, tuple)):
            raise HttpError(
                403, f"{model.id} was not pulled by this server, so its files stay; remove it from the configuration"
            )
        names = [str(name) for name in files]
        others = [other.cmd for other in self.config().models.values() if other.id != model.id]
        await self._edit(call, lambda text: remove(text, ("models", model.id)))
        if not any(name in cmd for name in names for cmd in others):
            await self.run(partial(self.puller.remove, str(pulled.get("repository")), names))

    async def _edit(self, call: AdminRequest, change: Callable[[str], str]) -> None:
        """Change the file, if the result can be used."""
        agent = (call.first(b"user-agent") or b"").decode("latin-1")
        source = VersionSource("saved", call.client, agent, "")

        def edit() -> None:
            text = change(self.file.read())
            self.file.check(text)
            self.file.write(text, source)

        try:
            await self.run(edit)
        except NotEditable as error:
            raise HttpError(409, f"the configuration cannot be changed here: {error}; edit the file")
        except ConfigError as error:
            raise HttpError(422, f"the changed configuration cannot be used: {error}")
        except OSError as error:
            raise HttpError(500, f"the configuration could not be written: {error.strerror or error}")

    async def _until(self, done: Callable[[], bool]) -> None:
        """Wait until the written configuration is in force."""
        end = self.clock.seconds() + RELOAD_TIME
        while not done() and self.clock.seconds() < end:
            await deferLater(self.clock, RELOAD_POLL)

    def _known(self, name: str) -> bool:
        config = self.config()
        names = (name, name.removesuffix(DEFAULT_TAG))
        return any(config.base(one) or one in config.selectors for one in names)

    def _allowed(self) -> None:
        if not self.file.editable:
            raise HttpError(
                403, "this changes the configuration, which is not enabled on this server; see --allow-config-edit"
            )


def _without_alias(text: str, model: str, name: str) -> str:
    """The text without this name of a model: an alias, and a key of the settings by name."""
    left, failure = text, None
    for setting in (PARAMETERS, SYSTEM, "aliases"):
        try:
            if setting == "aliases":
                left = remove_value(left, ("models", model, setting), name)
            else:
                left = remove(left, ("models", model, "filters", setting, name))
        except NotEditable as error:
            failure = error
    if left == text and failure is not None:
        raise failure
    return left


def _rules(model: Model, source: str, parameters: JsonObject, system: str) -> JsonObject:
    """The settings by name of a name that is made from another name of a model. Requests may set the parameters."""
    of_source = model.filters.set_params_by_id.get(source, {})
    found = {name: value for name, value in of_source.items() if name.removesuffix(IF_ABSENT) not in parameters}
    found |= {name + IF_ABSENT: value for name, value in parameters.items()}
    prompt = system or model.filters.system_prompt_by_id.get(source, "")
    return {setting: value for setting, value in ((PARAMETERS, found), (SYSTEM, prompt)) if value}


def _text(body: Mapping[str, object], *names: str) -> str:
    found = next((body[name] for name in names if body.get(name)), None)
    if not isinstance(found, str) or len(found) > 500:
        raise HttpError(400, f"'{names[0]}' must be the name of a model")
    return found
