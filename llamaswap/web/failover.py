"""When a request that was not served is sent once more: to the next target of a selector, or to a new server."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from llamaswap.errors import (
    BeingUpgraded,
    ClientGone,
    HostVanished,
    LlamaswapError,
    ModelUnloaded,
    RequestError,
    ShuttingDown,
    StartFailed,
    UnknownModel,
    UpstreamTruncated,
    UpstreamUnreachable,
)
from llamaswap.proxy.exchange import Exchange
from llamaswap.routing.leases import Lease
from llamaswap.web.errors import status_of
from llamaswap.web.proxy_request import ProxyRequest

EXIT_NOTICE_DELAY = 0.1  # seconds: a server's closed socket is noticed before its exit

# A target with one of these statuses or failures is too busy or absent: the next target of the selector may serve.
# UnknownModel is among them because a peer that does not answer has not listed its models yet.
DECLINED_STATUSES = frozenset((429, 502, 503))
DECLINED_FAILURES = (StartFailed, UnknownModel)
# An operator asked for these: to go on to the next target could load another model at once.
FINAL_FAILURES = (BeingUpgraded, ModelUnloaded, ShuttingDown)


def may_fail_over(request: ProxyRequest, error: RequestError) -> bool:
    """Whether the selector's next target may serve the request after this failure."""
    exchange = request.exchange
    if not request.other_targets or exchange.sink.started or exchange.gone or request.cancelled:
        return False
    if isinstance(error, FINAL_FAILURES):
        return False
    return status_of(error) in DECLINED_STATUSES or isinstance(error, DECLINED_FAILURES)


async def require_retry(
    error: LlamaswapError, request: ProxyRequest, lease: Lease, clock: IReactorTime, may_retry: bool, closing: bool
) -> None:
    """Raise the error for the client, unless the lease's server has exited and a new one may be asked."""
    exchange, repeatable = request.exchange, may_retry and request.repeatable
    if isinstance(error, UpstreamTruncated) and (lease.unloaded or closing):
        why = "the model was unloaded" if lease.unloaded else "llamaswap is shutting down"
        raise UpstreamTruncated(error.where, why) from error
    if isinstance(error, HostVanished):
        if exchange.sink.started:
            raise UpstreamTruncated(lease.ticket.model, str(error)) from error
        if not repeatable:
            raise UpstreamUnreachable(lease.ticket.model, str(error)) from error
    elif isinstance(error, UpstreamUnreachable):
        exited = may_retry and await server_exited(lease, request, clock)
        if lease.unloaded:
            # A second attempt would load again what an operator has just unloaded.
            raise ModelUnloaded(lease.ticket.model) from error
        if not exited or not request.repeatable:
            raise error
    else:
        raise error


async def server_exited(lease: Lease, request: ProxyRequest, clock: IReactorTime) -> bool:
    """Whether the server that closed the connection has exited, or is known to have in a moment.

    If the agent of another host ended, that is known when its servers have, and its models are loaded elsewhere then.
    """
    if not lease.lost:
        await _pause(request.exchange, clock)
    while lease.may_have_ended and not request.cancelled:
        await _pause(request.exchange, clock)
    return lease.lost


async def _pause(exchange: Exchange, clock: IReactorTime) -> None:
    """Wait for a moment. Raises ClientGone."""
    waited: Deferred[None] = Deferred()
    timer = clock.callLater(EXIT_NOTICE_DELAY, waited.callback, None)

    def client_gone() -> None:
        timer.cancel()
        waited.callback(None)

    exchange.on_gone(client_gone)
    await waited
    exchange.forget(client_gone)
    if exchange.gone:
        raise ClientGone()
