"""Hang detection as this service has it: what the watchdog sees of models, and asks of their servers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attrs import evolve, frozen
from twisted.internet.defer import Deferred

from llamaswap.app.model_parts import ModelParts
from llamaswap.app.settings import IServiceReactor
from llamaswap.config.endpoints import Endpoint
from llamaswap.config.schema import HangDetection
from llamaswap.liveness import sample
from llamaswap.liveness.probe import page, responds, token
from llamaswap.liveness.watchdog import OpenStream, WatchedModels, settings_of
from llamaswap.observe.gpus import GpuReading
from llamaswap.observe.inflight import InflightRequests

GPU_TIMEOUT = 5.0  # seconds that a reading of the GPUs may take when a silent server is judged


@frozen
class LiveModels:
    """The models of this service, for the watchdog."""

    reactor: IServiceReactor
    models: ModelParts
    inflight: InflightRequests

    def streams(self) -> Iterator[OpenStream]:
        """The open streams of all models."""
        return (OpenStream(*facts) for facts in self.inflight.streams())

    def has_requests(self, model: str) -> bool:
        """Whether a request for the model is in flight."""
        return model in self.inflight.by_model()

    def settings(self, model: str) -> HangDetection | None:
        """The thresholds for a model; None if it is not watched."""
        found = self.models.router.config.models.get(model)
        return None if found is None else settings_of(found)

    async def sample(self, model: str) -> sample.LivenessSample | None:
        """A sample of a model's server; None if it has none."""
        if model not in self.models.router.config.models:
            return None  # a reload removed it meanwhile
        status, printed = self.models.router.status(model), self.models.output.counts.get(model, 0)
        if status.pid is None:
            return None
        reading: Deferred[Sequence[GpuReading]] = self.models.read_gpus()
        reading.addTimeout(GPU_TIMEOUT, self.reactor)
        try:
            gpu = max((board.gpu_util_pct for board in await reading), default=0.0)
        except Exception:  # a driver that does not answer shows no activity
            gpu = 0.0
        return evolve(sample.take_sample(status.pid, status.port), printed=printed, gpu=gpu, leader=status.pid)

    async def answers_health_check(self, model: str, limit: float) -> bool:
        """Whether a model's server answers its health check within `limit` seconds; True if it has no server."""
        endpoint = self._endpoint(model)
        if endpoint is None:
            return True
        path = self.models.router.config.models[model].check_endpoint.strip()
        return path != "none" and await responds(self.models.ask, endpoint, page(path), limit)

    async def answers_request(self, model: str, limit: float) -> bool:
        """Whether a model's server answers a request for one token within `limit` seconds; True if it has no server."""
        endpoint = self._endpoint(model)
        if endpoint is None:
            return True
        name = self.models.router.config.models[model].use_model_name or model
        return await responds(self.models.ask, endpoint, token(name), limit)

    def mark_hung(self, model: str, why: str) -> None:
        """Have the model's server restarted."""
        self.models.router.mark_hung(model, why)

    def _endpoint(self, model: str) -> Endpoint | None:
        known = model in self.models.router.config.models
        return self.models.router.status(model).endpoint if known else None


_check: type[WatchedModels] = LiveModels
