"""The Klein app: every route of the admin site, and the one place that sends their responses and errors.

Only this module uses Klein and werkzeug. The endpoints are plain objects with handlers; the model routes and the
passthrough are resources that check the API key themselves.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable
from http.client import responses
from inspect import isawaitable
from types import FunctionType
from urllib.parse import unquote

from klein import Klein
from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http
from twisted.web.iweb import IRequest
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET, Request, Site
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound
from werkzeug.routing import BaseConverter, RequestRedirect

from llamaswap.config.schema import CorsSettings
from llamaswap.errors import StartFailed
from llamaswap.observe.accesslog import AccessLog
from llamaswap.proxy.twisted_web_adapter import SiteContent
from llamaswap.web import auth, errors, route_table
from llamaswap.web.admin_request import TEXT, AdminRequest
from llamaswap.web.compress import compressed
from llamaswap.web.errors import HttpError
from llamaswap.web.route import Route
from llamaswap.wire.byte_budget import UNBOUNDED, ByteBudget
from llamaswap.wire.headers import ALLOW_ANY_ORIGIN, allowed_origin
from llamaswap.wire.paths import normalised_target

log = Logger()

Rendered = bytes | IResource | None  # None: the response was sent
Cors = Callable[[], CorsSettings]  # the settings in force


class RestOfPathConverter(BaseConverter):
    """`<rest:name>`: the remaining path with its slashes, which may be empty."""

    regex = ".*?"
    part_isolating = False
    weight = 300  # after every more specific route


def _entry(route: Route) -> Callable[..., Awaitable[Rendered]]:
    def handler(self: Admin, request: Request, **variables: str) -> Awaitable[Rendered]:
        return self.serve(route, AdminRequest(request, {name: unquote(value) for name, value in variables.items()}))

    return handler


def _plain(request: IRequest | http.Request, status: int, body: bytes) -> bytes:
    """A response of the Klein map: plain text whatever the client accepts, and without a check of the key."""
    request.setResponseCode(status)
    request.setHeader(b"Content-Type", TEXT)
    request.setHeader(b"X-Content-Type-Options", b"nosniff")
    request.setHeader(b"Content-Length", b"%d" % len(body))
    return body


def _allow_origin(request: http.Request, origins: Collection[str]) -> None:
    """Let pages of `origins` read the response, and no others."""
    headers = request.responseHeaders
    headers.removeHeader(ALLOW_ANY_ORIGIN[0])
    for name, value in allowed_origin(request.getHeader(b"origin"), origins):
        if value not in (headers.getRawHeaders(name) or ()):
            headers.addRawHeader(name, value)


class Admin:
    """The admin site. `endpoints` are the objects whose classes declare the routes, one of each class; the routes of a
    class without an object are not found. `hide` masks secrets in the messages of errors, which may have lines of a
    server's log.
    """

    app = Klein()
    app.url_map.merge_slashes = False
    app.url_map.strict_slashes = False
    app.url_map.converters = {**app.url_map.converters, "rest": RestOfPathConverter}
    for _route in route_table.ROUTES:
        app.route(_route.rule, methods=list(_route.methods) or None, endpoint=_route.name)(_entry(_route))
    del _route

    def __init__(
        self,
        endpoints: Iterable[object],
        keys: auth.Authenticator,
        hosts: auth.HostCheck,
        cors: Cors = CorsSettings,
        hide: Callable[[str], str] = str,
    ) -> None:
        self._owners: dict[object, object] = {
            function: owner
            for owner in endpoints
            for function in vars(type(owner)).values()
            if isinstance(function, FunctionType)
        }
        self._keys = keys
        self._hosts = hosts
        self.cors = cors
        self._hide = hide

    @app.handle_errors(MethodNotAllowed)
    def wrong_method(self, request: IRequest, failure: Failure) -> bytes:
        """Answer a method that no route of the path serves."""
        error = failure.value
        valid = error.valid_methods if isinstance(error, MethodNotAllowed) else None
        request.setHeader(b"Allow", ", ".join(sorted(set(valid or ()) - {"OPTIONS"})).encode())
        return _plain(request, 405, b"Method Not Allowed\n")

    @app.handle_errors(NotFound, RequestRedirect)
    def not_found(self, request: IRequest, failure: Failure) -> bytes:
        """Answer a path without a route."""
        return _plain(request, 404, b"404 page not found\n")

    async def serve(self, route: Route, call: AdminRequest) -> Rendered:
        """Check that the request is allowed, call the route's handler, and send what it returns or raises."""
        rendered = await self._serve(route, call)
        origins = self.cors().allow_origins
        if "*" not in origins and not call.request.startedWriting:
            _allow_origin(call.request, origins)  # in place of what the handler has set
        return rendered

    async def _serve(self, route: Route, call: AdminRequest) -> Rendered:
        try:
            if route.changes_state:
                auth.refuse_cross_site(call.first)
                self._hosts(call.first)
            listed = "*" not in self.cors().allow_origins
            if route.key == "checked" and not self._keys.required and (listed or not route.cross_origin):
                self._hosts.for_reading(call.first)
            if route.key == "checked" and not route.cross_origin and not self._keys.required and not listed:
                # Without a key, any site's page could read the prompts and logs of its visitors.
                call.request.responseHeaders.removeHeader(ALLOW_ANY_ORIGIN[0])
            if route.key == "checked":
                call.access = self._keys.admit(call.first)
                call.key_name = call.access.name
                if route.scope != "any":
                    call.access.require(route.scope)
            call.keyless = not self._keys.required
            if route.runs_commands and not call.may_run_commands:
                raise HttpError(
                    403,
                    "the configuration decides which commands run, so without an API key it can be changed only from "
                    "the server's own machine; set apiKeys to change it from others",
                )
            owner = self._owners.get(route.handler)
            if owner is None:
                return _plain(call.request, 404, b"404 page not found\n")
            reply = route.handler(owner, call)
            if isawaitable(reply):
                reply = await reply
        except CancelledError:
            raise  # Klein cancels the handler if the client has left
        except Exception as error:  # every failure of a handler becomes a response here
            return self._failed(route, call, error)
        if reply is None or IResource.providedBy(reply):
            return reply
        return call.answer(compressed(reply, call.first(b"accept-encoding")))

    def _failed(self, route: Route, call: AdminRequest, error: Exception) -> bytes | None:
        status, headers, body = errors.render(error, call.accept, call.path, hide=self._hide)
        if status == 500 and not isinstance(error, StartFailed):
            log.failure("{route} failed", route=route.name)
        request = call.request
        if request.startedWriting:
            # The response has begun; an error appended to it would look like its rest.
            request.loseConnection()
            return None
        request.setResponseCode(status)
        for name in (b"Content-Length", b"Content-Encoding", b"Content-Type"):
            request.responseHeaders.removeHeader(name)
        for name, value in (*headers, (b"Content-Length", b"%d" % len(body))):
            request.responseHeaders.addRawHeader(name, value)
        return body


