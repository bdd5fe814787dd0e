"""What a llama.cpp server has read, saved when its model goes and restored when it comes back.

The server writes and reads the files itself (`--slot-save-path`, `POST /slots/<id>?action=save`). A long conversation
is then not read anew after a swap. Whether that is quicker depends on the machine, so it is measured: what the saving
and restoring took, against what the first request after it did not have to read. A model it does not help goes without.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from attrs import Factory, define, field, frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as TimeIsUp
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from llamaswap.config import Endpoint, Model
from llamaswap.config.filenames import filename_for
from llamaswap.http_client import SendRequest
from llamaswap.servers.prepared_supervisor import Preparation
from llamaswap.servers.supervisor_protocol import ServerStatus

log = Logger()

MOST_SLOTS = 16  # of one server; each is a file
SPEEDS = 9  # readings kept of how fast a model reads
FAIR = 16  # tokens below which a speed is noise
TRIALS = 3  # restores after which the sums are compared
REQUEST_TIMEOUT = 600.0  # seconds; the limit of the model is usually shorter


@frozen
class SavedSlot:
    """One slot's file."""

    slot: int
    filename: str
    tokens: int


@define(eq=False)
class SlotTable:
    """What is known of one model: `why` it goes without, the sums over `trials`, and what lies in files now."""

    why: str = ""
    trials: int = 0
    cost: float = 0.0
    gain: float = 0.0
    saved: list[SavedSlot] = Factory(list)
    restored: set[int] = Factory(set)
    written_by: tuple[str, ...] = ()  # what the server that wrote them was made of
    speeds: list[float] = Factory(list)
    saving: float = 0.0  # seconds the last save took
    trial: tuple[int, float] | None = None  # tokens restored, and what that took; until the next request has ended

    def document(self, wanted: bool) -> dict[str, Any]:
        """For the API."""
        return {
            "state": "off" if not wanted else "given up" if self.why else "on",
            "why": self.why,
            "saved_tokens": sum(one.tokens for one in self.saved),
            "trials": self.trials,
            "cost_ms": round(self.cost * 1000),
            "gain_ms": round(self.gain * 1000),
        }


@frozen
class SlotFlags:
    """What a server's command says of it: where its files are, and what key it wants."""

    folder: str
    key: str


def flags_of(cmd: Sequence[str]) -> SlotFlags:
    """The flags of a command in words; empty where they are not there."""
    found = {"--slot-save-path": "", "--api-key": ""}
    for at, word in enumerate(cmd):
        name, sign, value = word.partition("=")
        if name in found:
            found[name] = value if sign else "".join(cmd[at + 1 : at + 2])
    return SlotFlags(found["--slot-save-path"], found["--api-key"].split(",")[0])


