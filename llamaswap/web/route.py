"""What a route is, and how the tables of the groups are written.

Each group of endpoints (listing, processes, logs ...) keeps its table beside its handlers; `app.py` turns all of
them into one Klein map and `openapi.py` into one document, so a route cannot exist in one and not in the other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from attrs import frozen
from twisted.web.resource import IResource

from llamaswap.web.admin_request import AdminRequest, Response

# None: the handler has written the answer itself (a stream). A resource takes the request over.
Reply = Response | IResource | None
Handler = Callable[[Any, AdminRequest], "Reply | Awaitable[Reply]"]


@frozen
class QueryParameter:
    """One query parameter, as documented."""

    name: str
    about: str
    kind: str = "string"
    repeatable: bool = False


@frozen
class Route:
    """A path with its methods and its handler (an unbound method of `group`).

    `rule` is a Klein rule; `<rest:name>` matches anything, slashes and nothing included. `methods` empty: any.
    `changes_state`: the request does something that a page of another site must not cause, so it is refused for such
    pages and for a `Host` that could be theirs. `open` routes need no key; `own_gate` routes check it themselves.
    `runs_commands`: the request can make the server run a command of the caller's choice, so a client of another
    machine needs a key. `content` is the answer's media type, `schema` names one of openapi's schemas for it, `body`
    the request's.
    """

    rule: str
    methods: tuple[str, ...]
    group: type
    handler: Handler
    summary: str
    tag: str
    changes_state: bool
    runs_commands: bool = False
    open: bool = False
    own_gate: bool = False
    query: tuple[QueryParameter, ...] = ()
    content: str = "application/json"
    schema: str = ""
    body: str = ""
    status: int = 200

    @property
    def name(self) -> str:
        """The Klein endpoint: unique, stable."""
        return f"{'_'.join(self.methods) or 'ANY'} {self.rule}"


@frozen
class RouteTable:
    """Writes the routes of one group. Every route but a plain GET says whether it changes state: forgetting it would
    leave the route unguarded."""

    group: type
    tag: str

    def get(self, rule: str, handler: Handler, summary: str, *, changes_state: bool = False, **more: Any) -> Route:
        """A GET route; HEAD comes with it."""
        return Route(rule, ("GET",), self.group, handler, summary, self.tag, changes_state, **more)

    def post(self, rule: str, handler: Handler, summary: str, *, changes_state: bool, **more: Any) -> Route:
        """A POST route."""
        return Route(rule, ("POST",), self.group, handler, summary, self.tag, changes_state, **more)

    def put(self, rule: str, handler: Handler, summary: str, *, changes_state: bool, **more: Any) -> Route:
        """A PUT route."""
        return Route(rule, ("PUT",), self.group, handler, summary, self.tag, changes_state, **more)

    def any(self, rule: str, handler: Handler, summary: str, *, changes_state: bool, **more: Any) -> Route:
        """A route for every method."""
        return Route(rule, (), self.group, handler, summary, self.tag, changes_state, **more)

    def each(
        self,
        methods: tuple[str, ...],
        rule: str,
        handler: Handler,
        summary: str,
        *,
        changes_state: bool,
        **more: Any,
    ) -> Route:
        """A route for these methods."""
        return Route(rule, methods, self.group, handler, summary, self.tag, changes_state, **more)
