"""When a request that one target of a selector did not serve goes on to the next one."""

from __future__ import annotations

from llamaswap.errors import BeingUpgraded, ModelUnloaded, RequestError, ShuttingDown, StartFailed, UnknownModel
from llamaswap.web.errors import status_of
from llamaswap.web.proxy_request import ProxyRequest

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