@define(eq=False)
class SlotStore:
    """The tables of all models. `send` makes requests, `remove` deletes a file elsewhere than on the reactor."""

    clock: IReactorTime
    send: SendRequest
    remove: Callable[[str], object]
    _tables: dict[str, SlotTable] = field(factory=dict, init=False)
    closing: bool = field(default=False, init=False)

    def table(self, model: str) -> SlotTable:
        return self._tables.setdefault(model, SlotTable())

    def forget(self, model: str) -> None:
        """Its definition has changed: everything begins anew."""
        self._tables.pop(model, None)

    def document(self, model: Model) -> dict[str, Any]:
        """How it stands, for the API."""
        return self.table(model.id).document(model.slots.save)

    def read(self, model: str, tokens: int, cached: int, speed: float) -> None:
        """A request of this model has ended: it read `tokens`, did not have to read `cached`, at `speed` a second."""
        table = self._tables.get(model)
        if table is None:
            return
        if tokens >= FAIR and speed > 0:
            table.speeds = [*table.speeds, speed][-SPEEDS:]
        if table.trial is None or not table.speeds:
            return
        (restored, cost), table.trial = table.trial, None
        table.trials += 1
        table.cost += cost
        table.gain += min(max(0, cached), restored) / median(table.speeds)
        if table.trials >= TRIALS and table.gain < table.cost:
            self._give_up(
                model,
                f"{table.trials} times it took {table.cost:.2f}s and saved {table.gain:.2f}s of reading",
            )

    def _give_up(self, model: str, why: str) -> None:
        table = self.table(model)
        table.why, table.saved = why, []
        log.info("slot saving disabled for {model}: {why}", model=model, why=why)

    # -- saving and restoring ------------------------------------------------------------------------------

    async def save(self, model: Model, status: ServerStatus) -> None:
        """Have the server write what it has read. Never fails, and takes no longer than the model's limit."""
        table, began = self.table(model.id), self.clock.seconds()
        table.saved, table.written_by = [], _made_of(status)
        await self._within(model, self._save(model, status, table), "saved")
        table.saving = self.clock.seconds() - began

    async def _save(self, model: Model, status: ServerStatus, table: SlotTable) -> None:
        flags, endpoint = flags_of(status.cmd), status.endpoint
        assert endpoint is not None
        for slot in await self._slots(endpoint, flags):
            filename = f"llamaswap-{filename_for(model.id)}-{slot}.bin"
            path = f"/slots/{slot}?action=save"
            code, told = await self._ask(endpoint, "POST", path, {"filename": filename}, flags.key)
            if code != 200:
                self._give_up(model.id, f"POST {path} was answered {code}")
                return
            if _whole(told, "n_written") > model.slots.max_size * 1024 * 1024:
                if flags.folder:
                    self.remove(os.path.join(flags.folder, filename))
                log.info("{model}: slot {slot} exceeds the size limit, not saved", model=model.id, slot=slot)
            elif _whole(told, "n_saved") > 0:
                table.saved.append(SavedSlot(slot, filename, _whole(told, "n_saved")))

    async def _slots(self, endpoint: Endpoint, flags: SlotFlags) -> list[int]:
        """The numbers of the server's slots; the first one alone where it does not tell."""
        code, told = await self._ask(endpoint, "GET", "/slots", None, flags.key)
        if code != 200 or not isinstance(told, list):
            return [0]
        return [_whole(slot, "id") for slot in told[:MOST_SLOTS]]

    async def restore(self, model: Model, status: ServerStatus) -> None:
        """Have a fresh server read what the last one wrote. Never fails, and takes no longer than the limit."""
        table, began = self.table(model.id), self.clock.seconds()
        saved, table.saved = table.saved, []
        if table.written_by != _made_of(status):
            return  # another definition: what was read is worth nothing to it, and may be taken all the same
        table.restored.clear()
        await self._within(model, self._restore(status, saved, table), "restored")
        restored = sum(one.tokens for one in saved if one.slot in table.restored)
        table.trial = (restored, table.saving + self.clock.seconds() - began)

    async def _restore(self, status: ServerStatus, saved: Sequence[SavedSlot], table: SlotTable) -> None:
        flags, endpoint = flags_of(status.cmd), status.endpoint
        assert endpoint is not None
        for one in saved:
            path = f"/slots/{one.slot}?action=restore"
            code, _ = await self._ask(endpoint, "POST", path, {"filename": one.filename}, flags.key)
            if code == 200:
                table.restored.add(one.slot)

    async def _ask(self, endpoint: Endpoint, method: str, path: str, document: object, key: str) -> tuple[int, object]:
        """The status and the JSON of a response, {} if it is not JSON. The caller limits the time."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        body = None if document is None else json.dumps(document).encode()
        url = f"{str(endpoint).rstrip('/')}{path}"
        response = await self.send(method, url, timeout=REQUEST_TIMEOUT, body=body, headers=headers)
        try:
            return response.status, json.loads(response.body)
        except ValueError:
            return response.status, {}

    async def _within(self, model: Model, work: Any, what: str) -> None:
        doing: Deferred[None] = Deferred.fromCoroutine(work)
        doing.addTimeout(model.slots.timeout, self.clock)
        try:
            await doing
        except (TimeIsUp, CancelledError):
            self._give_up(model.id, f"its slots could not be {what} within {model.slots.timeout:g}s")
        except Exception as error:  # whatever it is, the model goes or comes all the same
            log.warn("{model}: slots were not {what}: {error}", model=model.id, what=what, error=error)


def _made_of(status: ServerStatus) -> tuple[str, ...]:
    """A server's command without its port, which may be another each time."""
    port = str(status.endpoint.port) if status.endpoint is not None else ""
    return tuple(word.replace(port, "PORT") if port else word for word in status.cmd)


def _whole(told: Any, name: str) -> int:
    value = told.get(name) if isinstance(told, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


@define(eq=False)
class SlotPreparation(Preparation):
    """Saves the slots of a model before its stops and restores them after its starts, if its definition wants that."""

    _model: Model
    _slots: SlotStore

    @property
    def _wanted(self) -> bool:
        return self._model.slots.save and not self._slots.closing and not self._slots.table(self._model.id).why

    async def after_load(self, status: ServerStatus) -> None:
        if self._wanted and self._slots.table(self._model.id).saved:
            await self._slots.restore(self._model, status)

    async def before_stop(self, status: ServerStatus, grace: float | None) -> None:
        if self._wanted and grace != 0.0:
            await self._slots.save(self._model, status)

    def retune(self, model: Model) -> None:
        if (model.cmd, model.slots) != (self._model.cmd, self._model.slots):
            self._slots.forget(model.id)
        self._model = model
