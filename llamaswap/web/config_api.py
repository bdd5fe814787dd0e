"""The configuration over HTTP: shown with masked secrets, checked, and, if the operator allows it, replaced."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps

from attrs import asdict, define, field, frozen

from llamaswap.config import Config, json_schema
from llamaswap.errors import ConfigError
from llamaswap.events import ConfigRejected
from llamaswap.observe.log_format import Timestamp, local_time, rfc3339nano
from llamaswap.observe.worker import RunBlocking, at_once
from llamaswap.web.admin_request import AdminRequest, Response, json_answer
from llamaswap.web.config_history import VersionEntry, VersionSource
from llamaswap.web.configfile import ConfigFile, Impact, ImpactModels, ProblemDocument
from llamaswap.web.errors import HttpError
from llamaswap.web.reload_record import ReloadRecord
from llamaswap.web.route import Route, RouteTable
from llamaswap.web.secret_masking import MARKED, MASK, MarkedMasks, known_secrets, masked_yaml, named_secrets

MAX_CONFIG_BYTES = 1024 * 1024  # over HTTP, because checking it takes seconds; the longest known have 100 KB
YAML = "application/yaml"


@frozen
class Validation:
    """Whether a text can be used."""

    valid: bool
    errors: list[ProblemDocument] | None = None
    warnings: list[ProblemDocument] | None = None
    impact: ImpactModels | None = None


@frozen
class ReloadOutcome:
    """How the last reload ended: started (there was none), reloaded, or rejected (the configuration before is
    still used)."""

    editable: bool
    result: str
    at: Timestamp
    message: str
    touched: dict[str, list[str]]


@frozen
class VersionList:
    """The texts that were in the file, newest first."""

    versions: list[VersionEntry]


def _on_worker(
    handler: Callable[[ConfigEndpoints, AdminRequest], Response],
) -> Callable[[ConfigEndpoints, AdminRequest], Awaitable[Response]]:
    """The handler, called by the endpoints' `run`: texts are parsed and written there, one request after another."""

    @wraps(handler)
    def handle(endpoints: ConfigEndpoints, call: AdminRequest) -> Awaitable[Response]:
        return endpoints.run(partial(handler, endpoints, call))

    return handle


route = RouteTable("config", Route)


