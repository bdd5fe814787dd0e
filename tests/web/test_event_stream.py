import json

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from llamaswap.config import Capabilities
from llamaswap.events import (
    CapabilitiesFound,
    ConfigRejected,
    ConfigReloaded,
    LoadFailed,
    ProfileChanged,
    StateChanged,
    SwapBegan,
    SwapEnded,
)
from llamaswap.observe.activity_row import ActivityRow, ActivityStored
from llamaswap.web.event_fanout import GATHER_TIME_PER_CLIENT, MAX_GATHERED_BYTES, MAX_IMMEDIATE_CLIENTS
from llamaswap.web.event_stream import RENDERING_LIFETIME
from llamaswap.web.sse_feed import LONGEST_PAUSE, MAX_QUEUED_MESSAGES, Feed, message
from llamaswap.wire.usage import Usage
from tests.doubles import server_status
from tests.web.doubles import World, example_router, with_keys


def events(body):
    """(type, decoded payload, id) of each message; heartbeats left out."""
    found = []
    for block in body.decode().split("\n\n")[:-1]:
        number = None
        for line in block.split("\n"):
            if line.startswith("id:"):
                number = int(line[3:])
            elif line.startswith("data:"):
                envelope = json.loads(line[5:])
                found.append((envelope["type"], json.loads(envelope["data"]), number))
    return found


def kinds(body):
    return [kind for kind, _, _ in events(body)]


def told(client):
    return {kind: data for kind, data, _ in events(client.answer().body)}


def row(status=200, **more):
    return ActivityRow(1700000000, "alpha", "/v1/x", "application/json", status, Usage(3, 4), 12, **more)


class ConnectTests(TestCase):
    def test_the_first_messages_come_in_the_known_order_and_form(self):
        """http T153"""
        world = World()
        world.book.proxy.write("[INFO] ö\n".encode() + b"\xff")
        client = world.open("/api/events")
        answer = client.answer()
        self.assertEqual(answer.headers["content-type"], "text/event-stream")
        self.assertEqual(answer.headers["cache-control"], "no-cache")
        self.assertEqual(answer.headers["x-accel-buffering"], "no")
        self.assertEqual(answer.headers["x-content-type-options"], "nosniff")
        expected = ["logData", "logData", "modelStatus", "uiConfig", "profileChanged", "inflight", "metrics"]
        self.assertEqual(kinds(answer.body), expected)
        told = events(answer.body)
        self.assertEqual(told[0][1], {"source": "proxy", "data": "[INFO] ö\n\ufffd"})
        self.assertEqual(told[1][1], {"source": "upstream", "data": ""})
        self.assertEqual(told[3][1], {"activity": {"session_id": ["X-Session-ID", "X-Litellm-Session-Id"]}})
        self.assertEqual(told[4][1], {"active": None})
        self.assertEqual(told[5][1], {"operation": "snapshot"})
        self.assertEqual(told[6][1], [])
        first = answer.body.split(b"\n\n")[1]
        self.assertEqual(
            first, b'event:message\ndata:{"type":"logData","data":"{\\"source\\":\\"upstream\\",\\"data\\":\\"\\"}"}'
        )
        client.leave()

    def test_status_event_has_every_local_and_every_peers_model(self):
        """http T157"""
        world = World(example_router(states={"alpha": "ready", "beta": "shutdown"}))
        client = world.open("/api/events")
        models = {row["id"]: row for row in told(client)["modelStatus"]}
        self.assertEqual(
            models["alpha"],
            {
                "id": "alpha",
                "name": "Alpha",
                "description": " first ",
                "state": "ready",
                "unlisted": False,
                "peerID": "",
                "aliases": ["al"],
                "capabilities": {"vision": True, "function_calling": True},
                "context_length": 8192,
            },
        )
        self.assertEqual((models["org/gamma"]["unlisted"], models["org/gamma"]["state"]), (True, "stopped"))
        self.assertEqual(models["beta"]["state"], "stopped")
        self.assertEqual((models["lab/delta"]["peerID"], models["lab/delta"]["state"]), ("lab", ""))
        self.assertNotIn("pick", models)
        client.leave()

    def test_head_answers_and_ends(self):
        world = World()
        self.assertEqual(world.ask("/api/events", "HEAD").status, 200)
        self.assertEqual((world.inflight.listeners, world.clock.getDelayedCalls()), ([], []))


