"""Saves the prompt cache of a llama.cpp server before its model is stopped and restores it after the next start.

The server writes and reads the files itself (`--slot-save-path`, `POST /slots/<id>?action=save`), so that a long
conversation is not processed again after a swap. Whether that is quicker depends on the machine: what saving and
restoring took is compared with what the first request after it did not have to process, and a model that gains nothing
is left out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from statistics import median

from attrs import Factory, define, field, frozen
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from llamaswap.config import Model
from llamaswap.config.filenames import filename_for
from llamaswap.http_client import SendRequest
from llamaswap.servers.engine_request import EngineRequest, flag_of, number
from llamaswap.servers.prepared_supervisor import Preparation
from llamaswap.servers.supervisor_protocol import ServerStatus

log = Logger()

MAX_SLOTS = 16  # of one server; each is a file
SPEEDS_KEPT = 9  # measurements of how fast a model processes prompts
FAIR_TOKENS = 16  # tokens below which a speed is noise
TRIALS = 3  # restores after which cost and gain are compared


@frozen
class SavedSlot:
    """One slot's file."""

    slot: int
    filename: str
    tokens: int


@define(eq=False)
class SlotTable:
    """The slots of one model: those in files, and sums over `trials`. `given_up` says why its slots are not saved."""

    given_up: str = ""
    trials: int = 0
    cost: float = 0.0
    gain: float = 0.0
    saved: list[SavedSlot] = Factory(list)
    saved_by: tuple[str, ...] = ()  # the command of the server that wrote the files
    speeds: list[float] = Factory(list)
    save_seconds: float = 0.0  # of the last save
    trial: tuple[int, float] | None = None  # tokens restored, and the seconds this took; until a request has ended


@define(eq=False)
class SlotStore:
    """The slots of all models. `send` makes requests, `remove` deletes a file on a thread."""

    clock: IReactorTime
    send: SendRequest
    remove: Callable[[str], object]
    models: dict[str, SlotPreparation] = field(factory=dict, init=False)
    closing: bool = field(default=False, init=False)

    def document(self, model: Model) -> dict[str, object]:
        """The state for the API."""
        table = self.models[model.id].table
        return {
            "state": "off" if not model.slots.save else "given up" if table.given_up else "on",
            "why": table.given_up,
            "saved_tokens": sum(one.tokens for one in table.saved),
            "trials": table.trials,
            "cost_ms": round(table.cost * 1000),
            "gain_ms": round(table.gain * 1000),
        }

    def read(self, model: str, tokens: int, cached: int, speed: float) -> None:
        """A request has ended: it processed `tokens` of the prompt at `speed` a second, and found `cached` tokens."""
        if model in self.models:
            self.models[model].measure(tokens, cached, speed)


