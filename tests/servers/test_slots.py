"""What servers have read, saved and restored around stops and starts; and given up where it does not help."""

from __future__ import annotations

import json

from attrs import evolve
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config import Model
from llamaswap.config.endpoints import Endpoint
from llamaswap.config.schema.model import SlotSettings as Wanted
from llamaswap.errors import ModelUnloaded
from llamaswap.http_client import HttpResponse
from llamaswap.servers.engine_request import flag_of
from llamaswap.servers.prepared_supervisor import PreparedSupervisor
from llamaswap.servers.slots import SavedSlot, SlotPreparation, SlotStore
from tests.doubles import FakeFleet, RecordingListener, server_status

CMD = ("llama-server", "--port", "${PORT}", "--slot-save-path", "/cache", "--api-key", "sesame,other")


def reply(answer):
    if isinstance(answer, int):
        return HttpResponse(answer, b"")
    return HttpResponse(200, json.dumps(answer).encode())


class Scene:
    def __init__(self, **wanted):
        self.clock = Clock()
        self.asked, self.removed, self.keys = [], [], set()
        self.answers = {
            "GET /slots": [{"id": 0}, {"id": 1}],
            "POST /slots/0?action=save": {"n_saved": 900, "n_written": 1000},
            "POST /slots/1?action=save": {"n_saved": 0, "n_written": 100},
            "POST /slots/0?action=restore": {"n_restored": 900},
        }
        self.delay = 0.5
        self.slots = SlotStore(self.clock, self.send, self.removed.append)
        self.model = Model("a/b", cmd=" ".join(CMD), slots=Wanted(**{"save": True, **wanted}))
        self.inner = FakeFleet(self.clock)(self.model, RecordingListener())
        self.inner.cmd = CMD
        self.server = PreparedSupervisor(self.inner, [SlotPreparation(self.model, self.slots)])

    def send(self, method, url, *, timeout, body=None, headers):
        path = url.removeprefix(str(self.inner.endpoint).rstrip("/"))
        self.asked.append((f"{method} {path}", body and json.loads(body)))
        self.keys.add(headers["Authorization"])
        answer = self.answers[f"{method} {path}"]
        if isinstance(answer, Exception):
            return fail(answer)
        if isinstance(answer, Deferred):
            return answer.addTimeout(timeout, self.clock)
        told = succeed(reply(answer))
        if method == "GET" or not self.delay:
            return told
        waiting = Deferred()
        self.clock.callLater(self.delay, waiting.callback, None)
        return waiting.addCallback(lambda _: told)

    def up(self):
        ready = self.server.ensure_ready()
        self.clock.pump([0.1] * 20)
        return ready

    def down(self, grace=10.0):
        gone = self.server.stop(grace)
        self.clock.pump([0.1] * 20)
        return gone

    def steps(self):
        return [step for step, _ in self.asked]


