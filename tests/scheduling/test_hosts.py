"""Several hosts: where a model is loaded, and what happens when hosts vanish, are drained and come back."""

from __future__ import annotations

from attrs import Factory, define, evolve
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config.schema.hosts import Place
from llamaswap.errors import DoesNotFit, NoHost
from llamaswap.scheduling.effects import StartSwap
from llamaswap.scheduling.host_transitions import RETURN_WINDOW
from llamaswap.scheduling.hosts import FailedStart, HostFacts
from llamaswap.scheduling.memory import Device, GpuShare, Ledger, MemoryNeed
from llamaswap.scheduling.planner import forecast
from llamaswap.scheduling.state import FOREIGN_MEMORY_WAIT, ModelRules, Rules
from tests.scheduling.world import Conflicts, World, fifo, pairs

MODELS = "abcde"


def ram_of(size: int, **more: object) -> Ledger:
    return Ledger({"ram": Device(size)}, **more)


@define(eq=False)
class HostWorld(World):
    """A world of several hosts. `facts` are those that the scheduler was given last.

    Models of different hosts cannot be in conflict, so the relation is in the rules alone.
    """

    facts: dict[str, HostFacts] = Factory(dict)
    needs: dict[str, MemoryNeed] = Factory(dict)

    def send(self, **changes: HostFacts) -> None:
        """The hosts are those of `facts` with these changes."""
        self.facts |= changes
        self.perform(self.scheduler.hosts_changed(dict(self.facts), self.now))

    def change(self, host: str, **facts: object) -> None:
        self.send(**{host: evolve(self.facts[host], **facts)})

    def vanish(self, *hosts: str) -> None:
        """The hosts are not online any more; what stops there has stopped at once."""
        lost = {model for model, server in self.scheduler.models.items() if server.host in hosts}
        self.send(**{host: evolve(self.facts[host], online=False) for host in hosts})
        for model in lost & self.stopping:
            self.stopped(model)

    def hosts(self) -> dict[str, str]:
        """The host of each load so far."""
        return {swap.model: swap.host for swap in self.swaps}

    def run(self, *models: str) -> HostWorld:
        """Each model is used once."""
        for model in models:
            ticket = self.request(model)
            self.load_all()
            self.end(ticket)
        return self

    def load(self, model: str) -> StartSwap:
        """The load that a request for the model begins."""
        self.request(model)
        assert self.swaps and self.swaps[-1].model == model, f"{model} is not loaded"
        return self.swaps[-1]


def hosts(
    here: int = 100,
    conflicts: str = "",
    memory: bool = True,
    places: dict[str, Place] | None = None,
    need: int = 40,
    **others: int,
) -> HostWorld:
    """A world in which this machine and the others have so much RAM, and each model needs as much as `need`."""
    relation = Conflicts(pairs(*conflicts.split()))
    models = {model: ModelRules(place=(places or {}).get(model, Place())) for model in MODELS}
    rules = Rules(models, relation, fifo(patience=10.0), by_memory=memory, several_hosts=True)
    needs = {model: MemoryNeed(need) for model in MODELS}
    world = HostWorld(rules, Conflicts(()), needs=needs)
    world.perform(world.scheduler.memory_changed(ram_of(here, needs=needs, hold=0.0), world.now))
    world.send(**{name: HostFacts(name, ram_of(size)) for name, size in others.items()})
    return world


def at(*names: str) -> Place:
    return Place(names)


