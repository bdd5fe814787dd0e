"""Events: what happened, for any number of subscribers. An event is never a command, and nothing waits for a
subscriber.

Events are frozen records; a subscriber names the classes it wants. A subscriber that raises an exception is reported to
`on_error` and does not affect the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from attrs import Factory, define, frozen

E = TypeVar("E")


# -- the events --------------------------------------------------------------------------------------------


@frozen
class StateChanged:
    """A model's server changed its state: stopped, starting, ready, stopping or shutdown.

    `why` it stops or has stopped: unload, idle, failed, crash, reload, shutdown or abandoned.
    """

    model: str
    old: str
    new: str
    why: str = ""


@frozen
class SleepEnded:
    """A suspended server exited without having been resumed. It was shown as stopped, so its state does not change."""

    model: str


@frozen
class RequestQueued:
    """A request for a model waits, for a load or in the queue."""

    model: str


@frozen
class SwapBegan:
    """The router began to load `model` and evicts `evicted` for it; `reason` explains why.

    `origin` is what asked for it: manual, preload, restored, or `request:` with the request's id; empty if unknown.
    It is loaded on `host`, "" for this machine.
    """

    swap: int
    model: str
    evicted: tuple[str, ...]
    reason: str
    at: float
    origin: str = ""
    host: str = ""


@frozen
class SwapEnded:
    """A swap ended; `error` is None if the model is ready. `phases` maps a phase to its seconds.

    `exit_status` is that of the server's process if its exit was the cause: a status, or a negative signal number.
    """

    swap: int
    model: str
    error: str | None
    at: float
    phases: Mapping[str, float] = Factory(dict)
    exit_status: int | None = None


@frozen
class LoadFailed:
    """A load that an operator asked for failed after it was accepted, or a model cannot be started, which leaves its
    state as it is."""

    model: str
    error: str


@frozen
class ProfileChanged:
    """The active profile is now `active` (None: none)."""

    active: str | None


@frozen
class PeersChanged:
    """The models of a peer have changed, or whether it answers."""


@frozen
class CapabilitiesFound:
    """A model's server reported capabilities that were not known."""

    model: str


@frozen
class Preloaded:
    """A model named in hooks.on_startup.preload was loaded, or failed to."""

    model: str
    success: bool


@frozen
class ConfigReloaded:
    """A new configuration is in force; the names are those of the models that it changed."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    restarted: tuple[str, ...] = ()
    retuned: tuple[str, ...] = ()


@frozen
class ConfigRejected:
    """A new configuration was rejected; the old one stays in force."""

    message: str


# -- the bus -----------------------------------------------------------------------------------------------


@define
class EventBus:
    """Delivers each event to the subscribers of its class, in the order of their subscriptions."""

    on_error: Callable[[Exception], None]
    _subscribers: dict[type[Any], list[Callable[[Any], None]]] = Factory(dict)

    def subscribe(self, kind: type[E], callback: Callable[[E], None]) -> None:
        """Call `callback` with every later event of exactly this class."""
        self._subscribers.setdefault(kind, []).append(callback)

    def publish(self, event: object) -> None:
        """Deliver an event. Subscribers may subscribe meanwhile."""
        for callback in tuple(self._subscribers.get(type(event), ())):
            try:
                callback(event)
            except Exception as error:  # a subscriber's fault must not reach the publisher
                self.on_error(error)