class SlotTests(SynchronousTestCase):
    def test_slots_are_saved_before_the_stop_and_restored_after_the_start(self):
        made = Scene()
        self.successResultOf(made.up())
        self.assertEqual(made.asked, [])
        self.successResultOf(made.down())
        self.assertEqual(made.steps(), ["GET /slots", "POST /slots/0?action=save", "POST /slots/1?action=save"])
        self.assertEqual(made.asked[1][1], {"filename": "llamaswap-a%2Fb-0.bin"})
        self.assertEqual(made.slots.document(made.model)["saved_tokens"], 900)
        del made.asked[:]
        ready = made.server.ensure_ready()
        made.clock.pump([0.1] * 3)
        self.assertNoResult(ready)
        made.clock.pump([0.1] * 10)
        self.successResultOf(ready)
        self.assertEqual(made.asked, [("POST /slots/0?action=restore", {"filename": "llamaswap-a%2Fb-0.bin"})])
        self.assertEqual(made.keys, {"Bearer sesame"})

    def test_server_on_another_host_saves_and_restores_nothing(self):
        made = Scene()
        slots = SlotPreparation(made.model, made.slots)
        slots.table.saved = [SavedSlot(0, "llamaswap-a.bin", 900)]
        status = server_status("a/b", endpoint=Endpoint("http", "nas", 6400, "/engine/5.1/a", token="sesame"))
        self.successResultOf(Deferred.fromCoroutine(slots.before_stop(status, 10.0)))
        self.successResultOf(Deferred.fromCoroutine(slots.after_load(status)))
        self.assertEqual((made.asked, slots.table.given_up), ([], ""))

    def test_model_that_was_removed_and_added_again_has_no_saved_slots(self):
        made = Scene()
        made.up()
        made.down()
        self.assertEqual(made.slots.document(made.model)["saved_tokens"], 900)
        added = evolve(made.model, cmd="llama-server --other")
        PreparedSupervisor(FakeFleet(made.clock)(added, RecordingListener()), [SlotPreparation(added, made.slots)])
        self.assertEqual(made.slots.document(added)["saved_tokens"], 0)

    def test_slot_saving_that_costs_more_than_it_gains_is_given_up(self):
        made = Scene()
        for _ in range(3):
            made.up()
            made.slots.read("a/b", tokens=20, cached=900, speed=9000.0)
            made.down()
        self.assertEqual(made.slots.document(made.model)["state"], "on")
        made.up()
        made.slots.read("a/b", tokens=20, cached=900, speed=9000.0)
        told = made.slots.document(made.model)
        self.assertEqual((told["state"], told["trials"], told["gain_ms"]), ("given up", 3, 300))
        self.assertIn("saved 0.30s", told["why"])
        del made.asked[:]
        made.down()
        made.up()
        self.assertEqual(made.asked, [])

    def test_slot_saving_that_gains_is_kept(self):
        made = Scene()
        for _ in range(8):
            made.up()
            made.slots.read("a/b", tokens=20, cached=900, speed=100.0)
            made.down()
        told = made.slots.document(made.model)
        self.assertEqual((told["state"], told["trials"]), ("on", 7))
        self.assertGreater(told["gain_ms"], told["cost_ms"])

    def test_restored_tokens_that_the_first_request_did_not_use_do_not_count(self):
        made = Scene()
        for _ in range(5):
            made.up()
            made.slots.read("a/b", tokens=800, cached=0, speed=100.0)
            made.down()
        self.assertEqual(made.slots.document(made.model)["state"], "given up")

    def test_hanging_save_is_given_up_at_the_time_limit(self):
        made = Scene(timeout=1.0)
        made.answers["POST /slots/0?action=save"] = Deferred()
        made.up()
        gone = made.server.stop(10.0)
        made.clock.pump([0.1] * 9)
        self.assertNoResult(gone)
        made.clock.pump([0.1] * 5)
        self.successResultOf(gone)
        self.assertIn("within 1s", made.slots.document(made.model)["why"])

    def test_server_without_slots_or_with_a_failing_save_is_stopped(self):
        for answer in (501, ConnectionError("gone")):
            made = Scene()
            made.answers["POST /slots/0?action=save"] = answer
            made.up()
            self.successResultOf(made.down())
            self.assertEqual(made.slots.document(made.model)["saved_tokens"], 0)

    def test_slot_file_over_the_size_limit_is_deleted(self):
        made = Scene(max_size=1)
        made.answers["POST /slots/0?action=save"] = {"n_saved": 900, "n_written": 2_000_000}
        made.up()
        made.down()
        self.assertEqual(made.removed, ["/cache/llamaswap-a%2Fb-0.bin"])
        self.assertEqual(made.slots.document(made.model)["saved_tokens"], 0)

    def test_server_of_another_definition_restores_nothing(self):
        made = Scene()
        made.up()
        made.server.set_definition(evolve(made.model, cmd="llama-server --model other"))
        made.down()
        made.inner.cmd = ("llama-server", "--model", "other")
        del made.asked[:]
        made.up()
        self.assertEqual(made.asked, [])

    def test_definition_that_changes_during_the_save_keeps_nothing_of_it(self):
        """What the old server saved, or refused, counted for the new command."""
        for answer in ({"n_saved": 900, "n_written": 1000}, 501):
            made = Scene()
            made.up()
            made.answers["POST /slots/0?action=save"] = answer
            made.server.stop(10.0)
            made.server.set_definition(evolve(made.model, cmd="llama-server --model other"))
            made.clock.pump([0.1] * 20)
            document = made.slots.document(made.model)
            self.assertEqual((document["state"], document["saved_tokens"]), ("on", 0))

    def test_unload_during_the_restore_fails_the_start(self):
        made = Scene()
        made.up()
        made.down()
        ready = made.server.ensure_ready()
        made.clock.pump([0.1] * 3)
        made.server.stop(10.0)
        made.clock.pump([0.1] * 20)
        self.failureResultOf(ready, ModelUnloaded)

    def test_crash_suspend_shutdown_and_unwanted_saving_save_nothing(self):
        for what in ("crash", "sleep", "end", "unwanted"):
            made = Scene(save=what != "unwanted")
            made.up()
            made.slots.closing = what == "end"
            if what == "sleep":
                made.server.suspend(10.0)
            else:
                made.down(0.0 if what == "crash" else 10.0)
            self.assertEqual(made.asked, [])

    def test_request_during_the_save_gets_the_next_server(self):
        """Given out as it is, it would go from under the request."""
        made = Scene()
        made.up()
        gone = made.server.stop(10.0)
        ready = made.server.ensure_ready()
        made.clock.pump([0.1] * 3)
        self.assertNoResult(ready)
        made.clock.pump([0.1] * 40)
        self.successResultOf(gone)
        self.successResultOf(ready)
        self.assertEqual((made.inner.state, made.inner.spawned), ("ready", 2))
        self.assertIn("POST /slots/0?action=restore", made.steps())

    def test_two_stops_save_once(self):
        """The second save would meet a server that goes, and be given up for it."""
        made = Scene()
        made.up()
        gone = [made.server.stop(10.0)]
        made.clock.pump([0.1] * 3)
        gone.append(made.server.stop(10.0))
        made.clock.pump([0.1] * 40)
        for one in gone:
            self.successResultOf(one)
        self.assertEqual(made.steps().count("GET /slots"), 1)
        self.assertEqual(made.slots.document(made.model)["saved_tokens"], 900)

    def test_request_during_the_save_fails_at_a_second_stop(self):
        for again in ("stop", "suspend"):
            made = Scene()
            made.up()
            made.server.stop(10.0)
            ready = made.server.ensure_ready()
            getattr(made.server, again)(10.0)
            made.clock.pump([0.1] * 40)
            self.failureResultOf(ready, ModelUnloaded)
            self.assertEqual((made.inner.state, made.inner.spawned), ("stopped", 1))

    def test_command_flags_are_read_in_both_forms(self):
        self.assertEqual(flag_of(("s", "--slot-save-path=/x", "--api-key", "k"), "--slot-save-path"), "/x")
        self.assertEqual(flag_of(("s", "--slot-save-path=/x", "--api-key", "k"), "--api-key"), "k")
        self.assertEqual(flag_of(("s", "--slot-save-path"), "--slot-save-path"), "")
