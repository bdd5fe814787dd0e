"""The configuration over HTTP: shown with masked secrets, checked, and - where the operator allows it - replaced."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial, wraps
from typing import Any, Protocol

from attrs import define, frozen

from llamaswap.config import Config, json_schema
from llamaswap.errors import ConfigError, Problem
from llamaswap.observe.log_format import local_time, rfc3339
from llamaswap.observe.worker import RunBlocking, at_once
from llamaswap.web.admin_request import AdminRequest, Response, json_answer
from llamaswap.web.config_history import ConfigVersion, VersionAuthor
from llamaswap.web.errors import HttpError
from llamaswap.web.reload_status import ReloadEvents
from llamaswap.web.route import Handler, RouteTable
from llamaswap.web.secret_masking import MASK, hidden_in, known_secrets, masked_yaml, named_secrets, revealed

LARGEST = 1024 * 1024  # bytes of a configuration over HTTP; checking it takes seconds. The longest known have 100 KB


@frozen
class CheckedConfig:
    """What a text would mean: its warnings, and the models it would add, remove and restart."""

    warnings: Sequence[Problem] = ()
    added: Sequence[str] = ()
    removed: Sequence[str] = ()
    restarted: Sequence[str] = ()


class ConfigFiles(Protocol):
    """The files behind the configuration in force. `editable` only where there is one, and the operator said so."""

    @property
    def editable(self) -> bool: ...

    def read(self) -> str:
        """The text in force on disk, documents of a folder joined."""

    def check(self, text: str) -> CheckedConfig:
        """What this text would mean; ConfigError when it cannot be used."""

    def write(self, text: str, author: VersionAuthor, restored: str = "") -> None:
        """Replace the file (keeping what was in it) and have it loaded; `restored` names the version this text comes
        from. OSError when the disk refuses."""

    def versions(self) -> Sequence[ConfigVersion]:
        """The texts kept, newest first."""

    def version(self, identity: str) -> str | None:
        """One of them; None where there is none of that name."""


def _on_worker(handler: Callable[[ConfigEndpoints, AdminRequest], Response]) -> Handler:
    """The handler, called by the group's `run`: texts are parsed and written there, one request after another."""

    @wraps(handler)
    def handle(group: ConfigEndpoints, call: AdminRequest) -> Awaitable[Response]:
        return group.run(partial(handler, group, call))

    return handle


@define(eq=False)
class ConfigEndpoints:
    """/api/config and its kin. `last` is how the last reload ended; `run` calls what would delay the reactor."""

    files: ConfigFiles
    config: Callable[[], Config]
    last: ReloadEvents
    run: RunBlocking = at_once

    @_on_worker
    def show(self, call: AdminRequest) -> Response:
        """The text with masked secrets; its tag names the unmasked one."""
        text = self._text()
        shown = masked_yaml(text, self._secrets(text))
        headers = ((b"ETag", _tag(text)), (b"Cache-Control", b"no-cache"))
        if _tag(text) in _tags(call.first(b"if-none-match")):
            return Response(304, b"", None, headers)
        return Response(200, shown.encode(), b"application/yaml; charset=utf-8", headers)

    @_on_worker
    def replace(self, call: AdminRequest) -> Response:
        """Put a new text in force, if it is still the old one that was edited and the new one can be used."""
        current = self._current(call)
        text = unmasked(_given(call), current, self._secrets(current))
        return self._written(call, text)

    @_on_worker
    def validate(self, call: AdminRequest) -> Response:
        """Whether a text could be used, and what it would change. Nothing is changed."""
        current = self._text()
        text = unmasked(_given(call), current, self._secrets(current))
        try:
            return json_answer({"valid": True, **_impact(self.files.check(text))})
        except ConfigError as error:
            return json_answer({"valid": False, "errors": list(map(_problem, error.problems))})

    def schema(self, call: AdminRequest) -> Response:
        """The JSON schema of the file, for editors."""
        return json_answer(json_schema())

    def status(self, call: AdminRequest) -> Response:
        """How the last reload ended."""
        return json_answer({"editable": self.files.editable, **self.last.status()})

    # -- what was in the file ------------------------------------------------------------------------------

    @_on_worker
    def history(self, call: AdminRequest) -> Response:
        """The texts that were in the file, newest first."""
        self._allowed()
        try:
            found = self.files.versions()
        except OSError as error:
            raise HttpError(500, f"earlier configurations could not be read: {error.strerror or error}")
        return json_answer({"versions": list(map(_version, found))})

    @_on_worker
    def earlier(self, call: AdminRequest) -> Response:
        """One of them, secrets masked."""
        self._allowed()
        text = self._earlier(call)
        # A key that was changed since is in no configuration in force, but may still open a door somewhere.
        shown = masked_yaml(text, self._secrets(text))
        headers = ((b"ETag", _tag(text)), (b"Cache-Control", b"no-cache"))
        return Response(200, shown.encode(), b"application/yaml; charset=utf-8", headers)

    @_on_worker
    def restore(self, call: AdminRequest) -> Response:
        """Put an earlier text in force again, by the rules of a new one."""
        self._current(call)
        return self._written(call, self._earlier(call), call.variables["version"])

    # -- parts of these ------------------------------------------------------------------------------------

    def _allowed(self) -> None:
        if not self.files.editable:
            raise HttpError(403, "configuration editing is not enabled on this server")

    def _current(self, call: AdminRequest) -> str:
        """The text that is to be replaced, if the client knows it and may."""
        self._allowed()
        current = self._text()
        condition = call.first(b"if-match")
        if condition is None:
            raise HttpError(428, "If-Match is required: send the ETag of the configuration you edited")
        if not {b"*", _tag(current)} & _tags(condition):
            raise HttpError(412, "the configuration was changed meanwhile; read it again")
        return current

    def _written(self, call: AdminRequest, text: str, restored: str = "") -> Response:
        try:
            checked = self.files.check(text)
        except ConfigError as error:
            return _refused(error)
        author = VersionAuthor(call.client, (call.first(b"user-agent") or b"").decode("latin-1"))
        try:
            self.files.write(text, author, restored)
        except OSError as error:
            raise HttpError(500, f"the configuration could not be written: {error.strerror or error}")
        return json_answer(_impact(checked), headers=((b"ETag", _tag(text)),))

    def _secrets(self, text: str) -> list[str]:
        """What must not be shown of a text: the secrets in force, and those it names itself."""
        return [*known_secrets(self.config()), *named_secrets(text)]

    def _earlier(self, call: AdminRequest) -> str:
        try:
            text = self.files.version(call.variables["version"])
        except OSError as error:
            raise HttpError(500, f"the version could not be read: {error.strerror or error}")
        if text is None:
            raise HttpError(404, "version not found")
        return text

    def _text(self) -> str:
        try:
            return self.files.read()
        except OSError as error:
            raise HttpError(500, f"the configuration could not be read: {error.strerror or error}")


