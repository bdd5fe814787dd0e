"""The model routes and the passthrough in the map: their methods are known here, their work is done elsewhere.

They stand in the map so that a wrong method gets its 405 and the API document lists them.
"""

from __future__ import annotations

from attrs import define
from twisted.web.resource import IResource

from llamaswap.web.admin_request import AdminRequest, Response, redirect
from llamaswap.web.route import QueryParameter, Route, RouteTable
from llamaswap.wire.model_routes import MODEL_ROUTES, ModelRoute


@define(eq=False)
class ProxyRoutes:
    """Hands requests over. All three resources are leaves: they read the raw target themselves."""

    model_routes: IResource
    passthrough: IResource
    comfyui: IResource

    def model(self, call: AdminRequest) -> IResource:
        """An inference request."""
        return self.model_routes

    def upstream(self, call: AdminRequest) -> IResource:
        """A request to one model's own server."""
        return self.passthrough

    def comfy(self, call: AdminRequest) -> IResource:
        """A request to the ComfyUI model."""
        return self.comfyui

    def comfy_slash(self, call: AdminRequest) -> Response:
        """ComfyUI's links are relative to its folder."""
        location = f"/comfyui/?{call.query_string}" if call.query_string else "/comfyui/"
        return redirect(location, 301 if call.method in (b"GET", b"HEAD") else 308, call.method)


_table = RouteTable(ProxyRoutes, "inference")
_named = (QueryParameter("model", "Which model to ask."),)


def _documented(route: ModelRoute) -> Route:
    if route.body == "query":
        return _table.get(route.path, ProxyRoutes.model, route.summary, own_gate=True, query=_named)
    body = "Inference" if route.body == "json" else "InferenceForm"
    return _table.post(route.path, ProxyRoutes.model, route.summary, changes_state=False, own_gate=True, body=body)


ROUTES: tuple[Route, ...] = (
    *(_documented(route) for route in MODEL_ROUTES),
    _table.any(
        "/upstream/<rest:path>",
        ProxyRoutes.upstream,
        "One model's own server",
        changes_state=False,
        own_gate=True,
        content="*/*",
    ),
    _table.any(
        "/comfyui", ProxyRoutes.comfy_slash, "To /comfyui/", changes_state=False, content="text/html", status=301
    ),
    _table.any(
        "/comfyui/<rest:path>",
        ProxyRoutes.comfy,
        "The ComfyUI model",
        changes_state=False,
        own_gate=True,
        content="*/*",
    ),
)
