"""Every error that is raised on purpose.

The classes have fields instead of texts for one audience: `web/errors.py` turns them into statuses and bodies, the log
into lines. Nothing here knows HTTP. The module is over 400 lines long because it is the one list of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from attrs import evolve, field, frozen


class LlamaswapError(Exception):
    """Base of all errors below; `str()` is a sentence that an operator can act on: `text` with the fields of `self`."""

    text: ClassVar[str] = ""

    def __str__(self) -> str:
        return self.text.format(self=self) if self.text else super().__str__()


def plain_error(text: str) -> str:
    """The text of an error without the Go program's phrase, which its clients may read but which says nothing."""
    return text.replace("unspecific error: ", "")


# -- configuration -----------------------------------------------------------------------------------------


@frozen
class Problem:
    """One error or warning about a configuration.

    `path` is dotted (`models.owl.ttl`), `file` and `line` (from 1) are None if unknown, `hint` says what to do and may
    be empty.
    """

    message: str
    path: str = ""
    file: str | None = None
    line: int | None = None
    hint: str = ""

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.file, self.line) if part is not None)
        lead = f"{place}: " if place else ""
        where = f"{self.path}: " if self.path and self.path not in self.message else ""
        tail = f" ({self.hint})" if self.hint else ""
        return f"{lead}{where}{self.message}{tail}"


class ConfigError(LlamaswapError):
    """The configuration cannot be used. A running service keeps its old one.

    `warnings` are those found before.
    """

    def __init__(self, problems: Sequence[Problem], warnings: Sequence[Problem] = ()) -> None:
        self.problems = tuple(problems)
        self.warnings = tuple(warnings)
        super().__init__("\n".join(str(problem) for problem in self.problems))


# -- asking for a model ------------------------------------------------------------------------------------


class RequestError(LlamaswapError):
    """A request for a model failed before any byte of a response."""

    def naming_only(self, may_name: Callable[[str], bool]) -> RequestError:
        """The error for a client to whom not every model may be named: the same one if it names no other model."""
        return self


def names_for(names: Sequence[str], may_name: Callable[[str], bool]) -> tuple[str, ...]:
    """Names of models for a client to whom not all may be named; the others are one entry."""
    shown = tuple(name for name in names if may_name(name))
    hidden = len(names) - len(shown)
    return (*shown, "another model" if hidden == 1 else "other models") if hidden else shown


@frozen
class NoModelNamed(RequestError):
    """The request names no model. Put `model` into its body, form or query, or set `routing.defaultModel`."""

    text = "no model id could be identified"


@frozen
class UnknownModel(RequestError):
    """No local model, alias or peer has this name. /v1/models lists those that exist."""

    model: str
    text = "no router for requested model"


@frozen
class PeerLoop(RequestError):
    """Peers pass the request on to each other. Remove the peer whose `proxy` leads back to this server."""

    peer: str
    hops: int
    text = (
        "loop detected: {self.hops} servers have passed this request on already, so it is not sent to peer"
        " {self.peer}; remove the peer that leads back to an earlier one"
    )


@frozen
class TooManyRequests(RequestError):
    """As many requests as `concurrencyLimit` allows are in progress. Raise it, or retry after `retry_after` seconds."""

    model: str
    limit: int
    retry_after: int = 1
    text = "Too many requests"


@frozen
class QueueFull(RequestError):
    """More requests wait for this model than its queue holds. Retry after `retry_after` seconds."""

    model: str
    bound: int
    retry_after: int = 1
    text = "Too many requests: {self.bound} already wait for {self.model}"


@frozen
class Superseded(RequestError):
    """A newer request of the same session (or client) took this one's place in the queue; see `supersede`."""

    model: str
    text = "superseded: a newer request for {self.model} took this one's place"


@frozen
class WaitedTooLong(RequestError):
    """The request waited in the queue longer than `maxWait`. Raise it, or check which requests take so long.

    `behind` are the models whose requests had to finish first.
    """

    model: str
    waited: float
    behind: tuple[str, ...] = ()
    retry_after: int = 1

    def __str__(self) -> str:
        names = f" for {', '.join(self.behind)}" if self.behind else ""
        return f"{self.model} could not be served within {self.waited:g}s: other requests{names} are still being served"

    def naming_only(self, may_name: Callable[[str], bool]) -> WaitedTooLong:
        """Without the names of some models."""
        return evolve(self, behind=names_for(self.behind, may_name))


