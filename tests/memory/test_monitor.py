"""When memory is measured, and the ledger that results."""

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.app.memory_document import MemoryReport
from llamaswap.config.diagnostics import Diagnostics
from llamaswap.config.policies import RouterSettings
from llamaswap.config.policies.groups import GROUP_POLICY
from llamaswap.config.schema.memory import MemorySettings
from llamaswap.config.schema.routing import EvictionSettings, Routing
from llamaswap.memory.footprints import FootprintStore
from llamaswap.memory.learner import Learner
from llamaswap.memory.measure import DeviceUse, MachineUse, ModelUse
from llamaswap.memory.monitor import INTERVAL, RECLAIM_TIME, MemoryMonitor, ServerView
from llamaswap.routing.memory_leases import LeaseRequest, MemoryLease
from llamaswap.scheduling.memory import Device, GpuShare, MemoryNeed
from llamaswap.scheduling.memory_leases import HeldMemory


class Scene(SynchronousTestCase):
    """A machine with 10 GB of RAM; the test says which servers run and what they use, and answers measurements."""

    def setUp(self):
        self.clock = Clock()
        self.views = {}
        self.devices = {"ram": DeviceUse(10000, 1000, 1000, "firefox (pid 9)")}
        self.uses = {}
        self.queued = False
        self.models = ["owl", "crow"]
        self.settings = MemorySettings()
        self.needs = {}
        self.keys = {"owl": "k1", "crow": "c1"}
        self.asked = []  # measurements that wait for an answer
        self.measurements = self.rests = 0
        self.held = False
        self.settings_read = self.needs_read = 0
        self.ledgers = []
        self.estimates = []
        self.store = FootprintStore(None, self.fail, self.clock.seconds, self.clock.seconds)
        self.monitor = self.make()

    def read_settings(self):
        self.settings_read += 1
        return self.settings

    def declared(self, model, devices):
        self.needs_read += 1
        return self.needs.get(model)

    def make(self):
        self.learner = Learner(
            run=lambda work: succeeded(work),
            seconds=self.clock.seconds,
            store=self.store,
            key_of=lambda model: lambda: self.keys[model],
            chosen=lambda model: False,
            output=lambda model: b"",
            changed=lambda: self.monitor.publish(),
        )
        return MemoryMonitor(
            clock=self.clock,
            measure=self.measure,
            servers=lambda: list(self.views.values()),
            waiting=lambda: self.queued,
            models=lambda: self.models,
            settings=self.read_settings,
            declared=self.declared,
            learner=self.learner,
            changed=self.ledgers.append,
            estimate=self.estimate,
            estimating=lambda: self.settings.mode == "on",
            rest=self.rest,
        )

    def measure(self, servers):
        self.measurements += 1
        done = Deferred()
        self.asked.append(done)
        if not self.held:
            self.answer()
        return done

    def answer(self):
        self.asked.pop(0).callback(MachineUse(dict(self.devices), dict(self.uses)))

    def estimate(self, model, devices):
        done = Deferred()
        self.estimates.append((model, done))
        return done

    def rest(self):
        self.rests += 1

    def use(self, model, **sizes):
        self.uses[model] = ModelUse(sizes)

    def load(self, model="owl", ready=True, **sizes):
        self.views[model] = ServerView(model, 7, "starting", ("llama-server",))
        self.monitor.state_changed(model, "starting")
        if ready:
            self.use(model, **sizes)
            self.become_ready(model)

    def become_ready(self, model="owl"):
        self.views[model] = evolve(self.views[model], state="ready", load_seconds=2.5)
        self.monitor.state_changed(model, "ready")

    def unload(self, model="owl"):
        self.views[model] = evolve(self.views[model], state="stopping")
        self.monitor.state_changed(model, "stopping")
        del self.views[model]
        self.uses.pop(model, None)
        self.monitor.state_changed(model, "stopped")

    @property
    def ledger(self):
        return self.ledgers[-1]


