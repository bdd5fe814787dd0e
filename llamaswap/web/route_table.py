"""All routes there are, group by group."""

from __future__ import annotations

from llamaswap.web import (
    activity,
    config_api,
    discovery,
    event_stream,
    listing,
    loadtest,
    logs,
    models,
    openapi,
    peers,
    processes,
    profiles,
    proxy_routes,
    system,
    ui,
)
from llamaswap.web.route import Route

ROUTES: tuple[Route, ...] = (
    *proxy_routes.ROUTES,
    *listing.ROUTES,
    *processes.ROUTES,
    *logs.ROUTES,
    *profiles.ROUTES,
    *peers.ROUTES,
    *event_stream.ROUTES,
    *activity.ROUTES,
    *system.ROUTES,
    *models.ROUTES,
    *config_api.ROUTES,
    *discovery.ROUTES,
    *loadtest.ROUTES,
    *openapi.ROUTES,
    *ui.ROUTES,
)
