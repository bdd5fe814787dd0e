import json

from attrs import define
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config import Config, Endpoint, Model, Peer, Secret, Selector
from llamaswap.proxy.peers import (
    AVOID_SECONDS,
    KEEP_SECONDS,
    LIST_TIMEOUT,
    MODEL_LIMIT,
    RETRY_INTERVAL,
    Health,
    PeerDirectory,
    PeerError,
    offered,
)
from tests.doubles import SentRequests


@define(eq=False)
class PeerRequests(SentRequests):
    """The requests to peers, answered by hand."""

    def models(self, *names):
        self.last.reply({"object": "list", "data": [{"id": name} for name in names]})


def auto(name="lab", **more):
    endpoint = more.pop("endpoint", Endpoint("http", "10.0.0.5", 7000, "/base"))
    return Peer(name, endpoint=endpoint, auto=True, **more)


class PeersTestCase(SynchronousTestCase):
    def setUp(self):
        self.clock, self.client = Clock(), PeerRequests()
        self.config = Config(peers={"lab": auto(api_key=Secret("pk"))})
        self.changes = 0
        self.peers = self.make()

    def make(self):
        return PeerDirectory(
            self.clock, lambda: 1000.0 + self.clock.seconds(), self.client, lambda: self.config, self.learn, self.change
        )

    def learn(self, peers):
        self.config = Config(models=self.config.models, selectors=self.config.selectors, peers=peers)

    def change(self):
        self.changes += 1

    @property
    def names(self):
        return self.config.peers["lab"].models

    def pass_time(self, seconds):
        self.clock.pump([RETRY_INTERVAL] * round(seconds / RETRY_INTERVAL))


class DiscoveryTests(PeersTestCase):
    def test_a_peer_is_asked_with_its_key_and_its_models_become_routable(self):
        self.peers.retune()
        question = self.client.last
        self.assertEqual(question.url, "http://10.0.0.5:7000/base/v1/models")
        self.assertEqual((question.headers["Authorization"], question.headers["x-api-key"]), ("Bearer pk", "pk"))
        self.client.models("owl", "org/hen", "owl")
        self.assertEqual(self.names, ("owl", "org/hen"))
        self.assertEqual(self.config.peer("lab/org/hen"), ("lab", "org/hen"))

    def test_a_peer_without_a_key_is_asked_without_one(self):
        self.config = Config(peers={"lab": auto()})
        self.peers.retune()
        self.assertEqual(self.client.last.headers, {"Accept": "application/json"})

    def test_peer_is_asked_again_every_minute(self):
        self.peers.retune()
        self.client.models("owl")
        self.pass_time(50)
        self.assertEqual(len(self.client.requests), 1)
        self.pass_time(10)
        self.assertEqual(len(self.client.requests), 2)
        self.client.models("hen")
        self.assertEqual(self.names, ("hen",))

    def test_a_silent_peer_is_asked_sooner(self):
        self.peers.retune()
        self.client.last.fail()
        self.pass_time(10)
        self.assertEqual(len(self.client.requests), 2)

    def test_peers_without_auto_models_need_no_timer(self):
        self.config = Config(peers={"den": Peer("den", models=("owl",))})
        self.peers.retune()
        self.assertEqual((self.client.requests, self.clock.getDelayedCalls()), ([], []))

    def test_the_timer_ends_when_a_reload_takes_the_last_one_away(self):
        self.peers.retune()
        self.config = Config()
        self.peers.retune()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.peers.health("lab"), Health())

    def test_stopping_ends_a_question_under_way(self):
        self.peers.retune()
        self.peers.stop()
        self.peers.stop()
        self.assertTrue(self.client.last.cancelled)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_names_outlive_a_short_silence_but_not_a_long_one(self):
        self.peers.retune()
        self.client.models("owl")
        for _ in range(round(KEEP_SECONDS / 60) - 1):
            self.pass_time(60)
            if not self.client.last.response.called:
                self.client.last.fail()
        self.assertEqual(self.names, ("owl",))
        for _ in range(10):
            self.pass_time(10)
            if not self.client.last.response.called:
                self.client.last.fail()
        self.assertEqual(self.names, ())

    def test_a_reload_keeps_what_was_learned_of_the_same_address_only(self):
        self.peers.retune()
        self.client.models("owl")
        fresh = Config(peers={"lab": auto()})
        self.assertEqual(self.peers.filled(fresh).peers["lab"].models, ("owl",))
        moved = Config(peers={"lab": auto(endpoint=Endpoint("http", "10.0.0.9", 7000))})
        self.assertEqual(self.peers.filled(moved).peers["lab"].models, ())

    def test_an_answer_that_comes_after_the_peer_moved_is_dropped(self):
        self.peers.retune()
        self.config = Config(peers={"lab": auto(endpoint=Endpoint("http", "10.0.0.9", 7000))})
        self.peers.heard("lab", None)
        self.client.models("owl")
        self.assertEqual(self.names, ())

    def test_our_own_names_are_not_taken(self):
        self.config = Config(
            models={"lab/owl": Model("lab/owl")},
            selectors={"lab/hen": Selector("lab/hen", strategy="pin", targets=("lab/owl",))},
            peers={"lab": auto()},
        )
        self.peers.retune()
        self.client.models("owl", "hen", "cat")
        self.assertEqual(self.names, ("cat",))

    def test_a_discovered_name_takes_no_bare_name_from_a_written_one(self):
        self.config = Config(peers={"lab": auto(), "den": Peer("den", models=("owl",))})
        self.peers.retune()
        self.client.models("owl", "hen")
        self.assertEqual(self.config.peer("owl"), ("den", "owl"))
        self.assertEqual(self.config.peer("hen"), ("lab", "hen"))
        self.assertEqual(self.config.peer("lab/owl"), ("lab", "owl"))