class ChoiceTests(SynchronousTestCase):
    def test_this_machine_is_preferred_if_models_fit_everywhere(self) -> None:
        self.assertEqual(hosts(nas=100, box=100).run("a", "b").hosts(), {"a": "", "b": ""})

    def test_host_with_room_is_preferred_to_an_eviction_here(self) -> None:
        world = hosts(here=50, nas=100).run("a", "b")
        self.assertEqual(world.hosts(), {"a": "", "b": "nas"})
        self.assertEqual(world.swaps[-1].sizes, {"ram": 40})
        self.assertEqual(world.ready, {"a", "b"})

    def test_host_whose_page_cache_has_the_weights_is_preferred_among_equal_ones(self) -> None:
        world = hosts(nas=100, box=100)
        world.change("nas", cached_models=frozenset("a"))
        swap = world.load("a")
        self.assertEqual(swap.host, "nas")
        self.assertIn("on nas, which has its weights in its page cache", swap.reason)
        self.assertEqual(world.load("b").host, "")

    def test_order_of_a_list_is_the_order_of_preference(self) -> None:
        places = {"a": at("nas", "box"), "b": at("box", "here"), "c": at("here")}
        world = hosts(nas=100, box=100, places=places).run(*"abc")
        self.assertEqual(world.hosts(), {"a": "nas", "b": "box", "c": ""})

    def test_next_host_of_the_list_is_used_if_the_first_one_is_full(self) -> None:
        world = hosts(nas=50, box=100, places=dict.fromkeys("ab", at("nas", "box")))
        world.request("a")
        world.load_all()
        self.assertEqual(world.load("b").host, "box")

    def test_cheapest_victim_of_all_hosts_leaves(self) -> None:
        world = hosts(here=50, nas=50).run("a")
        world.advance(60.0)
        world.run("b")
        world.advance(5.0)
        swap = world.load("c")
        self.assertEqual((swap.host, swap.evict), ("", ("a",)), "a was idle for longer")

    def test_busy_model_is_left_alone_if_an_idle_one_elsewhere_can_leave(self) -> None:
        world = hosts(here=50, nas=50)
        world.request("a")
        world.load_all()
        world.run("b")
        world.advance(1.0)
        swap = world.load("c")
        self.assertEqual((swap.host, swap.evict), ("nas", ("b",)))

    def test_hosts_without_the_gpus_memory_or_label_are_not_chosen(self) -> None:
        gpus = {"ram": Device(100), "gpu0": Device(24), "gpu1": Device(24)}
        places = {
            "a": Place(gpus=2),
            "b": Place(vram=40),
            "c": Place(labels={"gpu": "4090"}),
            "d": Place(gpus=3),
            "e": Place(labels={"gpu": "3090"}),
        }
        world = hosts(box=100, places=places)
        world.send(gpu=HostFacts("gpu", Ledger(gpus), {"gpu": "4090", "floor": "2"}))
        self.assertEqual(world.run(*"abc").hosts(), dict.fromkeys("abc", "gpu"))
        for model, word in {"d": "gpu has 2 GPUs", "e": "here has no label gpu: 3090"}.items():
            ticket = world.request(model)
            self.assertIsInstance(world.refused[ticket.number], NoHost)
            self.assertIn(word, str(world.refused[ticket.number]))

    def test_host_that_lacks_the_file_is_not_chosen(self) -> None:
        world = hosts(nas=100, places={"a": at("nas")})
        world.change("nas", missing={"a": "/models/a.gguf"})
        error = world.refused[world.request("a").number]
        self.assertIn("no host can run a now: nas lacks /models/a.gguf", str(error))

    def test_model_that_fits_no_host_is_refused_with_the_room_of_each(self) -> None:
        world = hosts(nas=50, need=200)
        error = world.refused[world.request("a").number]
        self.assertIsInstance(error, DoesNotFit)
        self.assertIn("does not fit any of its hosts: here: RAM has 100 MiB | nas: RAM has 50 MiB", str(error))

    def test_request_whose_only_fitting_host_failed_a_start_is_told_why_and_when_it_is_tried_again(self) -> None:
        """Not that the model is too large, which it is for this machine alone."""
        for places in ({}, {"a": at("nas")}):
            world = hosts(here=10, nas=100, places=places)
            world.change("nas", failed={"a": FailedStart("Ray has not reserved ram_mib 40", world.now + 29.5)})
            error = world.refused[world.request("a").number]
            self.assertIsInstance(error, NoHost)
            self.assertEqual(error.retry_after, 30)
            self.assertIn(
                "nas could not start it: Ray has not reserved ram_mib 40; it is tried there again in 30 s", str(error)
            )
            self.assertNotIn(" here", str(error))
            world.change("nas", failed={})
            self.assertEqual(world.load("a").host, "nas")

    def test_request_whose_only_fitting_host_is_drained_or_lacks_its_file_is_told_so(self) -> None:
        for facts, why in (({"drained": True}, "nas is drained"), ({"missing": {"a": "/a.gguf"}}, "nas lacks /a.gguf")):
            world = hosts(here=10, nas=100)
            world.change("nas", **facts)
            error = world.refused[world.request("a").number]
            self.assertIsInstance(error, NoHost)
            self.assertEqual(error.reason, f"it does not fit on the other hosts, and {why}")
            world = hosts(here=10, nas=30)
            world.change("nas", **facts)
            self.assertIsInstance(world.refused[world.request("a").number], DoesNotFit)

    def test_request_that_waits_for_an_absent_host_is_told_of_it_alone(self) -> None:
        world = hosts(here=10, nas=100)
        world.vanish("nas")
        plan = forecast(world.scheduler, "a", world.now)
        self.assertEqual(plan.action, "queue")
        self.assertTrue(plan.reason.endswith("it does not fit on the other hosts, and nas is offline"), plan.reason)

    def test_need_that_was_learned_on_a_host_counts_there(self) -> None:
        world = hosts(here=50, nas=50)
        world.change("nas", ledger=ram_of(50, needs={"b": MemoryNeed(10), "a": MemoryNeed(60)}))
        world.run("a", "c", "b")
        self.assertEqual(world.hosts(), {"a": "", "c": "nas", "b": "nas"})

    def test_model_that_uses_less_than_was_reserved_for_it_keeps_that_on_its_host(self) -> None:
        """Otherwise Ray refuses the next load there, again and again, and its requests get 503."""
        world = hosts(here=10, nas=100).run("a", "b")
        world.change("nas", ledger=ram_of(100, used={"a": {"ram": 1}, "b": {"ram": 1}}))
        self.assertEqual((world.load("c").host, len(world.swaps[-1].evict)), ("nas", 1))

    def test_need_that_only_another_host_knows_counts_there(self) -> None:
        """This machine may have no file to estimate it from."""
        world = hosts(here=10, nas=100, box=50).run("b", "c")
        world.perform(world.scheduler.memory_changed(ram_of(10, hold=0.0), world.now))
        world.change("nas", ledger=ram_of(100, needs={"a": MemoryNeed(50)}))
        swap = world.load("a")
        self.assertEqual((swap.host, swap.sizes, swap.evict), ("nas", {"ram": 50}, ()))

    def test_gpus_are_those_of_the_chosen_host(self) -> None:
        world = hosts(here=100)
        world.needs["a"] = MemoryNeed(0, ((GpuShare(20),),))
        world.perform(world.scheduler.memory_changed(ram_of(100, needs=world.needs), world.now))
        world.send(box=HostFacts("box", Ledger({"ram": Device(9), "gpu0": Device(10), "gpu1": Device(24)})))
        swap = world.load("a")
        self.assertEqual((swap.host, swap.gpus, swap.sizes), ("box", ("gpu1",), {"gpu1": 20}))

    def test_plan_names_the_host(self) -> None:
        plan = forecast(hosts(here=10, nas=100).scheduler, "a", 100.0)
        self.assertEqual((plan.action, plan.host), ("load", "nas"))

    def test_starved_request_reserves_its_host_only(self) -> None:
        world = hosts(here=50, nas=50, places={"b": at("here")})
        first = world.request("a")
        world.load_all()
        world.request("b")
        world.advance(11.0)
        self.assertEqual(world.load("c").host, "nas", "b waits for the memory of this machine alone")
        world.end(first)
        world.load_all()
        self.assertEqual(world.hosts()["b"], "")


