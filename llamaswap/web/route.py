"""What a route is, and how a module of endpoints declares its routes.

A module decorates each handler with its `RouteTable`. `route_table.py` lists these tables; `app.py` makes one Klein map
of them and `openapi.py` one document, so that every route is in both.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Annotated, Literal, TypeVar

from attrs import define, field, frozen
from twisted.web.resource import IResource

from llamaswap.web.admin_request import Response

# None: the handler has written the response itself, as a stream. A resource takes over the request.
Reply = Response | IResource | None
Handler = Callable[..., "Reply | Awaitable[Reply]"]
H = TypeVar("H", bound=Handler)

Timestamp = Annotated[str, ("format", "date-time")]  # RFC 3339 in a document


@frozen
class QueryParameter:
    """One query parameter, as documented."""

    name: str
    about: str
    kind: str = "string"
    repeatable: bool = False


@frozen
class Route:
    """A path, its methods, and the function of an endpoint class that handles it.

    `rule` is a Klein rule; `<rest:name>` matches any text, slashes and the empty text included. Without `methods` the
    route serves every method. `changes_state`: a page of another site must not send this request, so it is refused if
    such a page sent it, and if its `Host` could belong to one. `runs_commands`: the request can make the server run a
    command that the client chose, so a client of another machine needs a key. `key` says who checks the API key: the
    admin site, the handler itself, or neither. `cross_origin`: any page may read the response, even without a key.

    `content` is the media type of the response, and `answer` the type of its document; `body_type` and `body` say the
    same of the request's body.
    """

    rule: str
    methods: tuple[str, ...]
    handler: Handler
    summary: str
    tag: str
    changes_state: bool
    runs_commands: bool
    cross_origin: bool
    key: Literal["checked", "by handler", "not needed"]
    query: tuple[QueryParameter, ...]
    content: str
    answer: object
    body: object
    body_type: str
    status: int

    @property
    def name(self) -> str:
        """The Klein endpoint: unique and stable."""
        return f"{'_'.join(self.methods) or 'ANY'} {self.rule}"


@define(eq=False)
class RouteTable:
    """Collects the routes of one group of endpoints, which the document shows under `tag`."""

    tag: str
    _routes: list[Route] = field(factory=list, init=False)

    def __iter__(self) -> Iterator[Route]:
        return iter(self._routes)

    def __call__(
        self,
        methods: str,
        rule: str,
        *,
        summary: str = "",
        changes_state: bool | None = None,
        runs_commands: bool = False,
        cross_origin: bool = False,
        key: Literal["checked", "by handler", "not needed"] = "checked",
        query: tuple[QueryParameter, ...] = (),
        content: str = "application/json",
        answer: object = None,
        body: object = None,
        body_type: str = "application/json",
        status: int = 200,
    ) -> Callable[[H], H]:
        """Declare a route of the decorated handler. `methods` are separated by spaces, "ANY" stands for all; a GET
        route answers HEAD too. The default summary is the first sentence of the handler's docstring, and a route counts
        as changing state unless it serves GET alone: a forgotten argument must not leave a route unguarded.
        """

        def declare(handler: H) -> H:
            route = Route(
                rule,
                () if methods == "ANY" else tuple(methods.split()),
                handler,
                summary or (handler.__doc__ or "").partition(".")[0].partition(";")[0],
                self.tag,
                methods != "GET" if changes_state is None else changes_state,
                runs_commands,
                cross_origin,
                key,
                query,
                content,
                answer,
                body,
                body_type,
                status,
            )
            self._routes.append(route)
            return handler

        return declare
