"""The status, code and headers of each error: one table for the proxy and the admin site.

`wire/openai.py` makes the bodies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from attrs import field, frozen

from llamaswap import errors
from llamaswap.observe.key_usage import BudgetUsedUp, KeyLimitReached
from llamaswap.observe.query import BadQuery
from llamaswap.wire import openai

Headers = list[tuple[bytes, bytes]]


@frozen
class HttpError(errors.LlamaswapError):
    """An error response of the admin site. `message` tells the client what to change."""

    status: int
    message: str
    code: str | None = None
    headers: tuple[tuple[bytes, bytes], ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        return self.message


LOG_TAIL_LINES = 10  # of a failed server's log in an error's message
LOG_TAIL_LENGTH = 1500  # characters

CHALLENGE = (b"WWW-Authenticate", b'Basic realm="llama-swap"')


def unauthorized(why: str = "invalid or missing API key", code: str | None = None) -> HttpError:
    """The error for a missing or wrong key. Its challenge makes a browser ask for the key (any user name, the key as
    password)."""
    return HttpError(401, f"unauthorized: {why}", code, headers=(CHALLENGE,))


# The status of each error, and its code if programs tell it apart. The most derived class counts. An error that is not
# in this table is a fault of this server: 500.
KINDS: Mapping[type[BaseException], tuple[int, str | None]] = {
    errors.NoModelNamed: (404, None),
    errors.UnknownModel: (404, None),
    errors.PeerLoop: (508, "peer_loop"),
    errors.TooManyRequests: (429, "concurrency_limit"),
    BudgetUsedUp: (429, "insufficient_quota"),
    KeyLimitReached: (429, None),
    errors.QueueFull: (429, "queue_full"),
    errors.WaitedTooLong: (503, "queue_timeout"),
    errors.WaitLimitReached: (503, "wait_limit"),
    errors.DoesNotFit: (507, "does_not_fit"),
    errors.MemoryInUse: (503, "memory_in_use"),
    errors.NoHost: (503, "no_host"),
    errors.LeaseRefused: (503, "lease_refused"),
    errors.Superseded: (410, "superseded"),
    errors.NoTarget: (503, None),
    errors.ModelUnloaded: (503, None),
    errors.ShuttingDown: (503, None),
    errors.BeingUpgraded: (503, "upgrading"),
    errors.StartFailed: (500, None),
    errors.KeepsFailing: (503, "model_keeps_failing"),
    errors.NotReady: (409, None),
    errors.ServerVanished: (503, None),
    errors.UpstreamUnreachable: (502, None),
    errors.UpstreamTruncated: (502, None),
    errors.ResponseLimitReached: (504, "response_limit"),
    errors.UpstreamDeclined: (502, None),
    errors.BadUpstream: (502, None),
    errors.Cancelled: (502, None),
    errors.ClientGone: (errors.CLIENT_CLOSED_REQUEST, None),
    errors.ReaderStalled: (408, None),
    errors.BadRequest: (400, None),
    errors.BodyTooLarge: (413, None),
    errors.NoRoom: (507, "no_room"),
    MemoryError: (507, "no_room"),
    errors.ConfigError: (400, None),
    BadQuery: (400, None),
}
RETRY_LATER = (
    errors.TooManyRequests,
    KeyLimitReached,
    errors.QueueFull,
    errors.KeepsFailing,
    errors.WaitedTooLong,
    errors.WaitLimitReached,
    errors.MemoryInUse,
    errors.NoHost,
    errors.LeaseRefused,
    errors.BeingUpgraded,
)


def queue_position(position: int | None) -> Headers:
    """The header that names a request's position in the queue, if it has one."""
    return [] if position is None else [(b"X-Llamaswap-Queue-Position", b"%d" % position)]


def _kind_of(error: BaseException) -> tuple[int, str | None]:
    if isinstance(error, HttpError):
        return error.status, error.code
    return next((KINDS[kind] for kind in type(error).__mro__ if kind in KINDS), (500, None))


def status_of(error: BaseException) -> int:
    """The status of an error's response; the access log has it also if the client has left."""
    return _kind_of(error)[0]


def message_of(error: BaseException) -> str:
    """The message for the client. A fault of this server is not described to it: the traceback is in the log.

    If a model's server failed, the last lines of its log follow, because they usually give the reason.
    """
    if isinstance(error, (errors.StartFailed, errors.KeepsFailing)):
        lines = "\n".join(error.log_tail.splitlines()[-LOG_TAIL_LINES:])[-LOG_TAIL_LENGTH:]
        return f"{error}\n{lines}" if lines else str(error)
    if isinstance(error, errors.LlamaswapError):
        return str(error)
    if isinstance(error, MemoryError):
        return "not enough memory for the request's body; send it again when fewer large requests are under way"
    return "internal error"


def render(
    error: BaseException, accept: str, path: str = "", *, hide: Callable[[str], str] = str
) -> tuple[int, Headers, bytes]:
    """An error as (status, headers, body), negotiated by the `Accept` value, in the dialect of `path`.

    A refusal by a concurrency limit is JSON whatever the client accepts, because load balancers and SDKs read its code.
    `hide` masks secrets in the message, which may contain lines of a server's log.
    """
    status, code = _kind_of(error)
    headers: Headers = list(error.headers) if isinstance(error, HttpError) else []
    if isinstance(error, RETRY_LATER):
        headers.append((b"Retry-After", b"%d" % error.retry_after))
    if isinstance(error, errors.WaitLimitReached):
        headers.append((b"Preference-Applied", b"wait=%d" % error.limit))
    if isinstance(error, errors.QueueFull):  # the place that the request would have had
        headers += queue_position(error.bound + 1)
    if isinstance(error, KeyLimitReached):
        headers += error.headers
    if isinstance(error, errors.Superseded):
        headers.append((b"X-Should-Retry", b"false"))  # for SDKs: a second try would supersede the first
    if isinstance(error, (errors.TooManyRequests, KeyLimitReached, errors.QueueFull)):
        accept = "application/json"
    content_type, body = openai.envelope(status, hide(message_of(error)), accept, code=code, path=path)
    return status, [(b"Content-Type", content_type), *headers], body
