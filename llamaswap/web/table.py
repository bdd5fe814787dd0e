"""All routes there are, group by group."""

from __future__ import annotations

from llamaswap.web import doors, listing, logs, processes, profiles, ui
from llamaswap.web.routes import Route

ROUTES: tuple[Route, ...] = (
    *doors.ROUTES,
    *listing.ROUTES,
    *processes.ROUTES,
    *logs.ROUTES,
    *profiles.ROUTES,
    *ui.ROUTES,
)