@define(eq=False)
class SlotPreparation(Preparation):
    """Saves the slots of a model before its stops and restores them after its starts, if its definition wants that."""

    _model: Model
    _store: SlotStore
    table: SlotTable = field(factory=SlotTable, init=False)

    def __attrs_post_init__(self) -> None:
        self._store.models[self._model.id] = self

    @property
    def _wanted(self) -> bool:
        return self._model.slots.save and not self._store.closing and not self.table.given_up

    def set_definition(self, model: Model) -> None:
        if (model.cmd, model.slots) != (self._model.cmd, self._model.slots):
            self.table = SlotTable()  # what was measured does not count
        self._model = model

    def measure(self, tokens: int, cached: int, speed: float) -> None:
        """A request has ended; see `SlotStore.read`."""
        table = self.table
        if tokens >= FAIR_TOKENS and speed > 0:
            table.speeds = [*table.speeds, speed][-SPEEDS_KEPT:]
        if table.trial is None or not table.speeds:
            return
        (restored, cost), table.trial = table.trial, None
        table.trials += 1
        table.cost += cost
        table.gain += min(max(0, cached), restored) / median(table.speeds)
        if table.trials >= TRIALS and table.gain < table.cost:
            self._give_up(
                table, f"{table.trials} times it took {table.cost:.2f}s and saved {table.gain:.2f}s of reading"
            )

    def _give_up(self, table: SlotTable, reason: str) -> None:
        table.given_up, table.saved = reason, []
        log.info("slot saving disabled for {model}: {reason}", model=self._model.id, reason=reason)

    async def before_stop(self, status: ServerStatus, grace: float | None) -> None:
        """Have the server write its slots, within the time limit of the model. Never fails."""
        if not self._wanted or grace == 0.0 or _is_elsewhere(status):
            return
        table, began = self.table, self._store.clock.seconds()
        table.saved, table.saved_by = [], _command_of(status)
        await self._limited(status, table, "saved", lambda ask: self._save(ask, table))
        table.save_seconds = self._store.clock.seconds() - began

    async def _save(self, ask: EngineRequest, table: SlotTable) -> None:
        model, folder = self._model, flag_of(ask.status.cmd, "--slot-save-path")
        code, answer = await ask("GET", "/slots")
        listed = answer[:MAX_SLOTS] if code == 200 and isinstance(answer, list) else [{"id": 0}]
        for slot in (number(one, "id") for one in listed):
            filename, path = f"llamaswap-{filename_for(model.id)}-{slot}.bin", f"/slots/{slot}?action=save"
            code, answer = await ask("POST", path, {"filename": filename})
            if code != 200:
                self._give_up(table, f"POST {path} was answered {code}")
                return
            if number(answer, "n_written") > model.slots.max_size * 1024 * 1024:
                if folder:
                    self._store.remove(os.path.join(folder, filename))
                log.info("{model}: slot {slot} exceeds the size limit, not saved", model=model.id, slot=slot)
            elif number(answer, "n_saved") > 0:
                table.saved.append(SavedSlot(slot, filename, number(answer, "n_saved")))

    async def after_load(self, status: ServerStatus) -> None:
        """Have a new server read what the last one wrote, within the time limit of the model. Never fails."""
        table, began = self.table, self._store.clock.seconds()
        if not self._wanted or not table.saved or _is_elsewhere(status):
            return
        saved, table.saved = table.saved, []
        restored: list[int] = []
        if table.saved_by != _command_of(status):
            return  # a server of another definition may accept the files and answer nonsense

        async def restore(ask: EngineRequest) -> None:
            for one in saved:
                code, _ = await ask("POST", f"/slots/{one.slot}?action=restore", {"filename": one.filename})
                if code == 200:
                    restored.append(one.tokens)

        await self._limited(status, table, "restored", restore)
        table.trial = (sum(restored), table.save_seconds + self._store.clock.seconds() - began)

    async def _limited(
        self,
        status: ServerStatus,
        table: SlotTable,
        what: str,
        work: Callable[[EngineRequest], Coroutine[object, object, None]],
    ) -> None:
        """Do `work`, whose requests fail once the time limit of the model is over. `table` is that of the server: the
        definition may change meanwhile."""
        seconds, limit, name = self._store.clock.seconds, self._model.slots.timeout, self._model.id
        until = seconds() + limit
        try:
            await work(EngineRequest(self._store.send, status, lambda: until - seconds()))
        except Exception as error:  # whatever it is, the model is stopped or started all the same
            if seconds() >= until:
                self._give_up(table, f"its slots could not be {what} within {limit:g}s")
            else:
                log.warn("{model}: slots were not {what}: {error}", model=name, what=what, error=error)


def _is_elsewhere(status: ServerStatus) -> bool:
    """Whether the server is on another host: only its agent, which wants a token, can reach it."""
    return status.endpoint is not None and bool(status.endpoint.token)


def _command_of(status: ServerStatus) -> tuple[str, ...]:
    """A server's command without its port, which may be another each time."""
    port = str(status.endpoint.port) if status.endpoint is not None else ""
    return tuple(word.replace(port, "PORT") if port else word for word in status.cmd)
