"""The Klein app: every route of the admin surface, and the one place where their answers and errors are sent.

All exposure to Klein and werkzeug is in this file. The groups of endpoints are plain objects with handlers; the
model routes and the passthrough are resources that bring their own gate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from inspect import isawaitable
from typing import Any
from urllib.parse import unquote

from klein import Klein
from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET, Request, Site
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound
from werkzeug.routing import BaseConverter, RequestRedirect

from llamaswap.observe.accesslog import AccessLog, AccessRecord
from llamaswap.web import auth, errors, route_table
from llamaswap.web.admin_request import TEXT, AdminRequest, client_of
from llamaswap.web.compress import compressed
from llamaswap.web.errors import HttpError
from llamaswap.web.route import Route
from llamaswap.wire.paths import normalised_target

log = Logger()


class RestOfPathConverter(BaseConverter):
    """`<rest:name>`: whatever is left of the path, slashes included, also nothing."""

    regex = ".*?"
    part_isolating = False
    weight = 300  # after every route that says more


def _entry(route: Route) -> Callable[..., Any]:
    def handler(self: Admin, request: Request, **variables: str) -> Any:
        return self._serve(route, AdminRequest(request, {name: unquote(value) for name, value in variables.items()}))

    return handler


def _wrong_method(admin: Admin, request: Request, failure: Failure) -> bytes:
    error = failure.value
    valid = error.valid_methods if isinstance(error, MethodNotAllowed) else None
    request.setHeader(b"Allow", ", ".join(sorted(set(valid or ()) - {"OPTIONS"})).encode())
    return _plain(request, 405, b"Method Not Allowed\n")


def _not_found(admin: Admin, request: Request, failure: Failure) -> bytes:
    return _plain(request, 404, b"404 page not found\n")


def _plain(request: http.Request, status: int, body: bytes) -> bytes:
    """The router's own answers: plain text whatever the client accepts, and before any key is asked for."""
    request.setResponseCode(status)
    request.setHeader(b"Content-Type", TEXT)
    request.setHeader(b"X-Content-Type-Options", b"nosniff")
    request.setHeader(b"Content-Length", b"%d" % len(body))
    return body


def _typed(handler: Callable[..., Any]) -> Any:
    """Klein's types describe handlers of any instance; ours take an Admin."""
    return handler


class Admin:
    """The admin surface. `groups` are the objects whose handlers the route table names, one of each class;
    the routes of a class that has none are not found.
    """

    app = Klein()
    app.url_map.merge_slashes = False
    app.url_map.strict_slashes = False
    app.url_map.converters = {**app.url_map.converters, "rest": RestOfPathConverter}
    for _route in route_table.ROUTES:
        app.route(_route.rule, methods=list(_route.methods) or None, endpoint=_route.name)(_entry(_route))
    del _route
    app.handle_errors(MethodNotAllowed)(_typed(_wrong_method))
    app.handle_errors(NotFound, RequestRedirect)(_typed(_not_found))

    def __init__(self, groups: Iterable[object], keys: auth.Authenticator, hosts: auth.HostCheck) -> None:
        self._groups = {type(group): group for group in groups}
        self._gate = keys
        self._hosts = hosts

    def resource(self) -> IResource:
        """The root resource: the preflight, then the map."""
        return AdminRoot(self.app.resource())

    async def _serve(self, route: Route, call: AdminRequest) -> Any:
        try:
            if route.changes_state:
                auth.refuse_cross_site(call.first)
                self._hosts(call.first)
            if not route.own_gate and not route.open:
                self._gate.admit(call.first)
            if route.runs_commands and not self._gate.required and not call.from_this_machine:
                raise HttpError(
                    403,
                    "the configuration decides which commands run, so without an API key it can be changed only from "
                    "the server's own machine; set apiKeys to change it from others",
                )
            group = self._groups.get(route.group)
            if group is None:
                return _plain(call.request, 404, b"404 page not found\n")
            reply = route.handler(group, call)
            if isawaitable(reply):
                reply = await reply
        except CancelledError:
            raise  # the client left; Klein knows
        except Exception as error:  # the edge of this floor: each failure becomes an answer here and nowhere else
            return self._failed(route, call, error)
        if reply is None or IResource.providedBy(reply):
            return reply
        return call.answer(compressed(reply, call.first(b"accept-encoding")))

    def _failed(self, route: Route, call: AdminRequest, error: Exception) -> bytes | None:
        status, headers, body = errors.render(error, call.accept, call.path)
        if status == 500:
            log.failure("{route} failed", route=route.name)
        request = call.request
        if request.startedWriting:
            # A part of the answer is out; an appended error would look like the rest of it.
            request.loseConnection()
            return None
        request.setResponseCode(status)
        for name in (b"Content-Length", b"Content-Encoding", b"Content-Type"):
            request.responseHeaders.removeHeader(name)
        for name, value in (*headers, (b"Content-Length", b"%d" % len(body))):
            request.responseHeaders.addRawHeader(name, value)
        return body


