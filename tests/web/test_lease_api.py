"""/api/leases: who gets memory, keeps it and gives it back, over a router on a clock."""

import json

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config import ApiKey, Secret
from llamaswap.config.schema.memory import MemorySettings
from llamaswap.web import app
from llamaswap.web.auth import Authenticator, HostCheck
from llamaswap.web.lease_api import LeaseEndpoints
from tests.routing.test_memory_leases import Desk
from tests.web.doubles import Client


class Site:
    """The endpoints of leases alone."""

    def __init__(self, **options):
        self.desk = Desk(**options)
        router = self.desk.router
        keys = Authenticator(lambda: router.config.api_keys)
        hosts = HostCheck(frozenset({"here"}), lambda: ())
        endpoints = LeaseEndpoints(self.desk.leases, router, self.desk.clock)
        admin = app.Admin([endpoints], keys, hosts, lambda: router.config.security.cors)
        self.site = app.AdminSite(admin, self.desk.clock)
        self.site.startFactory = self.site.stopFactory = lambda: None

    def open(self, method, path="", headers=(), **body):
        client = Client(self.site, f"/api/leases{path}", method, headers, json.dumps(body).encode() if body else b"")
        self.desk.here.settle()
        return client

    def ask(self, method, path="", headers=(), **body):
        return self.open(method, path, headers, **body).answer()

    def configure(self, **changes):
        self.desk.router.config = evolve(self.desk.router.config, **changes)


class LeaseApiTests(SynchronousTestCase):
    def test_lease_is_taken_shown_renewed_and_ended(self):
        site = Site()
        taken = site.ask("POST", vram_mib=20480, gpus=2, ram_mib=100, name="my train", pid=77, seconds=30)
        self.assertEqual((taken.status, taken.headers["location"]), (201, "/api/leases/my-train-1"))
        self.assertEqual(
            taken.json,
            {
                "id": "my-train-1",
                "name": "my train",
                "state": "held",
                "gpus": [0, 1],
                "mib": {"ram": 100, "gpu0": 10240, "gpu1": 10240},
                "seconds_left": 30.0,
                "pid": 77,
            },
        )
        site.desk.clock.advance(20.0)
        self.assertEqual(site.ask("GET").json["leases"][0]["seconds_left"], 10.0)
        for method in ("PATCH", "PUT"):
            self.assertEqual(site.ask(method, "/my-train-1", seconds=45, pid=78).json["seconds_left"], 45.0)
        self.assertEqual(site.ask("GET").json["leases"][0]["pid"], 78)
        self.assertEqual(site.ask("DELETE", "/my-train-1").status, 204)
        self.assertEqual(site.ask("GET").json, {"leases": []})

    def test_ended_lease_is_not_found(self):
        site = Site()
        site.ask("POST", ram_mib=100, seconds=5)
        site.desk.clock.advance(5.0)
        for method in ("PATCH", "DELETE"):
            self.assertEqual(site.ask(method, "/lease-1", **({"seconds": 5} if method == "PATCH" else {})).status, 404)

    def test_waiting_lease_is_shown_with_its_reason(self):
        site = Site(gpus=1)
        serving = site.desk.here.lease("a")
        waiting = site.open("POST", vram_mib=20480)
        self.assertEqual(waiting.received, b"")
        [shown] = site.ask("GET").json["leases"]
        self.assertEqual((shown["state"], shown["reason"]), ("waiting", "waiting for a to finish"))
        self.assertEqual(site.ask("PATCH", "/lease-1", seconds=5).status, 404)
        serving.release()
        site.desk.here.settle()
        self.assertEqual(waiting.answer().status, 201)

    def test_client_that_leaves_does_not_wait_any_more(self):
        site = Site(gpus=1)
        site.desk.here.lease("a")
        site.open("POST", vram_mib=20480).leave()
        self.assertEqual((site.ask("GET").json, site.desk.router.queue()), ({"leases": []}, []))

    def test_refusals_have_a_status_and_a_reason(self):
        site = Site(gpus=1)
        site.desk.here.lease("a")
        refused = site.ask("POST", vram_mib=20480, wait=0)
        self.assertEqual((refused.status, refused.headers["retry-after"]), (503, "5"))
        self.assertIn("waiting for a to finish", refused.text)
        larger = site.ask("POST", vram_mib=30000)
        self.assertEqual(larger.status, 507)
        self.assertIn("does not fit this machine", larger.text)

    def test_memory_is_not_leased_if_memory_does_not_decide(self):
        site = Site()
        site.configure(routing=evolve(site.desk.router.config.routing, memory=MemorySettings("advise")))
        refused = site.ask("POST", ram_mib=1)
        self.assertEqual(refused.status, 409)
        self.assertIn("llamaswap memory enable", refused.text)

    def test_key_is_needed(self):
        site = Site()
        site.configure(api_keys=(ApiKey(Secret("sesame")),))
        for method in ("GET", "POST"):
            self.assertEqual(site.ask(method, **({"ram_mib": 1} if method == "POST" else {})).status, 401)
        self.assertEqual(site.ask("POST", headers=[("Authorization", "Bearer sesame")], ram_mib=1).status, 201)

    def test_unusable_bodies_are_refused(self):
        site = Site()
        for body, message in (
            ({"name": "x"}, "must be more than 0"),
            ({"ram_mib": -1}, "ram_mib must be a whole number"),
            ({"vram_mib": 1.5}, "vram_mib must be a whole number"),
            ({"ram_mib": True}, "ram_mib must be a whole number"),
            ({"vram_mib": 1, "gpus": 65}, "gpus must be a whole number from 0 to 64"),
            ({"ram_mib": 1, "seconds": 0}, "seconds must be from 1 to"),
            ({"ram_mib": 1, "seconds": "1m"}, "seconds must be a number"),
            ({"ram_mib": 1, "wait": -1}, "wait must be from 0"),
            ({"ram_mib": 1, "name": 5}, "name must be a text"),
        ):
            answer = site.ask("POST", **body)
            self.assertEqual(answer.status, 400, body)
            self.assertIn(message, answer.text)
        self.assertEqual(site.ask("POST").status, 400)
        self.assertEqual(site.desk.leases.all(), [])