def succeeded(work):
    done = Deferred()
    done.callback(work())
    return done


class RhythmTests(Scene):
    def test_reload_of_many_models_reads_the_settings_of_the_devices_once(self):
        def reads(models):
            self.models, before = [f"m{number}" for number in range(models)], self.settings_read
            self.keys = dict.fromkeys(self.models, "k")
            self.needs = dict.fromkeys(self.models, MemoryNeed(100))
            self.monitor.reloaded()
            return self.settings_read - before

        self.settings = MemorySettings("on")
        self.monitor.start()
        self.assertEqual(reads(50), reads(5))

    def test_machine_is_measured_once_at_the_start_and_then_rests(self):
        self.monitor.start()
        self.monitor.start()
        self.clock.advance(1000)
        self.assertEqual((self.measurements, self.rests), (1, 1))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_running_server_is_measured_every_two_seconds_until_it_ends(self):
        self.monitor.start()
        self.load(ram=100)
        self.clock.pump([0.5] * 40)
        self.assertLessEqual(self.measurements, 13)
        self.assertGreaterEqual(self.measurements, 10)
        self.unload()
        before = self.measurements
        self.clock.advance(1000)
        self.assertEqual((self.measurements, self.rests), (before, 2))

    def test_waiting_request_is_a_reason_to_measure(self):
        self.queued = True
        self.monitor.start()
        self.clock.pump([INTERVAL] * 3)
        self.assertEqual(self.measurements, 4)
        self.queued = False
        self.clock.pump([INTERVAL] * 3)
        self.assertEqual(self.measurements, 5)

    def test_request_that_waits_while_nothing_runs_is_followed_by_a_measurement(self):
        """What other programs used when the last server ended may be free by now."""
        self.monitor.start()
        self.devices = {"ram": DeviceUse(10000, 500, 500)}
        self.queued = True
        self.monitor.request_queued()
        self.assertEqual(self.ledger.devices["ram"].foreign, 500)
        self.clock.advance(INTERVAL)
        self.monitor.request_queued()
        self.assertEqual(self.measurements, 3, "no further one while it is measured at intervals")

    def test_suspended_server_is_measured_once(self):
        self.monitor.start()
        self.load(ram=100)
        self.use("owl", ram=40)
        self.views["owl"] = evolve(self.views["owl"], state="stopped", suspended=True)
        self.monitor.state_changed("owl", "stopped")
        self.clock.pump([INTERVAL] * 10)
        self.assertEqual(self.ledger.used, {"owl": {"ram": 40}})
        before = self.measurements
        self.clock.advance(100)
        self.assertEqual(self.measurements, before)

    def test_driver_that_hangs_is_asked_once_and_the_last_ledger_stays(self):
        self.monitor.start()
        self.load(ram=100)
        self.held = True
        self.clock.pump([INTERVAL] * 20)
        self.become_ready("owl")
        self.assertEqual(len(self.asked), 1)
        self.assertEqual(self.ledger.used, {"owl": {"ram": 100}})
        self.held = False
        self.answer()
        self.assertEqual(len(self.asked), 0)

    def test_measurement_that_fails_is_logged_and_tried_again(self):
        self.monitor.start()
        self.held = True
        self.load(ram=100)
        self.asked.pop(0).errback(RuntimeError("driver"))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual(self.ledger.used, {})
        self.held = False
        self.clock.advance(INTERVAL)
        self.assertEqual(self.ledger.used, {"owl": {"ram": 100}})

    def test_nothing_is_measured_before_the_start_and_after_the_stop(self):
        self.load(ram=100)
        self.assertEqual(self.measurements, 0)
        self.monitor.start()
        self.held = True
        self.clock.advance(INTERVAL)
        self.monitor.stop()
        published = len(self.ledgers)
        self.answer()
        self.monitor.state_changed("owl", "ready")
        self.clock.advance(100)
        self.assertEqual((self.asked, len(self.ledgers)), ([], published))
        self.assertEqual(self.clock.getDelayedCalls(), [])