class HealthTests(PeersTestCase):
    def test_health_begins_unknown_and_follows_the_answers(self):
        self.assertEqual(self.peers.health("lab"), Health("unknown"))
        self.peers.retune()
        self.client.last.fail("Connection was refused")
        self.assertEqual(self.peers.health("lab"), Health("down", 1000.0, 1000.0, "Connection was refused"))
        self.pass_time(10)
        self.client.models("owl")
        self.assertEqual(self.peers.health("lab"), Health("up", 1010.0, 1010.0, None))
        self.assertEqual(self.changes, 2)

    def test_requests_change_a_peers_health(self):
        self.peers.heard("lab", "connection refused")
        self.clock.advance(5)
        self.peers.heard("lab", "connection refused")
        self.assertEqual(self.peers.health("lab"), Health("down", 1000.0, 1005.0, "connection refused"))
        self.peers.heard("lab", None)
        self.assertEqual(self.peers.health("lab").state, "up")
        self.assertEqual(self.changes, 2)

    def test_a_peer_that_did_not_answer_is_avoided_for_a_while(self):
        self.assertFalse(self.peers.avoided("lab"))
        self.peers.heard("lab", "no route to host")
        self.assertTrue(self.peers.avoided("lab"))
        self.clock.advance(AVOID_SECONDS)
        self.assertFalse(self.peers.avoided("lab"))
        self.peers.heard("lab", "no route to host")
        self.peers.heard("lab", None)
        self.assertFalse(self.peers.avoided("lab"))

    def test_unknown_peer_is_not_remembered(self):
        self.peers.heard("ghost", "x")
        self.assertEqual(self.peers.health("ghost"), Health())

    def assertDown(self, *words):
        health = self.peers.health("lab")
        self.assertEqual(health.state, "down")
        for word in words:
            self.assertIn(word, health.error)

    def test_a_status_other_than_200_is_no_list(self):
        self.peers.retune()
        self.client.last.reply({}, status=401)
        self.assertDown("401")

    def test_a_peer_has_ten_seconds_for_its_list(self):
        self.peers.retune()
        self.assertEqual(self.client.last.timeout, LIST_TIMEOUT)


class OfferedTests(SynchronousTestCase):
    def test_nonsense_is_no_list(self):
        for body in (b"", b"<html>", b"[]", b"{}", b'{"data": {}}', b"[" * 100_000, b'{"data": null}'):
            self.assertRaises(PeerError, offered, body)

    def test_only_named_records_count(self):
        self.assertEqual(offered(b'{"data": [1, {}, {"id": 5}, {"id": " "}, {"id": "a"}]}'), ("a",))

    def test_models_that_a_peer_gets_from_its_own_peers_are_left_out(self):
        """Two that ask each other would otherwise offer a/b/a/b/... in the end."""
        record = {"id": "us/owl", "meta": {"llamaswap": {"type": "peer", "peerID": "us"}}}
        body = json.dumps({"data": [record, {"id": "hen", "meta": {"llamaswap": {"type": "model"}}}]}).encode()
        self.assertEqual(offered(body), ("hen",))

    def test_the_number_of_names_is_bounded(self):
        body = json.dumps({"data": [{"id": str(number)} for number in range(MODEL_LIMIT + 5)]}).encode()
        self.assertEqual(len(offered(body)), MODEL_LIMIT)
