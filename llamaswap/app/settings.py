"""The settings of the command line, what follows from them, and the context in which every part is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from attrs import frozen
from twisted.internet.interfaces import (
    IReactorCore,
    IReactorFromThreads,
    IReactorProcess,
    IReactorSocket,
    IReactorUNIX,
    IStreamServerEndpoint,
)

from llamaswap.config import ConfigText, files
from llamaswap.demo import demo_config
from llamaswap.events import EventBus
from llamaswap.proxy.connector import IReactorForConnections
from llamaswap.proxy.listen import ListenAddress
from llamaswap.servers.server_request import IReactorForRequests
from llamaswap.state_folder import state_folder
from llamaswap.upgrade.program import AdoptingReactor, InheritedState


class IServiceReactor(
    IReactorForConnections,
    IReactorForRequests,
    IReactorCore,
    IReactorFromThreads,
    IReactorProcess,
    IReactorSocket,
    IReactorUNIX,
):
    """The interfaces that the service needs of its reactor."""


@frozen
class ServiceSettings:
    """The settings of the command line. `config` and `config_dir` are paths; `demo` replaces both.

    So does `agent`, the name of this host for another llamaswap, which decides about the models here.
    """

    listen: ListenAddress
    config: str | None = None
    config_dir: str | None = None
    demo: bool = False
    watch: bool = False
    allow_config_edit: bool = False
    agent: str = ""


@frozen
class ServiceContext:
    """What every part is built with. `environ` is the environment of this process, `child_environ` the one that other
    processes get.

    The last four ask the service as a whole: `bound_address` returns the address of the listening socket, of whatever
    kind its endpoint is, `ollama_port` the number of the second one's port (None: there is none), and `upgrade_status`
    the document of `GET /api/upgrade`.
    """

    reactor: IServiceReactor
    settings: ServiceSettings
    environ: Mapping[str, str]
    child_environ: Mapping[str, str]
    bus: EventBus
    reload: Callable[[], None]
    bound_address: Callable[[], object]
    ollama_port: Callable[[], int | None]
    upgrade_status: Callable[[], dict[str, object]]


def record_path(listen: ListenAddress, environ: Mapping[str, str]) -> Path | None:
    """The file that names our servers for the next start at the same address; None if the port is any."""
    if listen.address is not None and listen.address[1] == 0:
        return None
    name = "".join(char if char.isalnum() or char in ".-" else "_" for char in listen.text)
    return state_folder(environ) / f"servers{name}.json"


def sources_of(settings: ServiceSettings) -> list[ConfigText]:
    """The present texts of the configuration."""
    if settings.agent:
        from llamaswap.cluster.agent_protocol import agent_config  # here, because it is not needed on one host

        return [agent_config({})]
    if settings.demo:
        return [ConfigText("demo.yaml", demo_config())]
    return files.read_sources(settings.config, settings.config_dir)


def listening_endpoint(
    reactor: IServiceReactor, listen: ListenAddress, inherited: InheritedState | None
) -> IStreamServerEndpoint:
    """The endpoint to listen on, with the inherited socket if there is one. Raises as `ListenAddress.endpoint` does."""
    if inherited is None:
        return listen.endpoint(reactor)
    return AdoptingReactor(reactor, inherited.listening).endpoint(listen)