class LedgerTests(Scene):
    def test_ledger_is_passed_on_if_it_differs(self):
        self.monitor.start()
        self.assertEqual(self.ledger.devices, {"ram": Device(10000, 0, 1000, "firefox (pid 9)")})
        self.load(ram=100)
        self.clock.pump([INTERVAL] * 10)
        count = len(self.ledgers)
        self.use("owl", ram=101)
        self.clock.pump([INTERVAL] * 3)
        self.assertEqual(len(self.ledgers), count)
        self.use("owl", ram=300)
        self.clock.pump([INTERVAL] * 3)
        self.assertEqual(self.ledger.used, {"owl": {"ram": 300}})

    def test_loading_server_is_not_in_the_used_memory(self):
        self.monitor.start()
        self.load(ready=False)
        self.use("owl", ram=3000)
        self.clock.pump([INTERVAL] * 3)
        self.assertEqual(self.ledger.used, {})
        self.become_ready()
        self.assertEqual(self.ledger.used, {"owl": {"ram": 3000}})
        self.unload()
        self.assertEqual(self.ledger.used, {})

    def test_size_is_learned_and_kept_when_the_server_is_gone(self):
        self.monitor.start()
        self.load(ram=100)
        self.clock.pump([0.5] * 8)
        self.unload()
        self.assertEqual(self.ledger.needs, {"owl": MemoryNeed(102, ((),), "learned", True)})
        self.assertEqual(self.ledger.load_seconds, {"owl": 2.5})
        self.assertEqual(self.learner.footprints["owl"].n, 2)

    def test_requests_are_followed_by_measurements_that_are_learned(self):
        self.monitor.start()
        self.load(ram=100)
        self.clock.pump([0.5] * 10)
        self.use("owl", ram=500)
        self.clock.pump([0.5] * 20)
        self.assertEqual(self.ledger.needs["owl"].ram, 102)
        self.monitor.request_ended("owl")
        self.clock.pump([0.5] * 12)
        self.assertEqual(self.ledger.needs["owl"].ram, 510)

    def test_changed_command_is_carried_over_at_the_next_start(self):
        self.monitor.start()
        self.load(ram=100)
        self.clock.pump([0.5] * 8)
        self.unload()
        self.keys["owl"] = "k2"
        self.monitor.reloaded()
        self.assertEqual(self.ledger.needs["owl"], MemoryNeed(102, ((),), "carried", False))

    def test_learned_sizes_are_known_after_a_restart(self):
        self.test_size_is_learned_and_kept_when_the_server_is_gone()
        self.ledgers.clear()
        self.monitor.stop()
        self.monitor = self.make()
        self.monitor.start()
        self.assertEqual(self.ledger.needs["owl"].source, "learned")

    def test_server_of_the_program_before_an_upgrade_is_learned(self):
        self.views["owl"] = ServerView("owl", 7, "ready", (), load_seconds=1.0)
        self.views["gone"] = ServerView("gone", 8, "stopping")
        self.use("owl", ram=200)
        self.monitor.start()
        self.clock.pump([0.5] * 10)
        self.assertEqual((self.ledger.needs["owl"].ram, self.ledger.used), (204, {"owl": {"ram": 200}}))

    def test_declared_size_comes_first(self):
        self.needs["owl"] = MemoryNeed(900)
        self.monitor.start()
        self.load(ram=100)
        self.clock.pump([0.5] * 10)
        self.assertEqual(self.ledger.needs["owl"], MemoryNeed(900))

    def test_unknown_models_are_estimated_one_after_the_other_if_memory_decides(self):
        self.monitor.start()
        self.assertEqual(self.estimates, [])
        self.settings = MemorySettings(mode="on")
        self.needs["crow"] = MemoryNeed(5)
        self.models.append("wren")
        self.keys["wren"] = "w"
        self.monitor.reloaded()
        self.assertEqual([model for model, _ in self.estimates], ["owl"])
        self.estimates[0][1].callback(MemoryNeed(700, source="gguf", firm=False))
        self.assertEqual(self.ledger.needs["owl"].source, "gguf")
        self.assertEqual([model for model, _ in self.estimates], ["owl", "wren"])
        self.estimates[1][1].errback(RuntimeError("no header"))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertNotIn("wren", self.ledger.needs)
        self.load(ram=100)
        self.assertEqual(self.ledger.needs["owl"].source, "learned")
        self.assertEqual(len(self.estimates), 2)

    def test_work_for_each_estimate_does_not_grow_with_the_number_of_models(self):
        def reads_for_each(models):
            self.models = [f"m{number:03}" for number in range(models)]
            self.keys = dict.fromkeys(self.models, "k")
            before, known = self.needs_read, len(self.estimates)
            self.monitor.reloaded()
            for model in self.models:
                found, done = self.estimates[known]
                self.assertEqual(found, model)
                done.callback(MemoryNeed(700, source="gguf", firm=False))
                known += 1
            self.assertEqual(list(self.ledger.needs), self.models)
            return (self.needs_read - before) / models

        self.models, self.settings = [], MemorySettings(mode="on")
        self.monitor.start()
        self.assertLess(reads_for_each(200), 2 * reads_for_each(20))

    def test_estimates_that_take_long_are_published_before_the_last_one(self):
        self.settings = MemorySettings(mode="on")
        self.models = ["m1", "m2", "m3"]
        self.keys = dict.fromkeys(self.models, "k")
        self.monitor.start()
        for seconds, known in ((0, ["m1"]), (0.5, ["m1"]), (0.5, ["m1", "m2", "m3"])):
            self.clock.advance(seconds)
            self.estimates[-1][1].callback(MemoryNeed(700, source="gguf", firm=False))
            self.assertEqual(list(self.ledger.needs), known)

    def test_estimate_of_a_command_that_a_reload_has_changed_is_not_used(self):
        self.settings = MemorySettings(mode="on")
        self.models = ["owl"]
        self.monitor.start()
        self.monitor.reloaded()
        self.estimates[0][1].callback(MemoryNeed(700, source="gguf", firm=False))
        self.assertEqual(self.ledger.needs, {})
        self.assertEqual([model for model, _ in self.estimates], ["owl", "owl"])
        self.estimates[1][1].callback(MemoryNeed(900, source="gguf", firm=False))
        self.assertEqual(self.ledger.needs["owl"].ram, 900)

    def test_measurement_that_fails_after_the_stop_is_not_logged(self):
        self.held = True
        self.monitor.start()
        self.monitor.stop()
        self.asked.pop().errback(RuntimeError("the memory worker is closed"))
        self.assertEqual(self.flushLoggedErrors(RuntimeError), [])

    def test_sizes_are_known_when_they_were_looked_up(self):
        self.held = True
        known = self.monitor.when_known()
        self.monitor.start()
        self.assertNoResult(known)
        self.answer()
        self.successResultOf(known)
        self.successResultOf(self.monitor.when_known())

    def test_removed_model_leaves_the_ledger(self):
        self.monitor.start()
        self.load(ram=100)
        self.models.remove("owl")
        self.monitor.reloaded()
        self.assertEqual((self.ledger.needs, self.ledger.load_seconds), ({}, {}))