class AdminRoot(Resource):
    """Answers OPTIONS for every path, and removes the header that names the server's software."""

    isLeaf = True

    def __init__(self, inner: Resource, cors: Cors) -> None:
        super().__init__()
        self._inner = inner
        self._cors = cors

    def render(self, request: Request) -> bytes | int:
        """Answer a preflight; pass every other request to Klein."""
        request.responseHeaders.removeHeader(b"Server")
        request.defaultContentType = None
        settings = self._cors()
        _allow_origin(request, settings.allow_origins)
        if request.method == b"OPTIONS":
            try:
                allowed = auth.preflight(AdminRequest(request).first, settings)
            except HttpError as error:
                return _plain(request, error.status, error.message.encode())
            request.setResponseCode(204)
            for name, value in allowed:
                request.setHeader(name, value)
            request.finish()  # Twisted would add a Content-Length to a returned body, and a 204 has none
            return NOT_DONE_YET
        try:
            rendered: bytes | int = self._inner.render(request)
        except HTTPException:  # the Host header is not a host name
            return _plain(request, 400, b"Bad Request\n")
        return rendered


class SiteRequest(Request):
    """A request whose status line has a reason for every status: twisted.web knows neither 422 nor 428."""

    def setResponseCode(self, code: int, message: bytes | None = None) -> None:
        """Set the status, and its standard reason phrase unless another one is given."""
        super().setResponseCode(code, message or responses.get(code, "").encode())


class AdminSite(Site):
    """A Site that writes the access log, also for clients that left before the end of their response.

    `memory` and `disk` bound the bodies of all requests.
    """

    noisy = False
    requestFactory = SiteRequest

    def __init__(
        self,
        admin: Admin,
        clock: IReactorTime,
        access: AccessLog | None = None,
        memory: ByteBudget = UNBOUNDED,
        disk: ByteBudget = UNBOUNDED,
    ) -> None:
        # The proxy reads forms itself; parsing them here would hold large uploads in memory a second time.
        super().__init__(AdminRoot(admin.app.resource(), admin.cors), parsePOSTFormSubmission=False, reactor=clock)
        self._access = access
        self._clock = clock
        self.getContentFile = lambda length: SiteContent(clock, length, memory, disk)

    def getResourceFor(self, request: Request) -> IResource:
        """Normalise the path, and write the request's line to the access log at its end."""
        request.uri = normalised_target(request.uri)
        request.path = request.uri.partition(b"?")[0]
        # Still encoded: Klein separates at real slashes only, and the variables are decoded afterwards.
        request.postpath = request.path[1:].split(b"/")
        if self._access is not None:
            request.notifyFinish().addBoth(self._served, request, self._access, self._clock.seconds())
        resource: IResource = super().getResourceFor(request)
        return resource

    def log(self, request: http.Request) -> None:
        """Write nothing, because twisted.web's line would be a second one."""

    def _served(self, _: object, request: Request, access: AccessLog, began: float) -> None:
        call = AdminRequest(request)
        access.served(
            ip=call.client,
            method=request.method,
            path=request.uri.partition(b"?")[0],
            protocol=request.clientproto.decode("latin-1"),
            status=request.code,
            sent=request.sentLength,
            agent=call.first(b"user-agent") or b"",
            seconds=self._clock.seconds() - began,
            key=call.key_name,
        )


def has_route(path: bytes) -> bool:
    """Whether a route has this raw path, in whatever spelling and for whatever method."""
    path = normalised_target(path)
    try:
        Admin.app.url_map.bind("").match(unquote(path.decode("latin-1")), method="POST")
    except NotFound:
        return False
    except HTTPException:
        return True
    return True
