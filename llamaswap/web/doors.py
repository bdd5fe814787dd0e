"""The model routes and the passthrough in the map: their methods are known here, their work is done elsewhere.

They stand in the map so that a wrong method gets its 405 and the API document lists them.
"""

from __future__ import annotations

from attrs import define
from twisted.web.resource import IResource

from llamaswap.web.calls import Answer, Call, redirect
from llamaswap.web.routes import Query, Route, Table
from llamaswap.wire.modelroutes import MODEL_ROUTES, ModelRoute


@define(eq=False)
class Doors:
    """Hands requests over. All three resources are leaves: they read the raw target themselves."""

    model_routes: IResource
    passthrough: IResource
    comfyui: IResource

    def model(self, call: Call) -> IResource:
        """An inference request."""
        return self.model_routes

    def upstream(self, call: Call) -> IResource:
        """A request to one model's own server."""
        return self.passthrough

    def comfy(self, call: Call) -> IResource:
        """A request to the ComfyUI model."""
        return self.comfyui

    def comfy_slash(self, call: Call) -> Answer:
        """ComfyUI's links are relative to its folder."""
        location = f"/comfyui/?{call.query_string}" if call.query_string else "/comfyui/"
        return redirect(location, 301 if call.method in (b"GET", b"HEAD") else 308, call.method)


_table = Table(Doors, "inference")
_named = (Query("model", "Which model to ask."),)


def _documented(route: ModelRoute) -> Route:
    if route.body == "query":
        return _table.get(route.path, Doors.model, route.summary, own_gate=True, query=_named)
    body = "Inference" if route.body == "json" else "InferenceForm"
    return _table.post(route.path, Doors.model, route.summary, own_gate=True, body=body)


ROUTES: tuple[Route, ...] = (
    *(_documented(route) for route in MODEL_ROUTES),
    _table.any("/upstream/<rest:path>", Doors.upstream, "One model's own server", own_gate=True, content="*/*"),
    _table.any("/comfyui", Doors.comfy_slash, "To /comfyui/", content="text/html", status=301),
    _table.any("/comfyui/<rest:path>", Doors.comfy, "The ComfyUI model", own_gate=True, content="*/*"),
)