class ForeignTests(Scene):
    def foreign(self, device="gpu0"):
        return self.ledger.devices[device].foreign

    def setUp(self):
        super().setUp()
        self.devices["gpu0"] = DeviceUse(8000, 500, 500)

    def test_memory_that_a_driver_has_not_released_is_not_foreign_for_a_while(self):
        self.monitor.start()
        self.load(ram=100, gpu0=4000)
        self.devices["gpu0"] = DeviceUse(8000, 4500, 4500)
        self.queued = True
        self.unload()
        self.clock.advance(INTERVAL)
        self.assertEqual(self.foreign(), 500)
        self.clock.pump([INTERVAL] * (int(RECLAIM_TIME / INTERVAL) + 1))
        self.assertEqual(self.foreign(), 4500)

    def test_program_that_takes_a_gpu_while_servers_stop_is_seen(self):
        """With a swap every few seconds it was never seen, and loads ran out of memory beside it."""
        self.monitor.start()
        self.load(ram=100, gpu0=4000)
        self.devices["gpu0"] = DeviceUse(8000, 6500, 6500, listed=2500)
        self.queued = True
        self.unload()
        self.clock.advance(INTERVAL)
        self.assertEqual(self.foreign(), 2500)

    def test_foreign_use_that_cannot_be_told_stays_as_it_was(self):
        self.monitor.start()
        self.devices["gpu0"] = DeviceUse(8000, 4500, None)
        self.load(ram=100)
        self.clock.pump([INTERVAL] * 4)
        self.assertEqual(self.foreign(), 500)

    def test_server_that_others_leave_too_little_for_is_not_learned(self):
        self.needs["owl"] = MemoryNeed(0, ((GpuShare(5000, "gpu0"),),))
        self.monitor.start()
        self.load("crow", ram=1, gpu0=4000)
        self.load("owl", ram=1, gpu0=3000)
        self.clock.pump([0.5] * 10)
        self.assertTrue(self.learner.footprints["owl"].squeezed)
        self.assertEqual(self.learner.footprints["owl"].sizes, {})


