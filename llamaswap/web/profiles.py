"""The profiles, and which of them is active."""

from __future__ import annotations

from attrs import define, frozen

from llamaswap.routing.router import Router
from llamaswap.web.admin_request import AdminRequest, Response, first_json, json_answer
from llamaswap.web.errors import HttpError
from llamaswap.web.route import Route, RouteTable


@frozen
class ProfileDocument:
    """A profile with the names it pins; an empty target disables a name."""

    id: str
    description: str
    pins: dict[str, str]


@frozen
class ActiveProfile:
    """The active profile's id."""

    active: str | None


@frozen
class Profiles:
    """All profiles."""

    active: str | None
    profiles: list[ProfileDocument]


@frozen
class ProfileChoice:
    """The profile to activate; none if it is null or empty."""

    name: str | None


route = RouteTable("profiles", Route)


@define(eq=False)
class ProfileEndpoints:
    """/api/profiles."""

    router: Router

    @route("GET", "/api/profiles", answer=Profiles)
    def index(self, call: AdminRequest) -> Response:
        """All profiles by id, with the names they pin."""
        profiles = [
            ProfileDocument(name, profile.description or "", dict(sorted(profile.pins.items())))
            for name, profile in sorted(self.router.config.profiles.items())
        ]
        return json_answer(Profiles(self.router.profile, profiles))

    @route("PUT", "/api/profiles/active", answer=ActiveProfile, body=ProfileChoice)
    def select(self, call: AdminRequest) -> Response:
        """Choose the active profile; null or an empty name chooses none."""
        try:
            choice = first_json(call.body)
        except ValueError:
            raise HttpError(400, "invalid profile request")
        if choice is not None and not isinstance(choice, dict):
            raise HttpError(400, "invalid profile request")
        if choice is None or "name" not in choice:
            raise HttpError(400, "profile name is required")
        name = choice["name"]
        if name is not None and not isinstance(name, str):
            raise HttpError(400, "profile name must be a string or null")
        if name and name not in self.router.config.profiles:
            raise HttpError(404, f'profile "{name}" not found')
        self.router.select_profile(name or None)
        return json_answer(ActiveProfile(self.router.profile))