class LiveTests(TestCase):
    def setUp(self):
        self.world = World()
        self.client = self.world.open("/api/events")
        self.seen = len(self.client.answer().body)

    def tearDown(self):
        self.client.leave()
        self.assertEqual(self.world.clock.getDelayedCalls(), [])
        self.assertEqual((self.world.inflight.listeners, self.world.book.proxy.readers), ([], 0))

    def fresh(self):
        body = self.client.answer().body[self.seen :]
        self.seen += len(body)
        return body

    def test_changes_of_state_and_profile_are_events(self):
        self.world.router.states["alpha"] = "starting"
        self.world.bus.publish(StateChanged("alpha", "stopped", "starting"))
        self.world.bus.publish(ProfileChanged("work"))
        self.assertEqual(kinds(self.fresh()), ["modelStatus", "profileChanged", "modelStatus"])

    def test_capabilities_that_a_server_reported_are_an_event(self):
        self.world.events.capabilities = lambda model: Capabilities(context=4096)
        self.world.bus.publish(CapabilitiesFound("beta"))
        (kind, rows, _), *others = events(self.fresh())
        self.assertEqual((kind, {row["id"]: row for row in rows}["beta"]["context_length"]), ("modelStatus", 4096))
        self.assertEqual(others, [])

    def test_changes_of_running_requests_are_events(self):
        self.world.inflight.tell({"operation": "remove", "id": "7"})
        self.assertEqual(events(self.fresh()), [("inflight", {"operation": "remove", "id": "7"}, None)])

    def test_stored_row_is_an_event_in_both_vocabularies(self):
        rows = self.world.events.legacy_rows.activity = Rows()
        rows.flat = self.world.activity.flat
        self.world.bus.publish(ActivityStored([row(id=1)]))
        told = events(self.fresh())
        self.assertEqual(told[0][:2], ("activity", {"id": 1}))
        self.assertEqual((told[1][0], told[1][1][0]["input_tokens"]), ("metrics", 3))

    def test_log_writes_are_gathered_and_cut_characters_joined(self):
        self.world.book.proxy.write("a\u20ac".encode()[:2])
        self.world.book.proxy.write("a\u20ac".encode()[2:])
        self.assertEqual(self.fresh(), b"")
        self.world.clock.advance(0.05)
        self.assertEqual(events(self.fresh()), [("logData", {"source": "proxy", "data": "a\u20ac"}, None)])

    def test_flood_of_log_bytes_is_cut_with_a_marker(self):
        for _ in range(40):
            self.world.book.proxy.write(b"x" * 10_000)
        self.world.clock.advance(0.05)
        body = self.fresh()
        self.assertLess(len(body), 300_000)
        self.assertIn("characters dropped", events(body)[0][1]["data"])

    def test_a_heartbeat_comes_every_fifteen_seconds(self):
        self.world.clock.advance(15)
        self.assertEqual(self.fresh(), b": ping\n\n")
        self.world.clock.advance(15)
        self.assertEqual(self.fresh(), b": ping\n\n")

    def test_clients_of_the_old_vocabulary_get_no_swaps(self):
        self.world.bus.publish(SwapBegan(1, "alpha", (), "", 0.0))
        self.assertEqual(self.fresh(), b"")

    def test_reload_ends_a_legacy_stream_so_that_the_client_connects_again(self):
        """http T168"""
        self.world.bus.publish(ConfigReloaded(added=("x",)))
        self.assertTrue(self.client.answer().ended)


