from attrs import evolve
from twisted.trial.unittest import TestCase

from llamaswap.config import ApiKey, Peer, Secret
from llamaswap.events import PeersChanged
from llamaswap.proxy.peers import Health
from llamaswap.web.listing import status_rows
from tests.web.doubles import FakePeers, World, example_config, example_router


class PeerTests(TestCase):
    def world(self, **known):
        return World(example_router(), peers=FakePeers(known))

    def test_each_peer_has_its_health(self):
        world = self.world(lab=Health("down", 1700000000.0, 1700000060.0, "refused"))
        den, lab = world.ask("/api/peers").json["peers"]
        nothing = {"state": "unknown", "since": None, "checked": None, "error": None}
        nothing["aliases"] = {}
        expected = {"id": "den", "proxy": "http://10.0.0.6:7000", "auto": False, "models": ["delta", "zeta"], **nothing}
        self.assertEqual(den, expected)
        self.assertEqual((lab["id"], lab["state"], lab["error"]), ("lab", "down", "refused"))
        self.assertRegex(lab["since"], r"^2023-11-1\dT\d\d:\d\d:\d\d(Z|[+-]\d\d:\d\d)$")

    def test_a_key_in_an_address_is_not_shown(self):
        peer = Peer("lab", proxy="http://u:sesame@10.0.0.5", api_key=Secret("sesame"), models=("x",))
        world = World(example_router(example_config(peers={"lab": peer})))
        self.assertNotIn(b"sesame", world.ask("/api/peers").body)

    def test_peer_listing_needs_a_key(self):
        world = World(example_router(example_config(api_keys=(ApiKey(Secret("k-1")),))))
        self.assertEqual(world.ask("/api/peers").status, 401)

    def test_listing_has_a_peers_health_only_if_it_is_known(self):
        world = self.world(lab=Health("up", 1.0, 1.0))
        records = {record["id"]: record for record in world.ask("/v1/models").json["data"]}
        self.assertEqual(records["lab/delta"]["meta"]["llamaswap"], {"type": "peer", "peerID": "lab", "health": "up"})
        self.assertEqual(records["den/zeta"]["meta"]["llamaswap"], {"type": "peer", "peerID": "den"})

    def test_aliases_of_a_peer_are_listed_and_shown_with_its_models(self):
        peer = Peer("lab", proxy="http://10.0.0.5", models=("delta", "eta"), aliases={"quick": "delta"})
        world = World(example_router(example_config(peers={"lab": peer})))
        record = world.ask("/v1/models/quick").json
        self.assertEqual(record["name"], "lab: delta")
        expected = {"type": "peer", "peerID": "lab", "modelID": "lab/delta"}
        self.assertEqual(record["meta"]["llamaswap"], expected)
        self.assertIn("quick", [each["id"] for each in world.ask("/v1/models").json["data"]])
        self.assertEqual(world.ask("/api/peers").json["peers"][0]["aliases"], {"quick": "delta"})
        rows = {row["id"]: row.get("aliases") for row in status_rows(world.router, world.peers)}
        self.assertEqual((rows["lab/delta"], rows["lab/eta"]), (["quick"], None))

    def test_change_of_a_peers_health_is_an_event(self):
        world = self.world(lab=Health("up", 1.0, 1.0))
        client = world.open("/api/events?topics=models")
        before = client.received
        world.bus.publish(PeersChanged())
        told = client.received[len(before) :]
        self.assertIn(b'\\"peerID\\":\\"lab\\",\\"peerHealth\\":\\"up\\"', told)
        world.peers.known["lab"] = evolve(world.peers.known["lab"], state="down")
        client.leave()
