"""Profiles: which there are, which is active."""

from __future__ import annotations

from attrs import define

from llamaswap.routing.router import Router
from llamaswap.web.admin_request import AdminRequest, Response, first_json, json_answer
from llamaswap.web.errors import HttpError
from llamaswap.web.route import RouteTable


@define(eq=False)
class ProfileEndpoints:
    """/api/profiles."""

    router: Router

    def index(self, call: AdminRequest) -> Response:
        """All profiles by id, with the names they pin; an empty target means: disabled."""
        profiles = [
            {"id": name, "description": profile.description or "", "pins": dict(sorted(profile.pins.items()))}
            for name, profile in sorted(self.router.config.profiles.items())
        ]
        return json_answer({"active": self.router.profile, "profiles": profiles})

    def select(self, call: AdminRequest) -> Response:
        """Make one the active profile; null or an empty name makes it none."""
        try:
            asked = first_json(call.body)
        except ValueError:
            raise HttpError(400, "invalid profile request")
        if asked is None:
            raise HttpError(400, "profile name is required")
        if not isinstance(asked, dict):
            raise HttpError(400, "invalid profile request")
        if "name" not in asked:
            raise HttpError(400, "profile name is required")
        name = asked["name"]
        if name is not None and not isinstance(name, str):
            raise HttpError(400, "profile name must be a string or null")
        if name and name not in self.router.config.profiles:
            raise HttpError(404, f'profile "{name}" not found')
        # Told to the router even when it is active already: it knows that nothing changed and stays silent.
        self.router.select_profile(name or None)
        return json_answer({"active": self.router.profile})


_table = RouteTable(ProfileEndpoints, "profiles")
ROUTES = (
    _table.get("/api/profiles", ProfileEndpoints.index, "All profiles", schema="Profiles"),
    _table.put(
        "/api/profiles/active",
        ProfileEndpoints.select,
        "Choose the active profile",
        changes_state=True,
        schema="Active",
        body="Choice",
    ),
)