def _tag(text: str) -> bytes:
    return f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'.encode()


def _tags(condition: bytes | None) -> set[bytes]:
    """The tags of a condition. A proxy that compresses makes ours weak; they name the text all the same."""
    return {one.strip().removeprefix(b"W/") for one in (condition or b"").split(b",")}


def _given(call: AdminRequest) -> str:
    body = call.body
    if len(body) > LARGEST:
        raise HttpError(
            413,
            f"the configuration has {len(body)} bytes, over HTTP at most {LARGEST} are accepted; "
            "change the file on disk instead",
        )
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError:
        raise HttpError(400, "a configuration is UTF-8 text")


def unmasked(text: str, current: str, secrets: Sequence[str]) -> str:
    """An edited text with the secrets back that its editor never saw.

    Each masked line of the text we showed is matched by its content, in order. In a line that was edited a mask is
    known by the word before it, where that had one secret in the whole text; else it is refused rather than guessed.
    """
    if MASK not in text:
        return text
    hidden: dict[str, list[str]] = {}
    secret: dict[str, set[str]] = {}
    for shown, real in zip(masked_yaml(current, secrets).split("\n"), current.split("\n"), strict=True):
        if shown != real:
            hidden.setdefault(shown.strip(), []).append(real.strip())
            for before, value in hidden_in(shown, real):
                secret.setdefault(before, set()).add(value)
    lines: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        stripped = line.strip()
        if MASK in line:
            found = hidden.get(stripped)
            if found:
                # Equal masked lines keep their order; the last secret serves copies of its line too.
                line = line.replace(stripped, found.pop(0) if len(found) > 1 else found[0])
            elif (whole := revealed(line, secret)) is not None:
                line = whole
            elif not stripped.startswith("#"):
                raise HttpError(400, f"line {number} still holds {MASK}: write the value, or leave the line as it was")
        lines.append(line)
    return "\n".join(lines)


def _problem(problem: Problem) -> Mapping[str, Any]:
    return {
        "message": problem.message,
        "path": problem.path,
        "file": problem.file,
        "line": problem.line,
        "col": None,
        "hint": problem.hint,
    }


def _impact(checked: CheckedConfig) -> dict[str, Any]:
    return {
        "warnings": list(map(_problem, checked.warnings)),
        "impact": {
            "restart": list(checked.restarted),
            "add": list(checked.added),
            "remove": list(checked.removed),
        },
    }


def _version(version: ConfigVersion) -> Mapping[str, Any]:
    return {
        "id": version.id,
        "time": rfc3339(local_time(version.at)),
        "size": version.size,
        "why": version.why,
        "address": version.author.address,
        "agent": version.author.agent,
        "restored_from": version.of or None,
        "in_force": version.in_force,
    }


def _refused(error: ConfigError) -> Response:
    return json_answer({"valid": False, "errors": list(map(_problem, error.problems))}, 422)


_table = RouteTable(ConfigEndpoints, "config")
_YAML: dict[str, Any] = {"content": "application/yaml"}
ROUTES = (
    _table.get("/api/config", ConfigEndpoints.show, "The configuration file, secrets masked", **_YAML),
    _table.put(
        "/api/config",
        ConfigEndpoints.replace,
        "Replace the configuration file",
        changes_state=True,
        runs_commands=True,
        body="Yaml",
        schema="Impact",
    ),
    _table.post(
        "/api/config/validate",
        ConfigEndpoints.validate,
        "Check a configuration",
        changes_state=True,
        body="Yaml",
        schema="Validation",
    ),
    _table.get("/api/config/schema", ConfigEndpoints.schema, "The file's JSON schema", schema="JsonSchema"),
    _table.get("/api/config/history", ConfigEndpoints.history, "Texts that were in the file", schema="ConfigHistory"),
    _table.get("/api/config/history/<string:version>", ConfigEndpoints.earlier, "One of them, secrets masked", **_YAML),
    _table.post(
        "/api/config/history/<string:version>/restore",
        ConfigEndpoints.restore,
        "Put an earlier text in force again",
        changes_state=True,
        runs_commands=True,
        schema="Impact",
    ),
    _table.get("/api/config/status", ConfigEndpoints.status, "How the last reload ended", schema="ReloadStatus"),
)
