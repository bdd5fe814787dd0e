"""How the last reload of the configuration ended. It is followed from the start, before the admin site is loaded."""

from __future__ import annotations

import time
from collections.abc import Callable

from attrs import define, field

from llamaswap.events import ConfigRejected, ConfigReloaded, EventBus


@define(eq=False)
class ReloadRecord:
    """The last event of a reload, None if there was none, and its time; before that the time of the start. `wall` gives
    unix seconds.
    """

    bus: EventBus
    wall: Callable[[], float] = time.time
    event: ConfigReloaded | ConfigRejected | None = field(default=None, init=False)
    at: float = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.at = self.wall()
        self.bus.subscribe(ConfigReloaded, self._ended)
        self.bus.subscribe(ConfigRejected, self._ended)

    def _ended(self, event: ConfigReloaded | ConfigRejected) -> None:
        self.event, self.at = event, self.wall()