class BackPressureTests(TestCase):
    def test_client_that_falls_behind_gets_the_current_state_instead_of_its_queue(self):
        world = World()
        slow, quick = world.open("/api/events"), world.open("/api/events")
        seen = len(slow.answer().body)
        slow.transport.producer.pauseProducing()
        for number in range(MAX_QUEUED_MESSAGES + 1):
            world.inflight.tell({"operation": "remove", "id": str(number)})
        self.assertEqual(len(slow.answer().body), seen)
        self.assertIn('\\"id\\":\\"1024\\"', quick.answer().text)
        slow.transport.producer.resumeProducing()
        self.assertEqual(kinds(slow.answer().body[seen:]), ["modelStatus", "uiConfig", "profileChanged", "inflight"])
        seen = len(slow.answer().body)
        world.inflight.tell({"operation": "remove", "id": "x"})
        self.assertEqual(kinds(slow.answer().body[seen:]), ["inflight"])
        slow.leave()
        quick.leave()

    def test_a_short_pause_loses_nothing(self):
        world = World()
        client = world.open("/api/events")
        seen = len(client.answer().body)
        client.transport.producer.pauseProducing()
        for number in range(3):
            world.inflight.tell({"operation": "remove", "id": str(number)})
        client.transport.producer.resumeProducing()
        self.assertEqual([data["id"] for _, data, _ in events(client.answer().body[seen:])], ["0", "1", "2"])
        client.leave()

    def test_for_clients_that_do_not_read_no_events_are_made(self):
        world = World()
        client = world.open("/api/events?topics=inflight,models,swaps")
        seen = len(client.answer().body)
        client.transport.producer.pauseProducing()
        world.clock.advance(LONGEST_PAUSE + 0.1)
        world.bus.publish(SwapBegan(1, "alpha", (), "", 0.0))
        self.assertEqual(world.inflight.listeners, [])
        world.bus.publish(SwapBegan(2, "alpha", (), "", 0.0))
        client.transport.producer.resumeProducing()
        world.bus.publish(SwapBegan(3, "alpha", (), "", 0.0))
        world.inflight.tell({"operation": "remove", "id": "x"})
        told = events(client.answer().body[seen:])
        self.assertEqual(
            [kind for kind, _, _ in told], ["modelStatus", "uiConfig", "profileChanged", "inflight", "swap", "inflight"]
        )
        self.assertEqual(told[4][1]["id"], 3)
        client.leave()

    def test_a_returning_client_gets_no_gap_after_events_that_were_not_made(self):
        world = World()
        client = world.open("/api/events?topics=swaps,logs:alpha")
        world.bus.publish(SwapBegan(1, "alpha", (), "", 0.0))
        last = events(client.answer().body)[-1][2]
        client.transport.producer.pauseProducing()
        world.clock.advance(LONGEST_PAUSE + 0.1)
        for number in (2, 3):
            world.bus.publish(SwapBegan(number, "alpha", (), "", 0.0))
        client.transport.producer.resumeProducing()
        world.bus.publish(SwapBegan(4, "alpha", (), "", 0.0))
        back = world.open("/api/events?topics=swaps,logs:alpha", headers=[("Last-Event-ID", str(last))])
        told = [(kind, data) for kind, data, _ in events(back.answer().body) if kind in ("logData", "swap")]
        self.assertEqual(told, [("logData", {"source": "alpha", "data": "", "reset": True, "times": []})])
        client.leave()
        back.leave()


class Rows:
    """An activity book whose rows come when the test says so."""

    def __init__(self):
        self.asked = []

    def legacy(self):
        self.asked.append(Deferred())
        return self.asked[-1]