class PressureTests(Scene):
    def test_reserve_that_other_programs_use_for_five_seconds_is_pressed(self):
        self.settings = MemorySettings(reserve={"ram": 500})
        self.monitor.start()
        self.load(ram=4000)
        self.assertEqual(self.ledger.pressed, frozenset())
        self.devices["ram"] = DeviceUse(10000, 9700, 5700)
        self.clock.pump([INTERVAL] * 2)
        self.assertEqual(self.ledger.pressed, frozenset())
        self.clock.pump([INTERVAL] * 3)
        self.assertEqual(self.ledger.pressed, {"ram"})
        told = len(self.ledgers)
        self.clock.advance(INTERVAL)
        self.assertEqual(len(self.ledgers), told + 1)
        self.devices["ram"] = DeviceUse(10000, 9000, 5000)
        self.clock.advance(INTERVAL)
        self.assertEqual(self.ledger.pressed, frozenset())

    def test_models_that_grew_beyond_the_budget_together_are_pressed(self):
        self.settings = MemorySettings(budget={"ram": 5000})
        self.monitor.start()
        self.load(ram=2000)
        self.load("crow", ram=2000)
        self.clock.pump([INTERVAL] * 4)
        self.assertEqual(self.ledger.pressed, frozenset())
        self.use("crow", ram=3500)
        self.clock.pump([INTERVAL] * 4)
        self.assertEqual(self.ledger.pressed, {"ram"})

    def test_model_that_grew_beyond_the_budget_alone_stays(self):
        self.settings = MemorySettings(budget={"ram": 5000})
        self.monitor.start()
        self.load(ram=6000)
        self.clock.pump([INTERVAL] * 6)
        self.assertEqual(self.ledger.pressed, frozenset())

    def test_full_device_without_a_reserve_is_not_pressed(self):
        self.monitor.start()
        self.load(ram=4000)
        self.devices["ram"] = DeviceUse(10000, 10000, 6000)
        self.clock.pump([INTERVAL] * 6)
        self.assertEqual(self.ledger.pressed, frozenset())


