"""Several hosts in any order of events: a world with its own account of what runs where and who uses how much of it."""

from __future__ import annotations

from itertools import permutations

from attrs import Factory, define
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config.schema.hosts import Place
from llamaswap.errors import StartFailed
from llamaswap.scheduling.effects import StartSwap
from llamaswap.scheduling.host_planner import TOO_SMALL, best_fits, fit_on, priced
from llamaswap.scheduling.hosts import HostFacts, candidates
from llamaswap.scheduling.memory import Device, GpuShare, Ledger, MemoryNeed
from llamaswap.scheduling.state import ModelRules, Phase, Rules
from tests.scheduling.world import Conflicts, World, fifo, pairs

MODELS = "abcde"
OTHERS = ("box", "gpu", "nas")
HOSTS = ("", *OTHERS)


@define(eq=False)
class ClusterWorld(World):
    """A world of several hosts. `needs` are the sizes per GPU of each model and its RAM, `total` is what each host has.

    `where` is the host of each model's last load, `taken` what models that are up use there; `away` hosts are offline,
    `drained` ones get nothing new, on `learned` ones the needs are known.
    """

    relation: Conflicts = Factory(lambda: Conflicts(()))
    needs: dict[str, tuple[tuple[int, ...], int]] = Factory(dict)
    total: dict[str, dict[str, int]] = Factory(dict)
    allowed: dict[str, tuple[str, ...]] = Factory(dict)
    foreign: dict[str, int] = Factory(dict)
    where: dict[str, str] = Factory(dict)
    planned: dict[str, dict[str, int]] = Factory(dict)
    taken: dict[str, dict[str, int]] = Factory(dict)
    away: set[str] = Factory(set)
    drained: set[str] = Factory(set)
    cached: dict[str, str] = Factory(dict)
    learned: set[str] = Factory(lambda: {""})

    def ledger(self, host: str) -> Ledger:
        devices = {name: Device(size) for name, size in self.total[host].items()}
        devices["ram"] = Device(self.total[host]["ram"], 0, self.foreign.get(host, 0), "train")
        used = {model: self.taken[model] for model in self.ready if self.where[model] == host and model in self.taken}
        needs = {
            model: MemoryNeed(ram, (tuple(GpuShare(size) for size in gpus),), "learned")
            for model, (gpus, ram) in self.needs.items()
        }
        return Ledger(devices, needs if host in self.learned else {}, used, {}, 0.0)

    def send(self) -> None:
        if self.rules.by_memory:
            self.perform(self.scheduler.memory_changed(self.ledger(""), self.now))
        facts = {
            host: HostFacts(
                host,
                self.ledger(host) if self.rules.by_memory else Ledger({}),
                online=host not in self.away,
                drained=host in self.drained,
                cached_models=frozenset(model for model, at in self.cached.items() if at == host),
            )
            for host in HOSTS
        }
        self.perform(self.scheduler.hosts_changed(facts, self.now))

    def vanish(self, host: str) -> None:
        """The host is not online any more. What ran there is gone, or will be stopped when it is back."""
        self.away.add(host)
        self.send()
        for model in sorted(self.stopping):
            if self.where.get(model) == host:
                self.stopped(model)

    def room(self, host: str) -> dict[str, int]:
        left = dict(self.total[host])
        for model, sizes in self.taken.items():
            if self.where[model] == host:
                for device, size in sizes.items():
                    left[device] -= size
        return left

    def fits(self, model: str, room: dict[str, int]) -> bool:
        gpus, ram = self.needs[model]
        names = [name for name in room if name != "ram"]
        return room["ram"] >= ram and any(
            all(room[name] >= size for name, size in zip(chosen, gpus, strict=True))
            for chosen in permutations(names, len(gpus))
        )

    def hosts_of(self, model: str) -> list[str]:
        """Where the model may run, in the end."""
        return [host for host in self.allowed[model] if self.fits(model, self.total[host]) or not self.rules.by_memory]

    def check_swap(self, swap: StartSwap) -> None:
        assert swap.host in self.allowed[swap.model], f"{swap.model} may not run on {swap.host}"
        assert swap.host not in self.away | self.drained, f"{swap.model} is loaded on {swap.host}, which takes nothing"
        elsewhere = [victim for victim in swap.evict if self.where[victim] != swap.host]
        assert not elsewhere, f"{elsewhere} leave other hosts for {swap.model} on {swap.host}"
        if swap.model in self.stopping | self.asleep:
            assert self.where[swap.model] == swap.host, f"{swap.model} has a process on another host"
        self.where[swap.model] = swap.host
        self.planned[swap.model] = dict(swap.sizes or {})
        super().check_swap(swap)

    def begin_starts(self) -> None:
        before = set(self.alive)
        super().begin_starts()
        for model in self.alive - before:
            host = self.where[model]
            self.taken.setdefault(model, self.planned[model])
            beside = {other for other in before if self.where[other] == host}
            rivals = [other for other in beside if frozenset((model, other)) in self.relation.pairs]
            assert not rivals, f"{model} starts on {host} beside {rivals}"
        if self.rules.by_memory:
            for host in HOSTS:
                over = {device: left for device, left in self.room(host).items() if left < 0}
                assert not over, f"{host} is over its capacity: {over}"

    def check(self) -> None:
        super().check()
        for model in MODELS:
            if self.scheduler.phase(model) is Phase.STOPPED:
                self.check_choice(model)

    def check_choice(self, model: str) -> None:
        """The host that is chosen by bounds and pruning is the one that a look at all hosts would choose."""
        state, now = self.scheduler, self.now
        names = candidates(state.hosts, model, self.rules.models[model].place)
        if not names:
            return
        fits = [priced(state, model, fit_on(state, model, name, now), now) for name in names]
        best = min(fits, key=lambda fit: (fit.cost, len(fit.evicts)))
        first = next(best_fits(state, model, names, now))
        if best.cost < TOO_SMALL:
            assert first == best, f"{model} would go to {first}, but {best} is better"
        else:
            assert first.cost >= TOO_SMALL

    def lose(self, model: str) -> None:
        super().lose(model)
        self.taken.pop(model, None)

    def lingering(self) -> set[str]:
        """With a host away, drained or in use by other programs, a request may wait for it alone."""
        blocked = {model for model in MODELS if self.away or self.drained or any(self.foreign.values())}
        return super().lingering() | blocked