class RulesTests(SynchronousTestCase):
    def test_without_memory_each_host_holds_what_the_rules_allow(self) -> None:
        world = hosts(nas=100, memory=False, conflicts="ab bc ac").run("a", "b", "c")
        self.assertEqual(world.hosts(), {"a": "", "b": "nas", "c": ""})
        self.assertEqual(world.swaps[-1].evict, ("a",))

    def test_pinned_model_on_one_host_sends_others_to_the_next(self) -> None:
        world = hosts(here=50, nas=50)
        world.run("a")
        world.pin("a")
        self.assertEqual(world.run("b").hosts()["b"], "nas")

    def test_groups_that_forbid_models_together_are_asked_per_host(self) -> None:
        world = hosts(nas=100, conflicts="ab").run("a", "b")
        self.assertEqual(world.ready, {"a", "b"})

    def test_configuration_without_hosts_stops_what_runs_elsewhere(self) -> None:
        world = hosts(here=50, nas=50).run("a", "b")
        world.retune(evolve(world.rules, several_hosts=False))
        self.assertEqual([stop.models for stop in world.stops], [("b",)])
        world.load_all()
        world.run("b")
        self.assertEqual(world.hosts()["b"], "")


class VanishTests(SynchronousTestCase):
    def test_model_of_a_vanished_host_is_loaded_elsewhere_for_the_next_request(self) -> None:
        world = hosts(here=50, nas=50, box=50).run("a", "b")
        world.vanish("box")
        self.assertEqual(world.hosts()["b"], "box")
        self.assertEqual(world.ready, {"a"})
        self.assertEqual(world.run("b").hosts()["b"], "nas")

    def test_requests_that_wait_for_a_load_there_are_decided_about_again(self) -> None:
        world = hosts(here=10, nas=50, box=50)
        ticket = world.request("a")
        self.assertEqual(world.hosts()["a"], "box")
        world.vanish("box")
        self.assertEqual(world.hosts()["a"], "nas")
        world.load_all()
        self.assertIn(ticket.number, world.granted)

    def test_one_process_of_a_model_at_a_time(self) -> None:
        """Its stop there has not ended, perhaps because the host is only slow."""
        world = hosts(here=10, nas=50, box=50)
        world.request("a")
        world.load_all()
        world.change("box", online=False)
        ticket = world.request("a")
        self.assertEqual(len(world.swaps), 1)
        world.stopped("a")
        self.assertEqual(world.hosts()["a"], "nas")
        world.load_all()
        self.assertIn(ticket.number, world.granted)

    def test_request_waits_for_the_only_host_of_its_model_and_is_then_refused_by_name(self) -> None:
        world = hosts(nas=100, places={"a": at("nas")})
        world.vanish("nas")
        ticket = world.request("a")
        world.advance(FOREIGN_MEMORY_WAIT - 1)
        self.assertEqual(world.refused, {})
        world.advance(2.0)
        self.assertIn("nas is offline", str(world.refused[ticket.number]))

    def test_request_is_served_when_the_host_is_back(self) -> None:
        world = hosts(nas=100, places={"a": at("nas")})
        world.vanish("nas")
        ticket = world.request("a")
        world.change("nas", online=True)
        world.load_all()
        self.assertIn(ticket.number, world.granted)

    def test_host_that_has_not_joined_is_waited_for(self) -> None:
        world = hosts(places={"a": at("later")})
        ticket = world.request("a")
        self.assertIn("later has not joined", forecast(world.scheduler, "a", world.now).reason)
        world.send(later=HostFacts("later", ram_of(50)))
        world.load_all()
        self.assertIn(ticket.number, world.granted)

    def test_host_that_left_the_list_has_vanished(self) -> None:
        world = hosts(here=10, nas=50, box=50).run("a")
        del world.facts["box"]
        world.send()
        world.stopped("a")
        self.assertEqual(world.run("a").hosts()["a"], "nas")

    def test_nothing_is_loaded_elsewhere_if_more_than_half_of_the_hosts_vanish_at_once(self) -> None:
        world = hosts(here=200, nas=50, box=50, places={"a": at("nas", "here"), "b": at("box", "here")}).run("a", "b")
        world.vanish("nas")
        world.advance(1.0)
        world.vanish("box")
        tickets = world.requests("a", "b")
        self.assertEqual(len(world.swaps), 2, "they may run on, if it is this machine that lost its network")
        self.assertIn("more than half of the hosts", forecast(world.scheduler, "a", world.now).reason)
        self.assertEqual(world.load("c").host, "", "what was not lost is loaded as ever")
        world.change("nas", online=True)
        world.load_all()
        self.assertEqual(
            world.hosts(), {"a": "nas", "b": "box", "c": ""}, "the others may be back in a moment, with what they run"
        )
        world.advance(RETURN_WINDOW)
        world.load_all()
        self.assertEqual(world.hosts(), {"a": "nas", "b": "", "c": ""})
        self.assertLessEqual({ticket.number for ticket in tickets}, world.granted.keys())

    def test_operator_has_lost_models_loaded_elsewhere(self) -> None:
        places = dict.fromkeys("ab", at("nas", "box", "here"))
        world = hosts(here=200, nas=50, box=50, places=places).run("a", "b")
        world.vanish("nas", "box")
        world.requests("a", "b")
        world.scheduler.clear_backoff(["a"])
        world.request("a")
        self.assertEqual(world.hosts(), {"a": "", "b": "box"})
        world.perform(world.scheduler.load_lost_elsewhere(world.now))
        self.assertEqual(world.hosts(), {"a": "", "b": ""})

    def test_hosts_that_vanish_one_after_the_other_do_not_count_together(self) -> None:
        world = hosts(here=200, nas=50, box=50, places={"b": at("box", "here")}).run("b")
        world.vanish("nas")
        world.advance(60.0)
        world.vanish("box")
        self.assertEqual(world.run("b").hosts()["b"], "")

    def test_model_of_a_dead_host_is_loaded_elsewhere_although_other_hosts_have_just_left_in_order(self) -> None:
        world = hosts(here=200, nas=50, box=50, places={"b": at("box", "here")}).run("b")
        world.change("nas", drained=True)
        world.vanish("nas")
        world.vanish("box")
        self.assertEqual(world.run("b").hosts()["b"], "")

    def test_engine_of_a_host_that_is_back_is_adopted(self) -> None:
        world = hosts(here=10, nas=50, box=50).run("a")
        world.vanish("box")
        world.perform(world.scheduler.adopted("a", world.now, world.now, world.now, host="box"))
        world.alive.add("a"), world.ready.add("a")
        world.change("box", online=True)
        ticket = world.request("a")
        self.assertIn(ticket.number, world.granted)
        self.assertEqual(len(world.swaps), 1)

    def test_model_that_is_adopted_counts_with_what_is_reserved_for_it(self) -> None:
        """After a restart Ray still holds the memory of what runs, also of what uses less."""
        world = hosts(here=10, nas=100)
        for model in "ab":
            world.perform(
                world.scheduler.adopted(model, world.now, world.now, world.now, host="nas", memory={"ram": 40})
            )
            world.alive.add(model), world.ready.add(model)
        world.change("nas", ledger=ram_of(100, used={"a": {"ram": 1}, "b": {"ram": 1}}))
        world.advance(1.0)
        self.assertEqual((world.load("c").host, len(world.swaps[-1].evict)), ("nas", 1))

    def test_model_that_may_still_run_on_a_host_that_has_not_answered_is_not_loaded_a_second_time(self) -> None:
        world = hosts(here=200, places={"a": at("nas", "here"), "b": at("here")})
        world.send(nas=HostFacts("nas", online=False, awaited=True))
        tickets = world.requests("a", "b", "c")
        self.assertEqual(world.hosts(), {"b": ""})
        self.assertIn("nas may still run it", forecast(world.scheduler, "a", world.now).reason)
        world.change("nas", awaited=False)
        world.load_all()
        self.assertEqual(world.hosts(), {"a": "", "b": "", "c": ""})
        self.assertIn(tickets[0].number, world.granted)