@frozen
class WaitLimitReached(RequestError):
    """The model was not ready within the time that the client's `Prefer: wait` allows. Its load continues; `outlook`
    says in words when it should be ready."""

    model: str
    limit: float
    outlook: str
    retry_after: int
    text = "{self.model} is not ready within the {self.limit:g}s of Prefer: wait; {self.outlook}"


@frozen
class DoesNotFit(RequestError):
    """The model needs more memory than the machine has. Correct its `memory`, or `routing.memory` budget or reserve."""

    model: str
    need: str
    room: str
    where: str = "this machine"
    text = (
        "{self.model} needs {self.need} and does not fit {self.where}: {self.room} "
        "(see `routing.memory`: budget and reserve)"
    )


@frozen
class MemoryInUse(RequestError):
    """Other programs used the memory that the model needs for as long as the request waited. End them, or retry."""

    model: str
    need: str
    used: str
    retry_after: int = 5
    text = "{self.model} needs {self.need}, but other programs use {self.used}"


@frozen
class HostRefused(LlamaswapError):
    """A host could not take a model, because of `reason`; it is decided again where the model is loaded."""

    model: str
    host: str
    reason: str
    text = "{self.model} cannot be loaded on {self.host}: {self.reason}"


@frozen
class HostVanished(LlamaswapError):
    """The host of a request's server is offline. Its connections are cut, because they may stay open for long."""

    model: str
    host: str
    text = "{self.model}: {self.host} is offline"


@frozen
class NoHost(RequestError):
    """No host can run the model, because of `reason`. Correct its `place`, or wait until a host is back."""

    model: str
    reason: str
    retry_after: int = 5
    text = "no host can run {self.model} now: {self.reason}"


@frozen
class LeaseRefused(RequestError):
    """A lease of memory was not granted, because of `reason`. Try again later, or wait longer."""

    lease: str
    reason: str
    retry_after: int = 5
    text = "{self.lease} was not granted: {self.reason}"


@frozen
class NoTarget(RequestError):
    """A selector has no target that it could choose now."""

    selector: str
    reason: str
    text = "{self.reason}"


@frozen
class ModelUnloaded(RequestError):
    """The model was unloaded while the request waited for it. Ask again to load it."""

    model: str
    text = "unspecific error: model unloaded"


@frozen
class ShuttingDown(RequestError):
    """The service is shutting down and starts nothing new."""

    what: str = "llamaswap"
    text = "unspecific error: {self.what} is shutting down"


@frozen
class BeingUpgraded(RequestError):
    """The request waited when an upgrade in place closed requests. Send it again after `retry_after` seconds."""

    retry_after: int = 5
    text = "llamaswap is being upgraded; send the request again in {self.retry_after}s"


@frozen
class StartFailed(RequestError):
    """The model's server did not become ready. `log_tail` has its last lines, which usually contain the reason.

    `cause` is the Go program's phrase ("upstream command exited prematurely", "health check timed out after 2m0s"),
    `exit_status` the process's (negative: a signal), None if it did not exit.
    """

    model: str
    cause: str
    exit_status: int | None = None
    log_tail: str = field(default="", repr=False)
    text = "unspecific error: {self.cause}"


@frozen
class OutOfMemory(StartFailed):
    """The server did not become ready because memory ran out. `given` is the memory that was free for it, in words."""

    given: str = ""

    def __str__(self) -> str:
        given = self.given or "all that could be made free"
        return f"unspecific error: {self.cause}: {self.model} ran out of memory; it had {given}"


@frozen
class FailureRecord:
    """A model failed `count` times in a row, the last time for `cause`; no request starts it before `until`.

    `until` is on the monotonic clock. `definition` is a digest of what the model's server is started with, `tail` the
    last lines of its output; both are empty in the scheduler, which does not know them. An upgrade in place hands the
    record to the next program under these names.
    """

    model: str
    definition: str
    count: int
    until: float
    cause: str = field(repr=False)
    tail: str = field(default="", repr=False)


