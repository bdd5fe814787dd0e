"""`simulate`: recorded requests played again under each policy, to compare them before one is used."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import click
from attrs import define, evolve, field

from llamaswap.cli.check import usable
from llamaswap.cli.context import CliContext, counted, local, table
from llamaswap.cli.estimate import environment_of, estimated, machine
from llamaswap.cli.flags import DEFAULT_CONFIG
from llamaswap.config import Config, command_line, durations, sizes
from llamaswap.config.schema.memory import ANY_DEVICE
from llamaswap.memory.estimate import declared_need
from llamaswap.memory.footprints import STORE_NAME, Footprint, FootprintStore
from llamaswap.memory.ledger import limited
from llamaswap.memory.measure import DeviceUse
from llamaswap.memory.needs import learned_need
from llamaswap.observe.recorded_traffic import UnusableTraffic, read_traffic
from llamaswap.scheduling.memory import RAM, Device, Ledger, MemoryNeed, need_in_words, place, room_in_words
from llamaswap.scheduling.rules import rules_of
from llamaswap.scheduling.simulation import EvictAll, RecordedRequest, ServerTimes, Simulation, SimulationResult
from llamaswap.scheduling.state import Rules

UNKNOWN_LOAD = 10.0  # seconds for a load of which nothing is known
ONE_AT_A_TIME, MEMORY = "one at a time", "memory"
COLUMNS = ("POLICY", "LOADS", "LOAD SECONDS", "WAIT P50", "WAIT P95", "LONGEST", "REFUSED")


@define
class Knowledge:
    """What is known of the models' memory and load times; `problems` are in the way of knowing more."""

    config: Config
    devices: Mapping[str, Device]
    needs: dict[str, MemoryNeed] = field(factory=dict)
    loads: dict[str, float] = field(factory=dict)
    problems: list[str] = field(factory=list)

    def ledger(self) -> Ledger:
        """The memory with which the policy `memory` decides."""
        return Ledger(self.devices, self.needs, {}, self.loads, self.config.routing.memory.hold)

    def load_seconds(self, model: str) -> float:
        """How long a load of this model takes."""
        return self.loads.get(model, UNKNOWN_LOAD)


@define
class Traffic:
    """The recorded requests for models of the configuration; those for others are counted in `others`."""

    path: Path
    seconds: float
    config: Config
    models: dict[str, int] = field(factory=dict)
    others: dict[str, int] = field(factory=dict)

    def requests(self) -> Iterator[RecordedRequest]:
        """The requests, with the real IDs of their models."""
        self.models, self.others = {}, {}
        for request in read_traffic(self.path, self.seconds):
            model = self.config.real(request.model)
            known, name = (self.others, request.model) if model is None else (self.models, model)
            known[name] = known.get(name, 0) + 1
            if model is not None:
                yield evolve(request, model=model)


def rules_by_policy(config: Config) -> dict[str, Rules]:
    """The rules of each policy that is compared: the first is the base, the second the configuration's own."""

    def with_mode(mode: str) -> Rules:
        memory = evolve(config.routing.memory, mode=mode)
        return rules_of(
            evolve(config, routing=evolve(config.routing, memory=memory), hosts=None)
        )  # all of it is played here

    own = "matrix" if config.routing.router.use == "matrix" else "groups"
    as_it_is = with_mode("off")
    return {ONE_AT_A_TIME: evolve(as_it_is, evict=EvictAll()), own: as_it_is, MEMORY: with_mode("on")}


def budget_of(text: str) -> dict[str, int]:
    """MiB by device of ram=64GiB,gpu0=24GiB. Raises click.BadParameter."""
    found = {}
    for part in text.split(","):
        device, _, size = part.strip().partition("=")
        mib = sizes.parse(size.strip())
        if mib is None or mib < 0 or not (device == RAM or (device.startswith("gpu") and device[3:].isdigit())):
            raise click.BadParameter(f"{part!r}: expected DEVICE=SIZE such as ram=64GiB or gpu0=24GiB")
        found[device] = mib
    return found