class DrainTests(SynchronousTestCase):
    def test_idle_models_leave_a_drained_host_and_nothing_new_is_loaded_there(self) -> None:
        world = hosts(here=50, nas=100).run("a", "b")
        world.change("nas", drained=True)
        self.assertEqual([(stop.models, stop.why) for stop in world.stops], [(("b",), "host")])
        world.load_all()
        world.advance(1.0)
        self.assertEqual(world.load("c").host, "")

    def test_requests_on_a_drained_host_finish_and_later_ones_go_elsewhere(self) -> None:
        world = hosts(here=50, nas=100, places={"a": at("nas", "here")})
        first = world.request("a")
        world.load_all()
        world.change("nas", drained=True)
        self.assertEqual(world.stops, [])
        later = world.request("a")
        world.end(first)
        world.load_all()
        self.assertIn(later.number, world.granted)
        self.assertEqual(world.hosts()["a"], "")

    def test_this_machine_can_be_drained(self) -> None:
        world = hosts(nas=100)
        world.send(**{"": HostFacts("", drained=True)})
        self.assertEqual(world.load("a").host, "nas")

    def test_model_without_another_host_is_refused_while_its_host_is_drained(self) -> None:
        world = hosts(nas=100, places={"a": at("nas")})
        world.change("nas", drained=True)
        self.assertIn("nas is drained", str(world.refused[world.request("a").number]))