class CrowdTests(TestCase):
    """5,000 clients that came and left at once cost 46 s of work afterwards and a gigabyte for good."""

    def setUp(self):
        self.world = World()
        self.rows = self.world.events.legacy_rows.activity = Rows()

    def test_clients_that_connect_together_share_one_read_of_the_finished_requests(self):
        clients = [self.world.open("/api/events") for _ in range(5)]
        self.assertEqual(len(self.rows.asked), 1)
        self.rows.asked[0].callback([{"id": 1}])
        clients.append(self.world.open("/api/events"))
        self.assertEqual(len(self.rows.asked), 1)
        for client in clients:
            self.assertEqual(told(client)["metrics"], [{"id": 1}])
            client.leave()

    def test_finished_requests_are_read_again_after_a_moment_or_another_request(self):
        first = self.world.open("/api/events")
        self.rows.asked[0].callback([])
        self.world.clock.advance(RENDERING_LIFETIME)
        later = self.world.open("/api/events")
        self.rows.asked[1].callback([{"id": 1}])
        self.assertEqual(told(later)["metrics"], [{"id": 1}])
        first.leave()
        later.leave()

    def test_a_request_stored_while_the_rows_are_read_is_not_hidden_by_the_shared_rows(self):
        first = self.world.open("/api/events")
        self.world.bus.publish(ActivityStored([row(404, id=2)]))
        self.rows.asked[0].callback([{"id": 1}])
        second = self.world.open("/api/events")
        self.rows.asked[1].callback([{"id": 1}, {"id": 2}])
        self.assertEqual(told(second)["metrics"], [{"id": 1}, {"id": 2}])
        first.leave()
        second.leave()

    def test_stored_request_is_rendered_only_while_a_client_reads(self):
        rendered = []
        self.rows.flat = lambda stored: rendered.append(stored.id) or {}
        self.world.bus.publish(ActivityStored([row(id=1)]))
        self.assertEqual(rendered, [])
        client = self.world.open("/api/events")
        self.world.bus.publish(ActivityStored([row(id=2)]))
        self.assertEqual(rendered, [2])
        client.leave()
        self.world.bus.publish(ActivityStored([row(id=3)]))
        self.assertEqual(rendered, [2])

    def test_gathered_events_are_sent_when_they_are_many_bytes(self):
        clients = [self.world.open("/api/events?topics=inflight") for _ in range(MAX_IMMEDIATE_CLIENTS + 1)]
        before = len(clients[0].answer().body)
        self.world.inflight.tell({"operation": "add", "id": "1" * 1000})
        self.assertEqual(len(clients[0].answer().body), before)
        self.world.inflight.tell({"operation": "add", "id": "2" * MAX_GATHERED_BYTES})
        self.assertEqual(kinds(clients[0].answer().body[before:]), ["inflight", "inflight"])
        for client in clients:
            client.leave()

    def test_a_log_is_followed_until_its_last_client_has_left(self):
        first, second = (self.world.open("/api/events?topics=logs:proxy") for _ in range(2))
        first.leave()
        self.assertEqual(self.world.book.proxy.readers, 1)
        before = len(second.answer().body)
        self.world.book.proxy.write(b"more\n")
        self.world.clock.advance(1)
        self.assertIn(b"more", second.answer().body[before:])
        second.leave()
        self.assertEqual(self.world.book.proxy.readers, 0)

    def test_client_that_left_causes_no_further_reads(self):
        for _ in range(50):
            self.world.open("/api/events").leave()
        self.assertEqual(len(self.rows.asked), 1)
        stays = self.world.open("/api/events")
        rows = [{"id": 1}]
        self.rows.asked[0].callback(rows)
        self.assertEqual(told(stays)["metrics"], rows)
        stays.leave()

    def test_failed_read_does_not_affect_the_next_client(self):
        first = self.world.open("/api/events")
        self.rows.asked[0].errback(OSError("disk"))
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)
        second = self.world.open("/api/events")
        self.rows.asked[1].callback([])
        self.assertEqual(told(second)["metrics"], [])
        first.leave()
        second.leave()

    def test_state_is_rendered_once_for_clients_that_connect_together(self):
        clients = [self.world.open("/api/events?topics=inflight") for _ in range(5)]
        self.assertEqual(self.world.inflight.snapshots, 1)
        self.world.inflight.requests.append({"id": "9"})
        self.world.inflight.tell({"operation": "add", "id": "9"})
        clients.append(self.world.open("/api/events?topics=inflight"))
        self.assertEqual(told(clients[-1])["inflight"]["requests"], [{"id": "9"}])
        self.assertEqual(self.world.inflight.snapshots, 2)
        for client in clients:
            client.leave()

    def test_many_clients_get_events_gathered_and_each_event_once(self):
        clients = [self.world.open("/api/events?topics=inflight") for _ in range(MAX_IMMEDIATE_CLIENTS + 1)]
        for number in range(3):
            self.world.inflight.tell({"operation": "remove", "id": str(number)})
        late = self.world.open("/api/events?topics=inflight")
        seen = [len(client.answer().body) for client in clients]
        self.world.clock.advance(GATHER_TIME_PER_CLIENT * (MAX_IMMEDIATE_CLIENTS + 2))
        for client, before in zip(clients, seen, strict=True):
            got = events(client.answer().body[before:])
            self.assertEqual([data["id"] for _, data, _ in got], ["0", "1", "2"])
            self.assertEqual(len({number for _, _, number in got}), 3)
            client.leave()
        self.assertEqual(
            [data["operation"] for kind, data, _ in events(late.answer().body) if kind == "inflight"], ["snapshot"]
        )
        late.leave()

    def test_a_log_that_grew_unwatched_is_rendered_again(self):
        first = self.world.open("/api/events?topics=logs:alpha")
        self.world.book.model("alpha").write(b"one\n")
        second = self.world.open("/api/events?topics=logs:alpha")
        self.assertIn("one", told(second)["logData"]["data"])
        first.leave()
        second.leave()
        self.world.book.model("alpha").write(b"two\n")
        third = self.world.open("/api/events?topics=logs:alpha")
        self.assertIn("two", told(third)["logData"]["data"])
        third.leave()

    def test_a_feed_that_was_stopped_keeps_nothing_sent_later(self):
        written = []

        class Stream:
            def write(self, data):
                written.append(data)

        feed = Feed(Clock(), Stream(), frozenset(("a",)), lambda feed: [])
        feed.pauseProducing()
        feed.send(message("a", "x", 1, 1))
        feed.stopProducing()
        feed.send(message("a", "x", 2, 2))
        feed.resumeProducing()
        self.assertEqual([data for data in written if data], [])