def named(values: Iterable[str], config: Config, parse: Callable[[str], float | None]) -> dict[str, float]:
    """The values of an option by model; the key "" has the one that names no model. Raises click.ClickException."""
    found: dict[str, float] = {}
    for text in values:
        name, _, value = text.rpartition("=")
        model, parsed = config.real(name) if name else "", parse(value)
        if model is None:
            raise click.ClickException(f"{name} is not a model of the configuration")
        if parsed is None or parsed < 0:
            raise click.ClickException(f"{text!r} cannot be used: see llamaswap simulate --help")
        found[model] = parsed
    return found


def devices_of(config: Config, budget: Mapping[str, int], environ: Mapping[str, str]) -> dict[str, Device]:
    """The devices of a budget, else those of this machine; each with the reserve of the configuration."""
    settings = config.routing.memory
    here = machine(environ) if RAM not in budget else {}
    given = {name: DeviceUse(device.total, 0) for name, device in here.items() if name == RAM or not budget}
    found = {name: limited(name, use, 0, settings) for name, use in given.items()}
    settings = evolve(settings, budget={})
    return found | {name: limited(name, DeviceUse(size, 0), 0, settings) for name, size in budget.items()}


def learn(known: Knowledge, memory: Mapping[str, float], loads: Mapping[str, float], footprints: Path) -> None:
    """Find out what each model needs and how long it loads: as given, declared, learned or estimated."""
    store = FootprintStore(str(footprints), known.problems.append, lambda: 0.0) if footprints.exists() else None
    for model in known.config.models.values():
        name = model.replica_of or model.id
        learned = _footprint(store, known.config.copies(name)) if store is not None else None
        need = None if learned is None or model.memory else learned_need(learned)
        if name in memory:
            need = declared_need({ANY_DEVICE: int(memory[name])}, model.gpus, known.devices)
        elif need is None:
            environment = environment_of(model, known.config, os.environ)
            found = estimated(model, command_line.split(model.cmd), environment, known.devices)
            need = None if found is None else found.need
        if need is not None:
            known.needs[model.id] = need
        measured = learned.load_seconds if learned is not None else None
        seconds = loads.get(name, loads.get("", measured))
        if seconds is not None:
            known.loads[model.id] = seconds
    if store is not None:
        store.close()


def _footprint(store: FootprintStore, copies: Iterable[str]) -> Footprint | None:
    """What was learned of a model. Replicas have one footprint, by the name of the one that was measured last."""
    found = (store.find(copy, "") for copy in copies)
    return next((one for one in found if one is not None), None)


