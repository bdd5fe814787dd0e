"""Newer requests that take the place of older ones: an editor asks for a completion at every keystroke, and
needs only the last. If a model has `supersede`, a new request takes the place of the session's waiting one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from attrs import define, field

from llamaswap.config import Model
from llamaswap.observe.activity_recorder import session, session_headers
from llamaswap.proxy.exchange import RequestHead
from llamaswap.routing.interfaces import NO_STANDING, Standing
from llamaswap.routing.leases import PendingLease
from llamaswap.routing.router import Router
from llamaswap.wire import headers as header_rules


def supersede_key(model: Model, head: RequestHead, client_address: str, sessions: Sequence[str]) -> Hashable | None:
    """Equal for requests that may take each other's place: those of one session (or client), path and model.

    None if the request takes no other's place.
    """
    if not model.supersede:
        return None
    name = model.replica_of or model.id
    known = session(head.headers, session_headers(sessions))
    # Another key means another user, whatever else is the same.
    keys = tuple(head.first(name) for name in sorted(header_rules.CREDENTIALS))
    if known:
        return name, head.path, keys, "session", known
    if model.supersede != "client":
        return None
    return (
        name,
        head.path,
        keys,
        header_rules.real_client_address(head.first, client_address),
        head.first(b"user-agent"),
    )


@define(eq=False)
class SupersedeRegistry:
    """The last waiting request of each session. `router` may be any object with `request` and `succeed`."""

    _waiting: dict[Hashable, PendingLease] = field(factory=dict, init=False)

    def request(
        self,
        router: Router,
        model: str,
        key: Hashable | None,
        *,
        on_position: Callable[[int], None] | None = None,
        origin: str = "",
        standing: Standing = NO_STANDING,
    ) -> PendingLease:
        """Ask for a model, in the place of an older waiting request with the same key, if there is one."""
        if key is None:
            return router.request(model, on_position=on_position, origin=origin, standing=standing)
        older = self._waiting.pop(key, None)
        pending = router.supersede(older, on_position=on_position) if older is not None else None
        if pending is None:
            pending = router.request(model, on_position=on_position, origin=origin, standing=standing)
        if pending.refusal is None and not pending.ready:
            self._waiting[key] = pending
        return pending

    def ended(self, key: Hashable | None, pending: PendingLease) -> None:
        """The request waits no longer."""
        if key is not None and self._waiting.get(key) is pending:
            del self._waiting[key]
