"""The build, the machine and the meters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from attrs import define

from llamaswap.observe.machine import MachineMonitor
from llamaswap.observe.query import timestamp
from llamaswap.version import Build
from llamaswap.web.admin_request import AdminRequest, Response, json_answer
from llamaswap.web.errors import HttpError
from llamaswap.web.route import QueryParameter, RouteTable

METERS = b"text/plain; version=0.0.4; charset=utf-8"  # Prometheus' text format


@define(eq=False)
class SystemEndpoints:
    """/api/version, /api/performance, /api/hardware, /metrics, /api/upgrade, /api/features.

    `hardware` gives the snapshot taken at start, None where detection failed (or goes on); `meters` the page for
    Prometheus; `features` the switches that pages look at; `upgrade` how an upgrade in place goes.
    """

    build: Build
    machine: MachineMonitor
    hardware: Callable[[], Mapping[str, Any] | None]
    meters: Callable[[], bytes]
    features: Callable[[], Mapping[str, bool]]
    upgrade: Callable[[], Mapping[str, Any]] = dict

    def version(self, call: AdminRequest) -> Response:
        """Which build serves."""
        build = self.build
        return json_answer({"version": build.version, "commit": build.commit, "build_date": build.build_date})

    def performance(self, call: AdminRequest) -> Response:
        """The machine's samples of the last hour."""
        if not self.machine.enabled:
            return json_answer({"enabled": False}, 503)
        after, points = None, call.text("max_points")
        if call.text("after"):
            try:
                after = timestamp(call.text("after"))
            except (ValueError, OverflowError):
                raise HttpError(400, "invalid 'after' timestamp, use RFC3339 format")
        if points and not (points.isascii() and points.isdigit() and 0 < int(points) < 1_000_000):
            raise HttpError(400, "max_points must be >= 1")
        return json_answer(self.machine.samples(after, int(points) if points else None))

    def snapshot(self, call: AdminRequest) -> Response:
        """The machine's parts, as found at start."""
        found = self.hardware()
        if found is None:
            raise HttpError(503, "hardware detection unavailable")
        return json_answer(found)

    def metrics(self, call: AdminRequest) -> Response:
        """Everything measured, for Prometheus. Without performance sampling the requests' meters are still there."""
        page = self.meters()
        if not self.machine.enabled and not page:
            return Response(503, b"# performance monitor not available\n", METERS)
        return Response(200, page, METERS)

    def upgrading(self, call: AdminRequest) -> Response:
        """Which process this is, how often it became a newer program, and what came of the last wish for that."""
        return json_answer(dict(self.upgrade()))

    def switches(self, call: AdminRequest) -> Response:
        """What this server offers beyond the least."""
        return json_answer(dict(self.features()))


_table = RouteTable(SystemEndpoints, "system")
ROUTES = (
    _table.get("/api/version", SystemEndpoints.version, "Which build serves", schema="Version"),
    _table.get(
        "/api/performance",
        SystemEndpoints.performance,
        "Samples of the last hour",
        query=(
            QueryParameter("after", "RFC 3339; only later samples."),
            QueryParameter("max_points", "At most so many.", "integer"),
        ),
        schema="Performance",
    ),
    _table.get("/api/hardware", SystemEndpoints.snapshot, "The machine's parts", schema="Hardware"),
    _table.get("/metrics", SystemEndpoints.metrics, "Meters for Prometheus", content="text/plain"),
    _table.get("/api/upgrade", SystemEndpoints.upgrading, "The process and its upgrades in place", schema="Upgrade"),
    _table.get("/api/features", SystemEndpoints.switches, "What this server offers", schema="Features"),
)
