"""The admin surface put together: the groups of endpoints and what they work with, in one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attrs import define
from twisted.internet.interfaces import IReactorTime
from twisted.web.resource import IResource

from llamaswap.bus import Bus
from llamaswap.observe.captures import Captures
from llamaswap.observe.logs import LogBook
from llamaswap.version import Build
from llamaswap.web import table
from llamaswap.web.activity import Activity
from llamaswap.web.app import Admin
from llamaswap.web.doors import Doors
from llamaswap.web.editing import ConfigFiles, Editing
from llamaswap.web.events import Events
from llamaswap.web.gate import Gate
from llamaswap.web.listing import Listing
from llamaswap.web.loadtest import Generator, LoadTests
from llamaswap.web.logs import Logs
from llamaswap.web.models import Models
from llamaswap.web.needs import ActivityBook, Fleet, HistoryBook, InflightBook, MachineBook
from llamaswap.web.openapi import OpenApi
from llamaswap.web.processes import Processes
from llamaswap.web.profiles import Profiles
from llamaswap.web.reloads import Reloads
from llamaswap.web.streams import Streams
from llamaswap.web.system import System
from llamaswap.web.ui import Ui

UI_FILES = Path(__file__).parent / "ui_dist"


@define(eq=False)
class Surface:
    """What the service keeps: the app for its site, and what has to end when it stops."""

    admin: Admin
    streams: Streams
    loadtests: LoadTests

    def close(self) -> None:
        """End load tests, event and log streams; later ones end at once."""
        self.loadtests.close()
        self.streams.end_all()


def make_surface(
    *,
    router: Fleet,
    bus: Bus,
    clock: IReactorTime,
    wall: Callable[[], float],
    build: Build,
    gate: Gate,
    book: LogBook,
    inflight: InflightBook,
    activity: ActivityBook,
    captures: Captures,
    machine: MachineBook,
    hardware: Callable[[], Mapping[str, Any] | None],
    meters: Callable[[], bytes],
    history: HistoryBook,
    files: ConfigFiles,
    model_routes: IResource,
    passthrough: IResource,
    comfyui: IResource,
    generator: Generator | None = None,
    ui_files: Path = UI_FILES,
) -> Surface:
    """Everything but the front door. `router.config` is asked anew for each request: a reload replaces it."""

    def config() -> Any:
        return router.config

    def features() -> dict[str, bool]:
        return {
            "performance": machine.enabled,
            "hardware": hardware() is not None,
            "captures": captures.enabled,
            "store": config().store is not None,
            "config_edit": files.editable,
            "loadtest": generator is not None,
        }

    streams = Streams()
    loadtests = LoadTests(config, clock, generator)
    groups: list[object] = [
        Doors(model_routes, passthrough, comfyui),
        Listing(router, config, wall),
        Processes(router, config),
        Logs(book, config, streams),
        Profiles(router, config),
        Events(router, config, bus, book, inflight, activity, streams, clock),
        Activity(activity, captures, inflight, streams),
        System(build, machine, hardware, meters, features),
        Models(router, config, inflight, history, book, clock),
        Editing(files, config, Reloads(bus, wall)),
        loadtests,
        OpenApi(lambda: table.ROUTES, build),
        Ui(ui_files, router, config),
    ]
    return Surface(Admin(groups, gate), streams, loadtests)


def gate_of(router: Fleet) -> Gate:
    """A gate for the keys of the configuration in force."""
    return Gate(lambda: [key.value.encode() for key in router.config.api_keys])
