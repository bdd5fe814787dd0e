"""What models need of the machine's memory, what the machine has, and which models have to leave for another one.

A device is "ram" or a GPU: "gpu0", "gpu1" and so on, by the number of its reading. Sizes are in MiB. `place` decides;
it chooses the cheapest set of models whose eviction makes room, and the GPUs of a model that leaves them to llamaswap.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import inf
from operator import ge, sub

from attrs import Factory, define, frozen

RAM = "ram"
Sizes = Mapping[str, int]
"""MiB by device."""


@frozen
class GpuShare:
    """What a model needs of one GPU. `device` is empty if any GPU will do, which llamaswap then chooses."""

    size: int
    device: str = ""


@frozen
class MemoryNeed:
    """What a model is expected to use.

    `options` are ways to spread it over GPUs, the preferred one first; a model that uses no GPU has one empty option.
    `source` says how the need is known: declared, learned, carried, engine, gguf, safetensors or flag. `firm`: a model
    that needs more than the machine has is refused; a rough estimate is not enough for that.
    """

    ram: int = 0
    options: tuple[tuple[GpuShare, ...], ...] = ((),)
    source: str = "declared"
    firm: bool = True


@frozen
class Device:
    """The memory of a device. `reserve` stays free; `foreign` is used by programs that llamaswap did not start.

    `foreign_by` names the largest of them, for messages.
    """

    total: int
    reserve: int = 0
    foreign: int = 0
    foreign_by: str = ""


@frozen
class Ledger:
    """The machine's memory and its use. A model without a need is loaded alone.

    `used` is what running and suspended servers were measured to use, `load_seconds` how long a load usually takes.
    An idle model stays for `hold` seconds after its last response. `pressed` are devices whose reserve other programs
    have used for a while, or whose budget several models together have exceeded.
    """

    devices: Mapping[str, Device]
    needs: Mapping[str, MemoryNeed] = Factory(dict)
    used: Mapping[str, Sizes] = Factory(dict)
    load_seconds: Mapping[str, float] = Factory(dict)
    hold: float = 10.0
    pressed: frozenset[str] = frozenset()


# -- the decision ------------------------------------------------------------------------------------------

MAX_STEPS = 400  # of a search, about 2 ms; the best set found by then is used
BUSY = 1e7  # the cost of a model that serves requests, or is loaded for some: the target waits for it


@frozen
class Occupant:
    """A model that uses memory. `sizes` is None if what it uses is unknown; an infinite `cost` keeps it."""

    model: str
    sizes: Sizes | None
    cost: float


@frozen
class Placement:
    """How a model is loaded on a host: it will use `sizes` (None: unknown) on these `gpus` once `evicts` have left.

    A model that cannot be loaded has an `obstacle` instead. never: the machine is too small. kept: models that cannot
    be evicted use too much memory. foreign: other programs do.
    """

    evicts: tuple[str, ...] = ()
    sizes: Sizes | None = None
    gpus: tuple[str, ...] = ()
    obstacle: str = ""


def place(ledger: Ledger, model: str, occupants: Sequence[Occupant]) -> Placement:
    """Where `model` fits, and the cheapest set of occupants that has to leave for it. See `place_need`."""
    return place_need(ledger.devices, ledger.needs.get(model), occupants)


def place_need(devices: Mapping[str, Device], need: MemoryNeed | None, occupants: Sequence[Occupant]) -> Placement:
    """Where what is needed fits, and the cheapest set of occupants that has to leave for it.

    A model whose need is unknown (None), or estimated as more than the machine has, is loaded alone.
    """
    options = _known_options(devices, need)
    machine = {name: device.total - device.reserve for name, device in devices.items()}
    kept = [occupant for occupant in occupants if occupant.cost == inf]
    leaving = sorted((one for one in occupants if one.cost < inf), key=lambda one: (-one.cost, one.model))
    alone = Placement(tuple(sorted(one.model for one in leaving)))
    if need is None or not options:
        return alone
    possible = [option for option in options if _assign(need.ram, option, machine) is not None]
    if not possible:
        return Placement(obstacle="never") if need.firm else alone
    room = _less({name: size - devices[name].foreign for name, size in machine.items()}, kept)
    best: Placement | None = None
    best_cost = inf
    for option in possible:
        search = _Search(need.ram, option, leaving, room)
        cost = search.run()
        if search.kept is not None and cost < best_cost:
            sizes = _assign(need.ram, option, _less(room, search.kept))
            assert sizes is not None, "the search accepts only sets that make room"
            stay = {one.model for one in search.kept}
            evicts = tuple(sorted(one.model for one in leaving if one.model not in stay))
            best = Placement(evicts, sizes, _gpus_of(option, sizes))
            best_cost = cost
    if best is not None:
        return best
    without_foreign = _less(machine, kept)
    crowded = all(_assign(need.ram, option, without_foreign) is None for option in possible)
    return Placement(obstacle="kept" if crowded else "foreign")


def _known_options(devices: Mapping[str, Device], need: MemoryNeed | None) -> list[tuple[GpuShare, ...]]:
    """The ways to spread a need over the GPUs whose memory is known."""
    if need is None or RAM not in devices:
        return []
    gpus = [name for name in devices if name != RAM]
    return [
        option
        for option in need.options
        if len(option) <= len(gpus) and all(not share.device or share.device in gpus for share in option)
    ]


def _assign(ram: int, option: tuple[GpuShare, ...], room: Mapping[str, int]) -> dict[str, int] | None:
    """The sizes by device that the option would use in this room; None if it does not fit.

    A share that may be anywhere goes to the GPU with the least room that is enough, so large rooms stay for others.
    """
    if room.get(RAM, 0) < ram:
        return None
    sizes = {RAM: ram} if ram else {}
    fixed = [share for share in option if share.device]
    for share in fixed:
        if room[share.device] < share.size:
            return None
        sizes[share.device] = share.size
    if len(fixed) == len(option):
        return sizes
    by_room = sorted((size, name) for name, size in room.items() if name != RAM and name not in sizes)
    for share in sorted((one for one in option if not one.device), key=lambda one: -one.size):
        place_for_it = next((entry for entry in by_room if entry[0] >= share.size), None)
        if place_for_it is None:
            return None
        by_room.remove(place_for_it)
        sizes[place_for_it[1]] = share.size
    return sizes


def _gpus_of(option: tuple[GpuShare, ...], sizes: Sizes) -> tuple[str, ...]:
    """The GPUs in use: in the order of the option if it names them, else in that of their numbers."""
    gpus = [name for name in sizes if name != RAM]
    return tuple(gpus if all(share.device for share in option) else sorted(gpus, key=lambda name: (len(name), name)))


def _less(room: Mapping[str, int], occupants: Iterable[Occupant]) -> dict[str, int]:
    """The room beside these occupants; one whose use is unknown counts as nothing here."""
    left = dict(room)
    for occupant in occupants:
        for device, size in (occupant.sizes or {}).items():
            if device in left:
                left[device] -= size
    return left


@define
class _Search:
    """The cheapest set of `leaving` models, dearest first, whose eviction makes room.

    Models are kept one after the other as long as the need still fits with all later ones evicted. The first set found
    so is already irreducible. The search goes on to cheaper ones for at most `MAX_STEPS`, unless the first set has a
    model that cost `BUSY`: then every set has one, and the request waits in any case.
    """

    ram: int
    option: tuple[GpuShare, ...]
    leaving: Sequence[Occupant]
    room: Mapping[str, int]
    kept: tuple[Occupant, ...] | None = None
    _best: tuple[float, int] = (inf, 0)
    _steps: int = 0
    _gpus: tuple[str, ...] = ()
    _fixed: tuple[tuple[int, int], ...] = ()
    _free: tuple[int, ...] = ()
    _open: tuple[int, ...] = ()
    _sizes: Sequence[tuple[int, ...] | None] = ()

    def run(self) -> float:
        """The cost of the best set, `kept` being those that stay; infinite if no set makes room."""
        # Rooms are tuples with the RAM first, because a search looks at hundreds of them.
        self._gpus = tuple(name for name in self.room if name != RAM)
        places = {name: index for index, name in enumerate(self._gpus, 1)}
        self._fixed = tuple((places[share.device], share.size) for share in self.option if share.device)
        self._free = tuple(sorted((share.size for share in self.option if not share.device), reverse=True))
        taken = {index for index, _ in self._fixed}
        self._open = tuple(index for index in places.values() if index not in taken)
        self._sizes = [None if one.sizes is None else self._in_order(one.sizes) for one in self.leaving]
        room = self._in_order(self.room)
        if self._fits(room):
            self._visit(0, room, (0.0, 0), ())
        return self._best[0]

    def _in_order(self, sizes: Sizes) -> tuple[int, ...]:
        return (sizes.get(RAM, 0), *(sizes.get(name, 0) for name in self._gpus))

    def _fits(self, room: tuple[int, ...]) -> bool:
        """Whether `_assign` succeeds: the largest free share needs the largest of the other rooms, and so on."""
        if room[0] < self.ram:
            return False
        for index, size in self._fixed:
            if room[index] < size:
                return False
        if not self._free:
            return True
        rooms = sorted([room[index] for index in self._open], reverse=True)
        return len(rooms) >= len(self._free) and all(map(ge, rooms, self._free))

    def _visit(self, index: int, room: tuple[int, ...], cost: tuple[float, int], kept: tuple[Occupant, ...]) -> None:
        self._steps += 1
        if cost >= self._best or (self.kept is not None and (self._steps > MAX_STEPS or self._best[0] >= BUSY)):
            return
        if index == len(self.leaving):
            self._best, self.kept = cost, kept
            return
        occupant, sizes = self.leaving[index], self._sizes[index]
        if sizes is not None:
            beside = tuple(map(sub, room, sizes))
            if self._fits(beside):
                self._visit(index + 1, beside, cost, (*kept, occupant))
        self._visit(index + 1, room, (cost[0] + occupant.cost, cost[1] + 1), kept)


def expected_use(ledger: Ledger, model: str, planned: Sizes | None) -> Sizes | None:
    """What a loaded model uses at most: as measured, but at least what it was learned to need; `planned` is what its
    load was decided with. None: unknown."""
    used, need = ledger.used.get(model), ledger.needs.get(model)
    if used is None or need is None or need.source != "learned":
        return used if used is not None else planned
    placed = (on_gpus_in_use(option, used) for option in need.options)
    shares = next((option for option in placed if option is not None), ())
    more = {share.device: max(used[share.device], share.size) for share in shares}
    return {**used, RAM: max(used.get(RAM, 0), need.ram), **more}


def on_gpus_in_use(option: tuple[GpuShare, ...], used: Sizes) -> tuple[GpuShare, ...] | None:
    """The option on the GPUs that a server uses, the largest share where it uses most; None if their numbers differ."""
    gpus = sorted((name for name in used if name != RAM), key=lambda name: -used[name])
    shares = sorted(option, key=lambda share: -share.size)
    if len(gpus) != len(shares):
        return None
    return tuple(GpuShare(share.size, gpu) for share, gpu in zip(shares, gpus, strict=True))


def gpu_numbers(devices: Iterable[str]) -> tuple[int, ...]:
    """The numbers of the GPUs among these devices."""
    return tuple(int(device.removeprefix("gpu")) for device in devices if device != RAM)


def in_words(size: int) -> str:
    """A size in MiB for a message: 900 MiB, 4.2 GiB."""
    return f"{size} MiB" if size < 1024 else f"{size / 1024:.1f} GiB"


def sizes_in_words(sizes: Sizes) -> str:
    """Sizes by device for a message: 4.2 GiB of gpu0 and 900 MiB of RAM."""
    parts = [f"{in_words(size)} of {'RAM' if device == RAM else device}" for device, size in sorted(sizes.items())]
    return " and ".join(parts) or "no memory"


def need_in_words(need: MemoryNeed) -> str:
    """A need for a message, spread in the preferred way: 8.0 GiB on one GPU and 900 MiB of RAM (learned)."""
    parts = [
        in_words(share.size) + (f" of {share.device}" if share.device else " on one GPU") for share in need.options[0]
    ]
    if need.ram or not parts:
        parts.append(f"{in_words(need.ram)} of RAM")
    return f"{' and '.join(parts)} ({need.source})"


def room_in_words(ledger: Ledger) -> str:
    """The machine's memory for a message: gpu0 has 24.0 GiB, of which 1.0 GiB are reserved."""
    parts = []
    for name, device in sorted(ledger.devices.items()):
        reserved = f", of which {in_words(device.reserve)} are reserved" if device.reserve else ""
        parts.append(f"{'RAM' if name == RAM else name} has {in_words(device.total)}{reserved}")
    return "; ".join(parts)
