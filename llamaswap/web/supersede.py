"""Newer requests that take the place of older ones: an editor asks for a completion at every stroke, and only the last
one is wanted. Where a model says so (`supersede`), what still waits in its queue is handed on instead of added to.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from attrs import define, field

from llamaswap.config import Model
from llamaswap.observe.activity_recorder import session
from llamaswap.routing.interfaces import Admission
from llamaswap.routing.leases import PendingLease
from llamaswap.wire import headers as header_rules


def supersede_key(
    model: Model, path: bytes, headers: Sequence[tuple[bytes, bytes]], peer: str, sessions: Sequence[str]
) -> Hashable | None:
    """Whose place a request may take: equal for those of one session (or client), path and model; None for nobody's."""
    if not model.supersede:
        return None
    known = session(headers, [name.lower().encode("latin-1", "replace") for name in sessions])
    # Whatever else is the same: who has another key is somebody else.
    keys = tuple(header_rules.first(headers, name) for name in sorted(header_rules.CREDENTIALS))
    if known:
        return model.id, path, keys, "session", known
    if model.supersede != "client":
        return None
    return model.id, path, keys, header_rules.client_address(headers, peer), header_rules.first(headers, b"user-agent")


@define(eq=False)
class SupersedeRegistry:
    """The last request of each session that waits."""

    _waiting: dict[Hashable, PendingLease] = field(factory=dict, init=False)

    def request(
        self,
        router: Admission,
        model: str,
        heir: Hashable | None,
        *,
        on_position: Callable[[int], None] | None = None,
        origin: str = "",
    ) -> PendingLease:
        """Ask for a model, in the place of an older request of the same `heir` where one waits."""
        if heir is None:
            return router.request(model, on_position=on_position, origin=origin)
        older = self._waiting.pop(heir, None)
        acquisition = router.supersede(older, on_position=on_position) if older is not None else None
        if acquisition is None:
            acquisition = router.request(model, on_position=on_position, origin=origin)
        if acquisition.refusal is None and not acquisition.ready:
            self._waiting[heir] = acquisition
        return acquisition

    def over(self, heir: Hashable | None, acquisition: PendingLease) -> None:
        """It does not wait any more."""
        if heir is not None and self._waiting.get(heir) is acquisition:
            del self._waiting[heir]