class AdminRoot(Resource):
    """Before the map: OPTIONS is answered for every path, and nobody is told which software serves."""

    isLeaf = True

    def __init__(self, inner: Resource) -> None:
        super().__init__()
        self._inner = inner

    def render(self, request: Request) -> Any:
        """Answer the preflight; hand everything else to Klein."""
        request.responseHeaders.removeHeader(b"Server")
        request.defaultContentType = None

        def first(name: bytes) -> bytes | None:
            values = request.requestHeaders.getRawHeaders(name)
            return values[0] if values else None

        if request.method == b"OPTIONS":
            request.setResponseCode(204)
            for name, value in auth.preflight(first):
                request.setHeader(name, value)
            request.finish()  # Twisted would give what is returned a length, and a 204 has none
            return NOT_DONE_YET
        try:
            return self._inner.render(request)
        except HTTPException:  # a Host header that is no host name
            return _plain(request, 400, b"Bad Request\n")


class AdminSite(Site):
    """A Site that writes our access log, also for clients that left before their answer's end."""

    noisy = False

    def __init__(
        self,
        resource: IResource,
        access: AccessLog | None,
        clock: IReactorTime,
        content: Callable[[int | None], Any] | None = None,
    ) -> None:
        # Forms are the pipeline's to read; parsing them here would hold big uploads in memory a second time.
        super().__init__(resource, parsePOSTFormSubmission=False, reactor=clock)
        self._access = access
        self._clock = clock
        if content is not None:
            self.getContentFile = content  # what twisted.web keeps a body in

    def getResourceFor(self, request: Request) -> Any:
        """Give the path its one spelling, and write the request's line when it is over."""
        request.uri = normalised_target(request.uri)
        request.path = request.uri.partition(b"?")[0]
        # Still encoded: the map separates at real slashes only, and decodes the variables it found.
        request.postpath = request.path[1:].split(b"/")
        if self._access is not None:
            began = self._clock.seconds()
            request.notifyFinish().addBoth(lambda _: self._served(request, self._clock.seconds() - began))
        return super().getResourceFor(request)

    def log(self, request: http.Request) -> None:
        """Nothing: twisted.web's own line would be a second one."""

    def _served(self, request: Request, seconds: float) -> None:
        access = self._access
        if access is None:
            return
        access.served(
            AccessRecord(
                ip=client_of(request),
                method=request.method,
                path=request.uri.partition(b"?")[0],
                protocol=request.clientproto.decode("latin-1"),
                status=request.code,
                sent=request.sentLength,
                user_agent=(request.requestHeaders.getRawHeaders(b"user-agent") or [b""])[0],
                seconds=seconds,
            )
        )


def has_route(path: bytes) -> bool:
    """Whether a route has this raw path, for whatever method."""
    try:
        Admin.app.url_map.bind("").match(unquote(path.decode("latin-1")), method="POST")
    except NotFound:
        return False
    except HTTPException:
        return True
    return True


def make_site(
    admin: Admin,
    *,
    clock: IReactorTime,
    access: AccessLog | None = None,
    content: Callable[[int | None], Any] | None = None,
) -> Site:
    """The HTTP factory of everything but the front door's model routes. `content(length)` makes the file-like object
    that keeps a request's body; None: twisted.web's own."""
    return AdminSite(admin.resource(), access, clock, content)


def routes() -> Sequence[Route]:
    """Every route of the map, as declared."""
    return route_table.ROUTES