class DocumentTests(Scene):
    leases = ()

    def document(self):
        names = {"ram": "", "gpu0": "RTX"}.get
        report = MemoryReport(self.monitor, names, lambda: self.routing, lambda: self.leases, lambda ledger: ledger)
        return report.document()

    @property
    def routing(self):
        default = GROUP_POLICY.check({}, {"owl", "crow"}, "", Diagnostics())
        return Routing(EvictionSettings("group", RouterSettings(groups=default)), memory=self.settings)

    def test_document_is_empty_before_the_first_measurement(self):
        self.assertEqual(self.document(), {"mode": "advise", "devices": [], "needs": {}, "advice": []})

    def test_lease_is_shown_with_the_memory_that_it_holds(self):
        self.leases = [MemoryLease("train-1", LeaseRequest("train", 2000, 0, 0, 60.0), 7, HeldMemory({"ram": 2000}))]
        self.monitor.start()
        self.views["lease:train-1"] = ServerView("lease:train-1", 7, "lease")
        self.use("lease:train-1", ram=500)
        self.load(ram=100)
        rows = self.document()["devices"][0]["models"]
        self.assertEqual([(row["model"], row["mib"]) for row in rows], [("owl", 100), ("lease:train-1", 2000)])
        self.assertEqual(self.ledger.used["lease:train-1"], {"ram": 500})
        self.assertNotIn("lease:train-1", {**self.ledger.needs, **self.learner.footprints})

    def test_devices_show_who_uses_them(self):
        self.devices["gpu0"] = DeviceUse(8000, 4500, 500, "blender (pid 4)")
        self.settings = MemorySettings(reserve={"gpu": 100})
        self.needs["crow"] = MemoryNeed(30, ((GpuShare(700, "gpu0"),),))
        self.monitor.start()
        self.load(ram=100, gpu0=4000)
        self.load("crow", ready=False)
        found = self.document()
        gpu = found["devices"][1]
        rows = [{"model": "owl", "mib": 4000, "source": "measured", "squeezed": False}]
        rows.append({"model": "crow", "mib": 700, "source": "declared", "squeezed": False})
        self.assertEqual(gpu.pop("models"), rows)
        expected = {"device": "gpu0", "name": "RTX", "total_mib": 8000, "free_mib": 2800, "reserve_mib": 100}
        self.assertEqual(gpu, {**expected, "foreign_mib": 500, "foreign_by": "blender (pid 4)"})
        self.assertEqual([row["mib"] for row in found["devices"][0]["models"]], [100, 30])
        need = {
            "ram_mib": 102,
            "gpus": [[4080]],
            "source": "learned",
            "samples": 1,
            "p95_mib": 4100,
            "load_seconds": 2.5,
        }
        self.assertEqual(found["needs"]["owl"], need)
        self.assertEqual(found["needs"]["crow"]["source"], "declared")

    def test_free_memory_is_that_of_the_budget(self):
        self.devices["gpu0"] = DeviceUse(8000, 4000, 0)
        self.settings = MemorySettings(budget={"gpu0": 5000})
        self.monitor.start()
        self.load(ram=100, gpu0=4000)
        gpu = self.document()["devices"][1]
        self.assertEqual((gpu["total_mib"], gpu["free_mib"]), (5000, 1000))

    def test_models_that_fit_together_but_replace_one_another_are_advised_about(self):
        self.devices["gpu0"] = DeviceUse(8000, 700, 0)
        self.needs |= {name: MemoryNeed(100, ((GpuShare(700),),)) for name in ("owl", "crow")}
        self.monitor.start()
        self.load(ram=100, gpu0=700)
        [sentence] = self.document()["advice"]
        self.assertIn("crow, owl", sentence)
        self.settings = MemorySettings("on")
        self.assertEqual(self.document()["advice"], [])

    def test_advice_prefers_models_that_load_long(self):
        self.models.append("wren")
        self.keys["wren"] = "w1"
        self.needs = {"owl": MemoryNeed(100), "crow": MemoryNeed(8500), "wren": MemoryNeed(8500)}
        self.monitor.start()
        self.load("wren", ram=8500)
        self.assertIn("owl, wren.", self.document()["advice"][0])
