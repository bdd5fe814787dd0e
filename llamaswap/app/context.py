"""What every part of the service is built with: the reactor, the settings and the event bus."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from attrs import frozen
from twisted.internet.interfaces import (
    IReactorCore,
    IReactorFromThreads,
    IReactorProcess,
    IReactorSocket,
    IReactorTCP,
    IReactorTime,
    IReactorUNIX,
)

from llamaswap.app.settings import ServiceSettings
from llamaswap.events import EventBus


class IServiceReactor(
    IReactorCore, IReactorFromThreads, IReactorProcess, IReactorSocket, IReactorTCP, IReactorTime, IReactorUNIX
):
    """The interfaces that the service needs of its reactor."""


@frozen
class ServiceContext:
    """`environ` is the environment of this process, `child_environ` the one that other processes get."""

    reactor: IServiceReactor
    settings: ServiceSettings
    environ: Mapping[str, str]
    child_environ: Mapping[str, str]
    bus: EventBus


@frozen
class ServiceControl:
    """What the admin API reads from and asks of the service as a whole.

    `bound_address` returns the address of the listening socket, of whatever kind its endpoint is; `upgrade_status` the
    document of `GET /api/upgrade`.
    """

    reload: Callable[[], None]
    bound_address: Callable[[], object]
    upgrade_status: Callable[[], dict[str, object]]
