"""The model routes and the passthrough as routes of the admin site, which hands their requests to other resources.

They are in the Klein map so that a wrong method gets its 405 and the OpenAPI document lists them.
"""

from __future__ import annotations

from typing import Annotated

from attrs import define, frozen
from twisted.web.resource import IResource

from llamaswap.web.admin_request import AdminRequest, Response, redirect
from llamaswap.web.errors import HttpError
from llamaswap.web.route import QueryParameter, Route, RouteTable
from llamaswap.web.websockets import UPGRADE_REQUIRED
from llamaswap.wire.model_routes import MODEL_ROUTES, ModelRoute


@frozen
class InferenceBody:
    """The body of an inference request, as far as this server reads it."""

    model: str
    stream: bool | None = None


@frozen
class InferenceForm:
    """The form of an inference request, as far as this server reads it."""

    model: str
    file: Annotated[str, ("contentMediaType", "application/octet-stream")] | None = None


route = RouteTable("inference", Route)
_MODEL = (QueryParameter("model", "The model to ask."),)
COMFYUI = "A request to the ComfyUI model"


@define(eq=False)
class ProxyRoutes:
    """Hands requests over. Both resources are leaves: they read the raw target themselves."""

    model_routes: IResource
    passthrough: IResource

    def model(self, call: AdminRequest) -> IResource:
        """An inference request."""
        return self.model_routes

    @route("ANY", "/comfyui/<rest:path>", changes_state=False, key="by handler", content="*/*", summary=COMFYUI)
    @route("ANY", "/upstream/<rest:path>", changes_state=False, key="by handler", content="*/*")
    def upstream(self, call: AdminRequest) -> IResource:
        """A request to one model's own server."""
        return self.passthrough

    @route(
        "GET", "/v1/responses", changes_state=False, scope="any", status=101, summary="OpenAI responses, as a websocket"
    )
    @route("GET", "/v1/realtime", changes_state=False, scope="any", status=101, query=_MODEL)
    def websocket(self, call: AdminRequest) -> Response:
        """A session of the realtime API, as a websocket; its model may be in the first `session.update` instead."""
        raise HttpError(426, f"{call.path} is a websocket", headers=UPGRADE_REQUIRED)

    @route("GET POST DELETE", "/v1/responses/<rest:response>", changes_state=False, key="by handler")
    @route("GET POST DELETE", "/v1/videos/<rest:job>", changes_state=False, key="by handler", content="*/*")
    @route("GET POST DELETE", "/v1/files/<rest:job>", changes_state=False, key="by handler", content="*/*")
    @route("GET POST DELETE", "/v1/batches/<rest:job>", changes_state=False, key="by handler", content="*/*")
    def job(self, call: AdminRequest) -> IResource:
        """A request about one response or job, which is kept here, or for the server that has it."""
        return self.model_routes

    @route("ANY", "/comfyui", changes_state=False, content="text/html", status=301)
    def comfy_slash(self, call: AdminRequest) -> Response:
        """Redirect to /comfyui/, because ComfyUI's links are relative to its folder."""
        return redirect(call.with_query("/comfyui/"), 301 if call.method in (b"GET", b"HEAD") else 308, call.method)


def _declare(model_route: ModelRoute) -> None:
    by_query = model_route.body == "query"
    form = model_route.body == "form"
    route(
        model_route.method,
        model_route.path,
        summary=model_route.summary,
        changes_state=False,
        key="by handler",
        query=_MODEL if by_query else (),
        body=None if by_query else InferenceForm if form else InferenceBody,
        body_type="multipart/form-data" if form else "application/json",
    )(ProxyRoutes.model)


for _model_route in MODEL_ROUTES:
    _declare(_model_route)