@frozen
class KeepsFailing(RequestError):
    """The model failed several times in a row and is in backoff. Correct its definition; loading it by hand tries at
    once.

    `retry_after` is the number of whole seconds until a request may cause the next attempt.
    """

    failure: FailureRecord
    retry_after: int

    @property
    def log_tail(self) -> str:
        """The last lines of the server's output."""
        return self.failure.tail

    text = (
        "unspecific error: {self.failure.cause}; {self.failure.model} failed {self.failure.count} times in a row "
        "and is tried again in {self.retry_after}s at the earliest"
    )


@frozen
class NotReady(RequestError):
    """The model is not loaded, and the request may not load it: a read, an ignored path, autoload=false."""

    model: str
    reason: str
    text = "{self.reason}"


@frozen
class ModelsKept(NotReady):
    """Models that may not be evicted are in the way of a load, which is the `reason`. `why` says of them why."""

    kept: tuple[str, ...] = ()
    why: str = "cannot be evicted"
    text = "{self.reason}: {self.names} {self.why}"

    @property
    def names(self) -> str:
        """The models in the way."""
        return ", ".join(self.kept)

    def naming_only(self, may_name: Callable[[str], bool]) -> ModelsKept:
        """Without the names of some models."""
        return evolve(self, kept=names_for(self.kept, may_name))


@frozen
class ServerVanished(RequestError):
    """The model's server exited between the grant and the first byte."""

    model: str
    text = "[{self.model}] process is not ready"


# -- talking to a server -----------------------------------------------------------------------------------


@frozen
class UpstreamUnreachable(RequestError):
    """Connecting failed, or the connection broke before a byte of the response. `sent` False: nothing was sent."""

    where: str
    cause: str
    sent: bool = True
    text = "{self.where}: {self.cause}"


@frozen
class UpstreamTruncated(LlamaswapError):
    """The server's response broke off: the client has an incomplete one and must be able to see that."""

    where: str
    cause: str
    text = "{self.where}: answer cut short: {self.cause}"


@frozen
class UpstreamDeclined(RequestError):
    """The server's status sends this request on to its next target; the client has not seen the response."""

    where: str
    status: int
    text = "{self.where}: answered with status {self.status}"


@frozen
class ResponseLimitReached(RequestError):
    """The response reached `bound`: the `maxDuration` or `maxTokens` of its model or key. Raise it, or ask for less."""

    model: str
    bound: str
    text = "the response of {self.model} has reached {self.bound}"


@frozen
class BadUpstream(RequestError):
    """The server's response is not HTTP, or it switched to a protocol that the client did not ask for."""

    where: str
    cause: str
    text = "{self.where}: {self.cause}"


# -- talking to a client -----------------------------------------------------------------------------------


CLIENT_CLOSED_REQUEST = 499  # reported for a request whose client left before a response; a common convention


@frozen
class ClientGone(LlamaswapError):
    """The client has left."""

    text = "client disconnected"


@frozen
class ReaderStalled(LlamaswapError):
    """The client has read nothing of its response for too long, while a request for `waiting` needs the model's memory.

    Raise `stalledReader`, or make the client read.
    """

    seconds: float
    waiting: str
    text = "the client has read nothing for {self.seconds:.0f} s while a request for {self.waiting} waits"


@frozen
class Cancelled(LlamaswapError):
    """An operator cancelled the request through the API; its client is still there."""

    text = "request cancelled"


@frozen
class BadRequest(RequestError):
    """The request cannot be understood or rewritten. `message` says what is wrong and where."""

    message: str
    text = "{self.message}"


@frozen
class NoRoom(RequestError):
    """The bodies of all requests in progress together use up their budget of `what`: memory or disk, with its limit.

    The request can be sent again later. If this recurs: send fewer large requests at once, raise the memory limit, or
    free space in the folder of temporary files (`TMPDIR`).
    """

    what: str
    text = "request body rejected: buffered bodies have used up their share of the {self.what}"


@frozen
class BodyTooLarge(RequestError):
    """The body is larger than the limit for its kind of request. `bound` is in bytes."""

    bound: int
    text = "request body is larger than {self.bound} bytes"
