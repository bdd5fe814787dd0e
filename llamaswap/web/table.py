"""All routes there are, group by group."""

from __future__ import annotations

from llamaswap.web import (
    activity,
    discovery,
    doors,
    editing,
    events,
    listing,
    loadtest,
    logs,
    models,
    openapi,
    peers,
    processes,
    profiles,
    system,
    ui,
)
from llamaswap.web.routes import Route

ROUTES: tuple[Route, ...] = (
    *doors.ROUTES,
    *listing.ROUTES,
    *processes.ROUTES,
    *logs.ROUTES,
    *profiles.ROUTES,
    *peers.ROUTES,
    *events.ROUTES,
    *activity.ROUTES,
    *system.ROUTES,
    *models.ROUTES,
    *editing.ROUTES,
    *discovery.ROUTES,
    *loadtest.ROUTES,
    *openapi.ROUTES,
    *ui.ROUTES,
)