class TopicTests(TestCase):
    def open(self, world, topics, **headers):
        return world.open(f"/api/events?topics={topics}", headers=list(headers.items()))

    def test_client_gets_the_topics_it_asked_for_and_each_event_has_an_id(self):
        world = World()
        client = self.open(world, "swaps,activity")
        self.assertEqual(kinds(client.answer().body), ["uiConfig", "profileChanged"])
        seen = len(client.answer().body)
        world.bus.publish(StateChanged("alpha", "stopped", "starting"))
        world.bus.publish(SwapBegan(3, "alpha", ("beta",), "group", 0.0))
        world.bus.publish(SwapEnded(3, "alpha", None, 0.0))
        told = events(client.answer().body[seen:])
        self.assertEqual([(kind, data["id"]) for kind, data, _ in told], [("swap", 3), ("swap", 3)])
        self.assertLess(told[0][2], told[1][2])
        client.leave()

    def test_failure_of_a_load_is_an_event_without_secrets_and_the_models_status_has_it(self):
        world = World(example_router(with_keys("sesame-key")))
        world.router.statuses["alpha"] = server_status("alpha", "stopped", last_error="exit 3: sesame-key")
        client = self.open(world, "swaps,models", **{"x-api-key": "sesame-key"})
        seen = len(client.answer().body)
        world.bus.publish(LoadFailed("alpha", "exit 3: sesame-key"))
        (_, rows, _), (kind, data, _) = events(client.answer().body[seen:])
        self.assertEqual({row["id"]: row.get("failed") for row in rows}["alpha"], "exit 3: ***")
        self.assertEqual((kind, data), ("loadFailed", {"model": "alpha", "error": "exit 3: ***"}))
        client.leave()

    def test_machine_is_sampled_only_for_clients_that_asked_for_it(self):
        world = World()
        plain, other = self.open(world, "models"), world.open("/api/events")
        self.assertEqual(world.machine.listeners, [])
        one, two = self.open(world, "performance"), self.open(world, "performance,models")
        [tell] = world.machine.listeners
        sample = {"enabled": True, "sys_stats": [1], "gpu_stats": []}
        tell(sample)
        self.assertEqual(events(one.answer().body)[-1][:2], ("performance", sample))
        for client in (plain, other):
            self.assertNotIn("performance", kinds(client.answer().body))
        one.leave()
        self.assertEqual(len(world.machine.listeners), 1)
        two.leave()
        self.assertEqual(world.machine.listeners, [])
        plain.leave()
        other.leave()

    def test_log_of_a_model_can_be_followed_and_an_unknown_name_creates_none(self):
        world = World()
        world.book.model("alpha").write(b"old\n")
        client = self.open(world, "logs:alpha,logs:ghost")
        told = events(client.answer().body)
        self.assertEqual([line for line, _ in told[0][1].pop("times")], [0])
        self.assertEqual(told[0][1], {"source": "alpha", "data": "old\n", "reset": True})
        self.assertNotIn("model:ghost", world.book.histories())
        world.book.model("alpha").write(b"new\n")
        world.clock.advance(1)
        self.assertEqual(events(client.answer().body)[-1][1], {"source": "alpha", "data": "new\n"})
        client.leave()
        self.assertEqual(world.book.model("alpha").readers, 0)

    def test_returning_client_gets_the_events_it_missed(self):
        world = World()
        stays, leaves = self.open(world, "swaps"), self.open(world, "swaps")
        world.bus.publish(SwapBegan(1, "alpha", (), "", 0.0))
        last = events(leaves.answer().body)[-1][2]
        leaves.leave()
        world.bus.publish(SwapBegan(2, "beta", (), "", 0.0))
        back = self.open(world, "swaps", **{"Last-Event-ID": str(last)})
        swaps = [data["id"] for kind, data, _ in events(back.answer().body) if kind == "swap"]
        self.assertEqual(swaps, [2])
        stays.leave()
        back.leave()

    def test_lines_of_a_log_that_was_not_followed_reach_a_returning_client(self):
        world = World()
        stays, leaves = self.open(world, "swaps"), self.open(world, "logs:alpha,swaps")
        world.bus.publish(SwapBegan(1, "alpha", (), "", 0.0))
        last = events(leaves.answer().body)[-1][2]
        leaves.leave()
        world.book.model("alpha").write(b"unseen\n")
        other = self.open(world, "logs:alpha")  # watched again, but not since then
        world.bus.publish(SwapBegan(2, "beta", (), "", 0.0))
        back = self.open(world, "logs:alpha,swaps", **{"Last-Event-ID": str(last)})
        told = [(kind, data) for kind, data, _ in events(back.answer().body) if kind in ("logData", "swap")]
        self.assertEqual([data["id"] for kind, data in told if kind == "swap"], [2])
        [log] = [data for kind, data in told if kind == "logData"]
        self.assertEqual((log["data"], log["reset"]), ("unseen\n", True))
        for client in (stays, other, back):
            client.leave()

    def test_log_that_was_followed_all_the_time_is_not_sent_again(self):
        world = World()
        stays, leaves = self.open(world, "logs:alpha"), self.open(world, "logs:alpha")
        world.book.model("alpha").write(b"one\n")
        world.clock.advance(1)
        last = events(leaves.answer().body)[-1][2]
        leaves.leave()
        world.book.model("alpha").write(b"two\n")
        back = self.open(world, "logs:alpha", **{"Last-Event-ID": str(last)})
        self.assertEqual(
            [data for kind, data, _ in events(back.answer().body) if kind == "logData"],
            [{"source": "alpha", "data": "two\n"}],
        )
        stays.leave()
        back.leave()

    def test_invalid_last_event_id_gets_the_whole_log(self):
        world = World()
        stays = self.open(world, "swaps")
        world.bus.publish(SwapBegan(1, "alpha", (), "", 0.0))
        client = self.open(world, "logs:alpha", **{"Last-Event-ID": "9" * 5000})
        self.assertEqual(kinds(client.answer().body)[0], "logData")
        stays.leave()
        client.leave()

    def test_reload_is_an_event_followed_by_the_current_state(self):
        world = World()
        client = self.open(world, "models")
        seen = len(client.answer().body)
        world.bus.publish(ConfigReloaded(added=("x",)))
        world.bus.publish(ConfigRejected("no"))
        answer = client.answer()
        self.assertEqual(
            kinds(answer.body[seen:]),
            ["configReloaded", "modelStatus", "uiConfig", "profileChanged", "configRejected"],
        )
        self.assertFalse(answer.ended)
        client.leave()