class SuspendedTests(SynchronousTestCase):
    def world(self) -> HostWorld:
        world = hosts(here=60, nas=100, places={"a": at("here", "nas")}, need=30)
        rules = evolve(
            world.rules, models=world.rules.models | {"a": ModelRules(can_suspend=True, place=at("here", "nas"))}
        )
        world.retune(rules)
        world.run("a")
        world.advance(1.0)
        world.perform(world.scheduler.memory_changed(world.scheduler.ledger, world.now))
        return world

    def suspend(self, world: HostWorld) -> None:
        world.scheduler.models["a"].idle_armed = True
        world.perform(world.scheduler.idle_expired("a", world.now))
        world.stopped("a")

    def test_suspended_model_is_resumed_on_its_host(self) -> None:
        world = self.world()
        self.suspend(world)
        self.assertEqual(world.run("a").hosts()["a"], "")

    def test_suspended_model_moves_if_its_host_has_no_room_for_it(self) -> None:
        world = self.world()
        self.suspend(world)
        foreign = evolve(world.scheduler.ledger, devices={"ram": Device(60, 0, 50, "train")})
        world.perform(world.scheduler.memory_changed(foreign, world.now))
        world.request("a")
        self.assertEqual([(stop.models, stop.why) for stop in world.stops], [(("a",), "host")])
        world.load_all()
        self.assertEqual(world.hosts()["a"], "nas")
