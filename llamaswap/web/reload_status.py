"""How the last reload of the configuration ended, kept from the bus for later requests."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field

from llamaswap.events import ConfigRejected, ConfigReloaded, EventBus
from llamaswap.observe.log_format import local_time, rfc3339


@define(eq=False)
class ReloadEvents:
    """Keeps the outcome of the last reload. `wall` gives unix seconds."""

    bus: EventBus
    wall: Callable[[], float]
    _result: str = field(default="started", init=False)
    _message: str = field(default="", init=False)
    _at: float = field(init=False)
    _touched: dict[str, list[str]] = field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self._at = self.wall()
        self.bus.subscribe(ConfigReloaded, self._reloaded)
        self.bus.subscribe(ConfigRejected, self._rejected)

    def status(self) -> dict[str, object]:
        """`result` is started (never reloaded), reloaded or rejected (the previous configuration is in force)."""
        return {
            "result": self._result,
            "at": rfc3339(local_time(self._at)),
            "message": self._message,
            "touched": self._touched,
        }

    def _reloaded(self, event: ConfigReloaded) -> None:
        self._result, self._message, self._at = "reloaded", "", self.wall()
        self._touched = touched_models(event)

    def _rejected(self, event: ConfigRejected) -> None:
        self._result, self._message, self._at = "rejected", event.message, self.wall()
        self._touched = {}


def touched_models(event: ConfigReloaded) -> dict[str, list[str]]:
    """The models that a reload touched, by what it did to them."""
    return {
        "added": list(event.added),
        "removed": list(event.removed),
        "restarted": list(event.restarted),
        "retuned": list(event.retuned),
    }
