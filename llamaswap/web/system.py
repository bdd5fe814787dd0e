"""The build, the machine and the metrics."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field, frozen

from llamaswap.observe.log_format import Timestamp
from llamaswap.observe.machine import MachineMonitor
from llamaswap.version import Build
from llamaswap.web.admin_request import AdminRequest, JsonObject, Response, json_answer, positive
from llamaswap.web.errors import HttpError
from llamaswap.web.route import QueryParameter, Route, RouteTable

MAX_POINTS = 1_000_000  # samples
METRICS_TYPE = b"text/plain; version=0.0.4; charset=utf-8"  # Prometheus' text format


@frozen
class VersionDocument:
    """The build."""

    version: str
    commit: str
    build_date: str


@frozen
class Performance:
    """The machine's samples."""

    enabled: bool
    sys_stats: list[JsonObject] | None = field(factory=list)
    gpu_stats: list[JsonObject] | None = field(factory=list)


@frozen
class HardwareDocument:
    """The machine's parts."""

    schema_version: int
    captured_at: Timestamp
    accelerators: list[JsonObject]


@frozen
class UpgradeStatus:
    """The process, and its last upgrade in place."""

    pid: int
    count: int
    attempts: int
    phase: str
    error: str


route = RouteTable("system", Route)


@define(eq=False)
class SystemEndpoints:
    """/api/version, /api/performance, /api/hardware, /metrics, /api/upgrade, /api/features.

    `ollama_version` gives the version for a request to the address for Ollama's clients (None: it came to another),
    `hardware` gives the snapshot taken at the start, None while detection runs or if it failed; `metrics_page` the page
    for Prometheus; `features` the switches that pages look at; `upgrade` the state of an upgrade in place.
    """

    build: Build
    machine: MachineMonitor
    hardware: Callable[[], JsonObject | None]
    metrics_page: Callable[[], bytes]
    features: Callable[[], dict[str, bool]]
    upgrade: Callable[[], JsonObject] = dict
    ollama_version: Callable[[AdminRequest], str | None] = lambda call: None

    @route("GET", "/api/version", scope="any", answer=VersionDocument)
    def version(self, call: AdminRequest) -> Response:
        """The build of this server; at the address for Ollama's clients the version that they expect."""
        expected = self.ollama_version(call)
        if expected is not None:
            return json_answer({"version": expected})
        build = self.build
        return json_answer(VersionDocument(build.semantic_version, build.commit, build.build_date))

    @route(
        "GET",
        "/api/performance",
        query=(
            QueryParameter("after", "RFC 3339; only later samples."),
            QueryParameter("max_points", "The largest number of samples.", "integer"),
        ),
        answer=Performance,
    )
    def performance(self, call: AdminRequest) -> Response:
        """The machine's samples of the last hour."""
        if not self.machine.enabled:
            return json_answer(Performance(enabled=False), 503)
        after = call.time("after")
        points = call.text("max_points")
        most = positive(points, MAX_POINTS) if points else None
        if points and most is None:
            raise HttpError(400, f"max_points must be from 1 to {MAX_POINTS}")
        return json_answer(self.machine.samples(after, most))

    @route("GET", "/api/hardware", answer=HardwareDocument)
    def snapshot(self, call: AdminRequest) -> Response:
        """The machine's parts, as found at the start."""
        found = self.hardware()
        if found is None:
            raise HttpError(503, "hardware detection unavailable")
        return json_answer(found)

    @route("GET", "/metrics", content="text/plain")
    def metrics(self, call: AdminRequest) -> Response:
        """Metrics for Prometheus."""
        page = self.metrics_page()
        # Without performance sampling the page still has the requests' metrics.
        if not self.machine.enabled and not page:
            return Response(503, b"# performance monitor not available\n", METRICS_TYPE)
        return Response(200, page, METRICS_TYPE)

    @route("GET", "/api/upgrade", answer=UpgradeStatus)
    def upgrading(self, call: AdminRequest) -> Response:
        """The process, the number of its upgrades in place, and the outcome of the last request for one."""
        return json_answer(self.upgrade())

    @route("GET", "/api/features", answer=dict[str, bool])
    def switches(self, call: AdminRequest) -> Response:
        """The optional features that this server offers."""
        return json_answer(self.features())
