"""What a route is, and how a module of endpoints declares its routes.

A module decorates each handler with its `RouteTable`. `route_table.py` lists these tables; `app.py` makes one Klein map
of them and `openapi.py` one document, so that every route is in both.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator
from typing import Generic, Literal, ParamSpec, TypeVar

from attrs import define, field, frozen
from twisted.web.resource import IResource

from llamaswap.web.admin_request import Response

# None: the handler has written the response itself, as a stream. A resource takes over the request.
Reply = Response | IResource | None
Handler = Callable[..., "Reply | Awaitable[Reply]"]
SENTENCE_END = re.compile(r"[.;](?=\s|$)")
H = TypeVar("H", bound=Handler)
P = ParamSpec("P")


@frozen
class QueryParameter:
    """One query parameter, as documented."""

    name: str
    about: str
    kind: str = "string"
    repeatable: bool = False


def _method_names(text: str) -> tuple[str, ...]:
    return () if text == "ANY" else tuple(text.split())


@define(eq=False)
class Route:
    """A path, its methods, and the function of an endpoint class that handles it.

    `methods` are separated by spaces, and "ANY" stands for all; a GET route answers HEAD too. `rule` is a Klein rule;
    `<rest:name>` matches any text, slashes and the empty text included. The default `summary` is the first sentence of
    the handler's docstring.

    `changes_state`: a page of another site must not send this request, so it is refused if such a page sent it, and if
    its `Host` could belong to one. By default a route counts as such unless it serves GET alone: a forgotten argument
    must not leave a route unguarded. `runs_commands`: the request can make the server run a command that the client
    chose, so a client of another machine needs a key. `key` says who checks the API key: the admin site, the handler
    itself, or neither; `scope` which scope the key needs (`any`: none), by default `read` for a GET that changes
    nothing, else `admin`.
    `cross_origin`: any page may read the response, even without a key.

    `needs_tag`: the request must have the header `If-Match`.

    `content` is the media type of the response, and `answer` the type of its document; `body_type` and `body` say the
    same of the request's body. `error` is a further type of its errors, beside those of the API; `may_be_empty`: it may
    answer 202 without a document.
    """

    methods: tuple[str, ...] = field(converter=_method_names)
    rule: str
    summary: str = ""
    changes_state: bool | None = None
    runs_commands: bool = False
    cross_origin: bool = False
    scope: str = ""
    key: Literal["checked", "by handler", "not needed"] = "checked"
    query: tuple[QueryParameter, ...] = ()
    needs_tag: bool = False
    content: str = "application/json"
    answer: object = None
    body: object = None
    body_type: str = "application/json"
    status: int = 200
    error: object = None
    may_be_empty: bool = False
    tag: str = field(init=False)
    handler: Handler = field(init=False)

    def __attrs_post_init__(self) -> None:
        if self.changes_state is None:
            self.changes_state = self.methods != ("GET",)
        reads = self.methods == ("GET",) and not self.changes_state
        self.scope = self.scope or ("read" if reads else "admin")

    @property
    def name(self) -> str:
        """The Klein endpoint: unique and stable."""
        return f"{'_'.join(self.methods) or 'ANY'} {self.rule}"


@define(eq=False)
class RouteTable(Generic[P]):
    """Collects the routes of one group of endpoints, which the document shows under `tag`. `make` is `Route`; it is a
    parameter so that the type checker knows the arguments of the decorator."""

    tag: str
    make: Callable[P, Route]
    _routes: list[Route] = field(factory=list, init=False)

    def __iter__(self) -> Iterator[Route]:
        return iter(self._routes)

    def __call__(self, *arguments: P.args, **options: P.kwargs) -> Callable[[H], H]:
        """Declare a route of the decorated handler."""
        route = self.make(*arguments, **options)

        def declare(handler: H) -> H:
            route.tag, route.handler = self.tag, handler
            route.summary = route.summary or SENTENCE_END.split(handler.__doc__ or "", maxsplit=1)[0]
            self._routes.append(route)
            return handler

        return declare
