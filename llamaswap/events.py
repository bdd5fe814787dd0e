"""News: what happened, told to whoever listens. Never a command, and nobody waits for a listener.

Events are frozen records; a subscriber names the classes it wants. A subscriber that raises is reported to
`on_error` and does not keep the others from hearing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from attrs import Factory, define, frozen

E = TypeVar("E")


# -- the vocabulary ----------------------------------------------------------------------------------------


@frozen
class StateChanged:
    """A model's server moved. States are the outward words: stopped, starting, ready, stopping, shutdown.

    `why` it is stopped where that was asked for: unload, idle, failed, crash, reload, shutdown or abandoned.
    """

    model: str
    old: str
    new: str
    why: str = ""


@frozen
class SleepEnded:
    """A sleeping server is gone without having been woken. Asleep it was shown as stopped, so its state stays."""

    model: str


@frozen
class SwapBegan:
    """The router began to load `model`; `evicted` go for it, `reason` says why in words.

    `origin` is what asked for it: manual, preload, restored, or `request:` with the request's id; empty: unknown.
    """

    swap: int
    model: str
    evicted: tuple[str, ...]
    reason: str
    at: float
    origin: str = ""


@frozen
class SwapEnded:
    """A swap came to its end; `error` is None when the model is ready. `phases` maps a phase to its seconds.

    `exit_status` is how the server's process ended where that was what went wrong: a status, or a signal's number below
    0.
    """

    swap: int
    model: str
    error: str | None
    at: float
    phases: Mapping[str, float] = Factory(dict)
    exit_status: int | None = None


@frozen
class ProfileChanged:
    """The active profile is now `active` (None: none)."""

    active: str | None


@frozen
class PeersChanged:
    """What a peer offers has changed, or whether it answers."""


@frozen
class Preloaded:
    """A model named in hooks.on_startup.preload was loaded, or failed to."""

    model: str
    success: bool


@frozen
class ConfigReloaded:
    """A new configuration is in force; the names say what it touched."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    restarted: tuple[str, ...] = ()
    retuned: tuple[str, ...] = ()


@frozen
class ConfigRejected:
    """A new configuration was refused; the old one stays in force."""

    message: str


@frozen
class ActivityStored:
    """A request's row was stored under `row` (the store's id)."""

    row: int


# -- the bus -----------------------------------------------------------------------------------------------


@define
class EventBus:
    """Deliver each published event to the subscribers of its class, in the order they subscribed."""

    on_error: Callable[[Exception], None]
    _subscribers: dict[type[Any], list[Callable[[Any], None]]] = Factory(dict)

    def subscribe(self, kind: type[E], callback: Callable[[E], None]) -> Callable[[], None]:
        """Call `callback` with every later event of exactly this class; returns the unsubscriber (idempotent)."""
        listeners = self._subscribers.setdefault(kind, [])
        listeners.append(callback)

        def unsubscribe() -> None:
            if callback in listeners:
                listeners.remove(callback)

        return unsubscribe

    def publish(self, event: object) -> None:
        """Tell everyone. A copy of the list is walked: subscribers may come and go meanwhile."""
        for callback in tuple(self._subscribers.get(type(event), ())):
            try:
                callback(event)
            except Exception as error:  # the edge of a floor: a listener's fault is not the publisher's
                self.on_error(error)