@click.command()
@click.option("--log", "log_file", type=click.Path(path_type=Path, dir_okay=False), help="The recorded requests.")
@click.option("--config", type=click.Path(path_type=Path), default=DEFAULT_CONFIG, help="The configuration to try.")
@click.option("--last", metavar="DURATION", help="Play only so much of the record, such as 24h.")
@click.option("--memory", multiple=True, metavar="MODEL=SIZE", help="What a model uses, such as chat=9GiB.")
@click.option("--budget", metavar="DEVICES", help="The memory to try, such as ram=64GiB,gpu0=24GiB.")
@click.option("--load-seconds", multiple=True, metavar="[MODEL=]SECONDS", help="How long loads take.")
@click.option("--stop-seconds", type=click.FloatRange(0, 600), default=1.0, show_default=True, help="For a stop.")
@local
def simulate(
    context: CliContext,
    log_file: Path | None,
    config: Path,
    last: str | None,
    memory: Sequence[str],
    budget: str | None,
    load_seconds: Sequence[str],
    stop_seconds: float,
) -> None:
    """Play recorded requests again, and compare the policies.

    The requests are those of an activity store (`--log`, by default the one of the configuration), or of a file of JSON
    lines or CSV with time, model and duration. Each one arrives when it did, and keeps its server busy for as long as
    it did. One model at a time is compared with the groups or the matrix of the configuration, and with
    `routing.memory: on`.
    """
    found = usable(config)
    path = log_file or (Path(found.store.path) if found.store is not None else None)
    if path is None:
        raise click.ClickException("name the recorded requests with --log: the configuration has no `store.path`")
    seconds = durations.parse(last) if last else float("inf")
    if seconds is None or seconds <= 0:
        raise click.BadParameter(f"{last!r}: expected a duration such as 24h")
    traffic = Traffic(path, seconds, found)
    known = Knowledge(found, devices_of(found, budget_of(budget) if budget else {}, os.environ))
    learn(known, named(memory, found, sizes.parse), named(load_seconds, found, _number), path.parent / STORE_NAME)
    times = ServerTimes(known.load_seconds, stop_seconds)
    try:
        results = {
            policy: Simulation(rules, known.ledger(), times, found.names.replicas).run(traffic.requests())
            for policy, rules in rules_by_policy(found).items()
        }
    except UnusableTraffic as error:
        raise click.ClickException(str(error)) from None
    if not traffic.models:
        raise click.ClickException(f"{path} has no request for a model of {config}")
    notes = list(_notes(known, traffic))
    if context.as_json:
        context.document({"policies": {name: _document(result) for name, result in results.items()}, "notes": notes})
        return
    context.say(f"{counted(sum(traffic.models.values()), 'request')} for {counted(len(traffic.models), 'model')}")
    context.show(table(COLUMNS, (_row(name, one) for name, one in results.items()), right=COLUMNS[1:]))
    for note in (*_comparison(results), *notes):
        context.say(note)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _document(result: SimulationResult) -> dict[str, object]:
    waits = result.waits
    return {
        "requests": result.requests,
        "loads": result.loads.total(),
        "load_seconds": round(result.load_seconds, 3),
        "loads_by_model": dict(sorted(result.loads.items())),
        "wait_p50_s": round(waits.quantile(0.5), 3),
        "wait_p95_s": round(waits.quantile(0.95), 3),
        "wait_longest_s": round(waits.longest, 3),
        "wait_total_s": round(waits.total, 3),
        "refused": dict(sorted(result.refused.items())),
    }


def _row(policy: str, result: SimulationResult) -> list[str]:
    waits = (result.waits.quantile(0.5), result.waits.quantile(0.95), result.waits.longest)
    refused = ", ".join(f"{number} {reason}" for reason, number in sorted(result.refused.items()))
    loads = (str(result.loads.total()), f"{result.load_seconds:.0f}")
    return [policy, *loads, *(f"{wait:.1f}s" for wait in waits), refused or "0"]


def _comparison(results: Mapping[str, SimulationResult]) -> Iterator[str]:
    """How memory compares with what the configuration does now."""
    _, own, _ = results
    before, after = results[own].load_seconds, results[MEMORY].load_seconds
    if refused := results[MEMORY].refused.total():
        yield f"routing.memory: on refuses {counted(refused, 'request')}, so its load seconds do not compare with {own}"
    elif before:
        share = round(100 * (after / before - 1))
        direction = "fewer" if share <= 0 else "more"
        yield f"routing.memory: on takes {abs(share)} % {direction} load seconds than {own} without it"


def _notes(known: Knowledge, traffic: Traffic) -> Iterator[str]:
    """What the result depends on and is not certain."""
    yield from known.problems
    used = sorted(traffic.models)
    ledger = known.ledger()
    for model in used:
        if place(ledger, model, ()).obstacle == "never":
            need, room = need_in_words(known.needs[model]), room_in_words(ledger)
            yield f"too large for this memory: {model}, which needs {need}, where {room}"
    unknown = [model for model in used if model not in known.needs]
    if unknown:
        yield f"loaded alone, because its memory is unknown (--memory MODEL=SIZE says it): {', '.join(unknown)}"
    guessed = [model for model in used if model not in known.loads]
    if guessed:
        names = ", ".join(guessed)
        yield f"a load is taken to last {UNKNOWN_LOAD:.0f} s (--load-seconds MODEL=SECONDS says it): {names}"
    if traffic.others:
        number = counted(sum(traffic.others.values()), "request")
        yield f"left out: {number} for {', '.join(sorted(traffic.others)[:12])}, not in the configuration"