@define(eq=False)
class ConfigEndpoints:
    """/api/config and the paths below it. `run` calls what would delay the reactor."""

    file: ConfigFile
    config: Callable[[], Config]
    reloads: ReloadRecord
    run: RunBlocking = at_once
    _masks: MarkedMasks = field(factory=MarkedMasks, init=False)

    @route("GET", "/api/config", content=YAML)
    @_on_worker
    def show(self, call: AdminRequest) -> Response:
        """The configuration file, secrets masked; the ETag is that of the unmasked text."""
        return self._shown(call, self._text())

    @route("PUT", "/api/config", runs_commands=True, needs_tag=True, body=str, body_type=YAML, answer=Impact)
    @_on_worker
    def replace(self, call: AdminRequest) -> Response:
        """Replace the configuration file, if it is still the text that was edited and the new text can be used."""
        current = self._current(call)
        text = unmasked(_given(call), self._masked(current), self._masks)
        return self._written(call, text)

    @route("POST", "/api/config/validate", body=str, body_type=YAML, answer=Validation)
    @_on_worker
    def validate(self, call: AdminRequest) -> Response:
        """Check a configuration; tells whether it can be used and what it would change, and changes nothing."""
        current = self._text()
        text = unmasked(_given(call), self._masked(current), self._masks)
        try:
            found = self.file.check(text, find_missing=call.may_run_commands)
        except ConfigError as error:
            return _refused(error, 200)
        return json_answer(Validation(valid=True, warnings=found.warnings, impact=found.impact))

    @route("GET", "/api/config/schema", answer=dict[str, object])
    def schema(self, call: AdminRequest) -> Response:
        """The file's JSON schema, for editors."""
        return json_answer(json_schema())

    @route("GET", "/api/config/status", answer=ReloadOutcome)
    def status(self, call: AdminRequest) -> Response:
        """How the last reload ended."""
        event, at = self.reloads.event, rfc3339nano(local_time(self.reloads.at))
        if event is None:
            return json_answer(ReloadOutcome(self.file.editable, "started", at, "", {}))
        if isinstance(event, ConfigRejected):
            return json_answer(ReloadOutcome(self.file.editable, "rejected", at, event.message, {}))
        return json_answer(ReloadOutcome(self.file.editable, "reloaded", at, "", asdict(event)))

    # -- earlier texts ------------------------------------------------------------------------------------

    @route("GET", "/api/config/history", answer=VersionList)
    @_on_worker
    def history(self, call: AdminRequest) -> Response:
        """The texts that were in the file, newest first."""
        self._allowed()
        with _disk_error("earlier configurations could not be read"):
            return json_answer(VersionList(list(self.file.versions())))

    @route("GET", "/api/config/history/<string:version>", content=YAML)
    @_on_worker
    def earlier(self, call: AdminRequest) -> Response:
        """An earlier text, secrets masked."""
        self._allowed()
        return self._shown(call, self._earlier(call))

    @route("POST", "/api/config/history/<string:version>/restore", runs_commands=True, needs_tag=True, answer=Impact)
    @_on_worker
    def restore(self, call: AdminRequest) -> Response:
        """Use an earlier text again, by the rules for a new one."""
        self._current(call)
        return self._written(call, self._earlier(call), call.variables["version"])

    # -- shared parts --------------------------------------------------------------------------------------

    def _allowed(self) -> None:
        if not self.file.editable:
            raise HttpError(403, "configuration editing is not enabled on this server")

    def _shown(self, call: AdminRequest, text: str) -> Response:
        headers = ((b"ETag", _tag(text)), (b"Cache-Control", b"no-cache"))
        if call.has_tag(b"if-none-match", _tag(text)):
            return Response(304, b"", None, headers)
        return Response(200, self._masked(text).encode(), b"application/yaml; charset=utf-8", headers)

    def _current(self, call: AdminRequest) -> str:
        """The text to be replaced, if edits are allowed and the client has seen this text."""
        self._allowed()
        current = self._text()
        if call.first(b"if-match") is None:
            raise HttpError(428, "If-Match is required: send the ETag of the configuration you edited")
        if not call.has_tag(b"if-match", _tag(current)):
            raise HttpError(412, "the configuration was changed meanwhile; read it again")
        return current

    def _written(self, call: AdminRequest, text: str, restored: str = "") -> Response:
        try:
            checked = self.file.check(text)
        except ConfigError as error:
            return _refused(error, 422)
        agent = (call.first(b"user-agent") or b"").decode("latin-1")
        with _disk_error("the configuration could not be written"):
            self.file.write(text, VersionSource("restored" if restored else "saved", call.client, agent, restored))
        return json_answer(checked, headers=((b"ETag", _tag(text)),))

    def _masked(self, text: str) -> str:
        """A text without the secrets in use and those that it names itself, because a key that was replaced since may
        still be valid elsewhere."""
        return masked_yaml(text, [*known_secrets(self.config()), *named_secrets(text)], self._masks)

    def _earlier(self, call: AdminRequest) -> str:
        with _disk_error("the version could not be read"):
            text = self.file.version(call.variables["version"])
        if text is None:
            raise HttpError(404, "version not found")
        return text

    def _text(self) -> str:
        with _disk_error("the configuration could not be read"):
            return self.file.read()


@contextmanager
def _disk_error(problem: str) -> Iterator[None]:
    """Raise an OSError from within as the error response that says so."""
    try:
        yield
    except OSError as error:
        raise HttpError(500, f"{problem}: {error.strerror or error}")


def _tag(text: str) -> bytes:
    return f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'.encode()


def _given(call: AdminRequest) -> str:
    body = call.body
    if len(body) > MAX_CONFIG_BYTES:
        raise HttpError(
            413,
            f"the configuration has {len(body)} bytes, over HTTP at most {MAX_CONFIG_BYTES} are accepted; "
            "change the file on disk instead",
        )
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError:
        raise HttpError(400, "a configuration is UTF-8 text")


def unmasked(text: str, shown: str, masks: MarkedMasks) -> str:
    """An edited text with the secrets put back that its editor never saw.

    Stars without a secret behind them are refused, unless they are in a comment or in a line of `shown`, the current
    text with its masks.
    """

    def line_of(number: int, line: str) -> str:
        parts = MARKED.split(line)
        found = [masks.secret_of(mask) for mask in parts[1::2]]
        bare = None in found or any(MASK in part for part in parts[::2])
        if bare and not line.lstrip().startswith("#") and line.strip() not in known:
            raise HttpError(
                400, f"line {number} has {MASK} without a secret behind it: write the value, or read the text again"
            )
        parts[1::2] = [mask if secret is None else secret for mask, secret in zip(parts[1::2], found, strict=True)]
        return "".join(parts)

    known = {line.strip() for line in shown.split("\n") if MASK in line}
    return "\n".join(line_of(number, line) if MASK in line else line for number, line in enumerate(text.split("\n"), 1))


def _refused(error: ConfigError, status: int) -> Response:
    return json_answer(Validation(valid=False, errors=list(map(ProblemDocument.of, error.problems))), status)