models = st.sampled_from(MODELS)
hosts = st.sampled_from(OTHERS)
picks = st.integers(0, 10_000)
shares = st.tuples(st.integers(1, 24), st.integers(0, 2)).map(lambda drawn: (drawn[0],) * drawn[1])
a_need = st.tuples(shares, st.integers(1, 60))
a_host = st.tuples(st.integers(20, 100), st.lists(st.integers(5, 30), max_size=2)).map(
    lambda drawn: {"ram": drawn[0], **{f"gpu{number}": size for number, size in enumerate(drawn[1])}}
)
a_place = st.lists(st.sampled_from(HOSTS), max_size=3, unique=True)


class HostMachine(RuleBasedStateMachine):
    world: ClusterWorld

    @initialize(
        needs=st.fixed_dictionaries(dict.fromkeys(MODELS, a_need)),
        total=st.fixed_dictionaries(dict.fromkeys(HOSTS, a_host)),
        places=st.fixed_dictionaries(dict.fromkeys(MODELS, a_place)),
        memory=st.sampled_from((True, True, False)),
        window=st.sampled_from((0.0, 2.0, 10.0)),
        conflicts=st.sets(st.sampled_from(("ab", "cd", "ae", "bc")), max_size=3),
        suspends=st.sets(models, max_size=2),
        pinned=st.sets(models, max_size=1),
        learned=st.sets(hosts),
    )
    def begin(self, needs, total, places, memory, window, conflicts, suspends, pinned, learned):
        relation = Conflicts(pairs(*conflicts))
        for model in MODELS:  # one that needs more GPUs than any host has is loaded alone: a case of one host
            if len(needs[model][0]) > max(len(total[host]) - 1 for host in places[model] or HOSTS):
                needs[model] = ((), 10)
        rules = Rules(
            {
                model: ModelRules(
                    place=Place(tuple(host or "here" for host in places[model])),
                    can_suspend=model in suspends and not memory,
                )
                for model in MODELS
            },
            relation,
            fifo(patience=window),
            by_memory=memory,
            several_hosts=True,
        )
        self.world = ClusterWorld(
            rules,
            Conflicts(()),
            relation=relation,
            needs=needs,
            total=total,
            learned={"", *learned},
            allowed={model: tuple(places[model]) or HOSTS for model in MODELS},
        )
        self.world.send()
        self.world.pin(*pinned)

    @rule(model=models)
    def a_request_comes(self, model):
        ticket = self.world.request(model)
        if not self.world.hosts_of(model):
            assert ticket.number not in self.world.granted

    @rule(model=models)
    def another_request_comes(self, model):
        self.world.request(model)

    @precondition(lambda self: self.world.granted or self.world.cut)
    @rule(pick=picks)
    def a_request_ends(self, pick):
        tickets = [*self.world.granted.values(), *self.world.cut.values()]
        self.world.end(tickets[pick % len(tickets)])

    @precondition(lambda self: self.world.waiting)
    @rule(pick=picks)
    def a_waiting_client_leaves(self, pick):
        tickets = list(self.world.waiting.values())
        self.world.cancel(tickets[pick % len(tickets)])

    @precondition(lambda self: self.world.stopping)
    @rule(pick=picks)
    def a_stop_ends(self, pick):
        stopping = sorted(self.world.stopping)
        self.world.stopped(stopping[pick % len(stopping)])

    @precondition(lambda self: self.world.startable())
    @rule(pick=picks, fails=st.sampled_from((False, False, True)))
    def a_start_ends(self, pick, fails):
        generation = self.world.startable()[pick % len(self.world.startable())]
        model = self.world.loads[generation].swap.model
        self.world.started(generation, StartFailed(model, "exited", 1) if fails else None)

    @precondition(lambda self: self.world.late)
    @rule()
    def a_late_result_arrives(self):
        self.world.deliver_late()

    @rule(host=hosts)
    def a_host_vanishes(self, host):
        if host not in self.world.away:
            self.world.vanish(host)

    @rule(host=hosts)
    def a_host_is_back(self, host):
        self.world.away.discard(host)
        self.world.send()

    @rule(host=st.sampled_from(HOSTS), drained=st.booleans())
    def a_host_is_drained_or_not(self, host, drained):
        (self.world.drained.add if drained else self.world.drained.discard)(host)
        self.world.send()

    @rule(host=st.sampled_from(HOSTS), model=models)
    def weights_get_into_a_page_cache(self, host, model):
        self.world.cached[model] = host
        self.world.send()

    @rule(host=st.sampled_from(HOSTS), size=st.sampled_from((0, 0, 5, 30)))
    def other_programs_use_memory(self, host, size):
        self.world.foreign[host] = size
        self.world.send()

    @rule(seconds=st.sampled_from((0.5, 3.0, 12.0)))
    def time_passes(self, seconds):
        self.world.advance(seconds)

    @invariant()
    def nothing_is_wrong(self):
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self):
        """Once all hosts are there and all requests that are served have ended, whatever fits a host has run."""
        if not hasattr(self, "world"):
            return
        world = self.world
        world.pin()
        world.foreign.clear()
        world.away.clear()
        world.drained.clear()
        world.send()
        # One that was suspended or asked for while its hosts were away may have been refused before.
        waiting = {number for number, ticket in world.waiting.items() if world.hosts_of(ticket.model)}
        for _ in range(300):
            if world.granted or world.cut:
                world.end(next(iter([*world.granted.values(), *world.cut.values()])))
            elif world.stopping:
                world.stopped(min(world.stopping))
            elif world.startable():
                world.started(world.startable()[0])
            elif world.late:
                world.deliver_late()
            elif world.waiting:
                world.advance(1.0)
            else:
                break
            world.check()
        assert not world.waiting, f"{list(world.waiting.values())} still wait"
        refused = waiting & world.refused.keys()
        assert not refused, f"refused although it fits: {[world.refused[number] for number in refused]}"


class HostMachineTests(SynchronousTestCase):
    def test_no_host_is_overcommitted_and_whatever_fits_one_runs_in_the_end(self) -> None:
        run_state_machine_as_test(
            HostMachine,
            settings=settings(
                max_examples=300, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
            ),
        )
