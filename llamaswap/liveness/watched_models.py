"""The models as the watchdog sees them: their streams, samples of their servers, and small requests to these.

Any response at all, an error included, shows that a server works.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence

from attrs import evolve, frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError, TimeoutError
from twisted.internet.interfaces import IReactorTime

from llamaswap.config import Model
from llamaswap.config.endpoints import Endpoint
from llamaswap.config.schema.model import HangDetection
from llamaswap.config.steps import StepRequest
from llamaswap.liveness.sample import LivenessSample, take_sample
from llamaswap.observe.gpus import GpuReading
from llamaswap.observe.inflight import InflightRequests, OpenStream
from llamaswap.routing.router import Router
from llamaswap.servers.server_request import ServerRequest

GPU_TIMEOUT = 5.0  # seconds that a reading of the GPUs may take when a silent server is judged


def settings_of(model: Model) -> HangDetection | None:
    """The thresholds of a model; None if it is not watched, which is the default if websockets are ignored."""
    stall = model.stall
    if stall.after <= 0 or (model.compat.ignore_websockets and stall == HangDetection()):
        return None
    return stall


@frozen
class WatchedModels:
    """`ask` sends a server a request; `printed` gives the number of bytes that a model's servers have printed."""

    clock: IReactorTime
    router: Router
    inflight: InflightRequests
    ask: ServerRequest
    read_gpus: Callable[[], Deferred[Sequence[GpuReading]]]
    printed: Callable[[str], int]

    def streams(self) -> Iterable[OpenStream]:
        """The open streams of all models."""
        return self.inflight.streams()

    def has_requests(self, model: str) -> bool:
        """Whether requests for a model are in flight."""
        return model in self.inflight.by_server()

    def settings(self, model: str) -> HangDetection | None:
        """The thresholds for a model; None if it is not watched."""
        found = self.router.config.models.get(model)
        return None if found is None else settings_of(found)

    async def sample(self, model: str) -> LivenessSample | None:
        """A sample of a model's server; None if it has none."""
        if model not in self.router.config.models:
            return None  # a reload removed it meanwhile
        status, printed = self.router.status(model), self.printed(model)
        if status.pid is None:
            return None
        reading = self.read_gpus().addTimeout(GPU_TIMEOUT, self.clock)
        try:
            gpu = max((board.gpu_util_pct for board in await reading), default=0.0)
        except Exception:  # a driver that does not answer shows no activity
            gpu = 0.0
        return evolve(take_sample(status.pid, status.port), printed=printed, gpu=gpu, leader=status.pid)

    async def answers_health_check(self, model: str, limit: float) -> bool:
        """Whether a model's server answers its health check within `limit` seconds; True if it has no server."""
        definition = self.router.config.models.get(model)
        path = definition.check_endpoint.strip() if definition else ""
        if path == "none" and self._endpoint(model) is not None:
            return False
        return await self._answers(model, StepRequest("GET", path), limit)

    async def answers_request(self, model: str, limit: float) -> bool:
        """Whether a model's server answers a request for one token within `limit` seconds; True if it has no server.

        A server without chats refuses the request, which is a response too.
        """
        definition = self.router.config.models.get(model)
        name = definition.use_model_name if definition else ""
        body = {"model": name or model, "messages": [{"role": "user", "content": "."}], "max_tokens": 1}
        return await self._answers(model, StepRequest("POST", "/v1/chat/completions", json.dumps(body)), limit)

    def mark_hung(self, model: str, why: str) -> None:
        """Have the model's server restarted."""
        self.router.mark_hung(model, why)

    def _endpoint(self, model: str) -> Endpoint | None:
        return self.router.status(model).endpoint if model in self.router.config.models else None

    async def _answers(self, model: str, request: StepRequest, limit: float) -> bool:
        endpoint = self._endpoint(model)
        if endpoint is None:
            return True
        try:
            await self.ask(endpoint, request.path, limit, request)
        except (ConnectError, TimeoutError, CancelledError):
            return False
        return True
