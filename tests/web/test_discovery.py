from pathlib import PurePosixPath

from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from llamaswap.config import ConfigText, Endpoint, Model, Peer, load
from llamaswap.discover.config_writer import FoundModel, FoundServer, ScanResult
from llamaswap.web.discovery import DISK_TIMEOUT, MAX_MODELS, RESULT_LIFETIME, SEARCH_TIME
from tests.web.doubles import FakeFiles, World, at_once, example_config, example_router, with_keys


def model(name, path="/m/x.gguf", **more):
    return FoundModel(name, ("/bin/llama-server", "-m", path), files=(PurePosixPath(path),), **more)


FOUND = ScanResult(
    (model("new", bytes=7), model("al", "/m/used.gguf")),
    (FoundServer("vllm", "http://127.0.0.1:8000", ("m",)), FoundServer("lab", "http://127.0.0.1:5001")),
    {"vllm": "/bin/vllm", "docker": "/bin/docker"},
)


class DiscoveryTests(TestCase):
    def world(self, found=FOUND, editable=True, run=at_once, router=None):
        self.asked = []

        def survey(ports, enough):
            self.asked.append((ports, enough))
            return found

        files = FakeFiles(editable=editable)
        return World(router or example_router(), files=files, survey=survey, surveyor=run)

    def test_every_discovered_item_has_yaml_that_loads(self):
        told = self.world().ask("/api/discover").json
        text = "models:\n" + "".join(one["yaml"] for one in told["models"] + told["engines"])
        text += "peers:\n" + "".join(one["yaml"] for one in told["servers"])
        config = load([ConfigText("x", text)], {}).config
        self.assertEqual(config.models["new"].cmd.split()[0], "/bin/llama-server")
        self.assertEqual(config.peers["vllm"].models, ("m",))
        self.assertTrue(told["complete"])
        self.assertEqual((told["models"][0]["bytes"], told["models"][0]["section"]), (7, "models"))

    def test_configured_name_is_not_offered_again(self):
        told = self.world().ask("/api/discover").json
        self.assertEqual([one["name"] for one in told["models"]], ["new", "al-2"])
        self.assertEqual([one["name"] for one in told["servers"]], ["vllm", "lab-2"])

    def test_configured_item_names_its_configuration(self):
        models = {"mine": Model("mine", cmd="serve -m '/m/used.gguf'")}
        peers = {"far": Peer("far", proxy="http://localhost:8000/")}
        world = self.world(router=example_router(example_config(models=models, peers=peers)))
        told = world.ask("/api/discover").json
        self.assertEqual([one["configured_as"] for one in told["models"]], [None, "mine"])
        self.assertEqual([one["configured_as"] for one in told["servers"]], ["far", None])

    def test_ports_of_this_server_are_not_searched(self):
        models = {"mine": Model("mine", endpoint=Endpoint("http", "localhost", 8001))}
        self.world(router=example_router(example_config(models=models))).ask("/api/discover")
        self.assertEqual(self.asked[0][0], {8080, 8001})

    def test_discovery_is_refused_unless_the_operator_allows_edits(self):
        world = self.world(editable=False)
        self.assertEqual(world.ask("/api/discover").status, 403)
        world = self.world(router=example_router(with_keys("k")))
        self.assertEqual(world.ask("/api/discover").status, 401)
        self.assertEqual(self.asked, [])

    def test_long_list_of_models_is_cut_and_marked_incomplete(self):
        told = self.world(ScanResult(tuple(model(f"m{n}") for n in range(MAX_MODELS + 9)))).ask("/api/discover").json
        self.assertEqual((len(told["models"]), told["complete"]), (MAX_MODELS, False))

    def test_recent_result_serves_the_next_request(self):
        world = self.world()
        for _ in range(3):
            world.ask("/api/discover")
        self.assertEqual(len(self.asked), 1)
        world.clock.advance(RESULT_LIFETIME)
        world.ask("/api/discover")
        self.assertEqual(len(self.asked), 2)

    def test_a_search_ends_after_its_time(self):
        world = self.world()
        world.ask("/api/discover")
        enough = self.asked[0][1]
        self.assertFalse(enough())
        world.clock.advance(SEARCH_TIME + 0.1)
        self.assertTrue(enough())

    def test_clients_during_a_search_share_it_and_a_leaving_one_does_not_end_it(self):
        works = []

        def slowly(work):
            works.append((work, Deferred()))
            return works[-1][1]

        world = self.world(run=slowly)
        one, two = world.open("/api/discover"), world.open("/api/discover")
        one.leave()
        self.assertEqual(len(works), 1)
        works[0][1].callback(FOUND)
        self.assertEqual(two.answer().status, 200)

    def test_disk_that_hangs_is_an_error_and_is_searched_once(self):
        begun = []

        def never(work):
            begun.append(work)
            return Deferred()

        world = self.world(run=never)
        client = world.open("/api/discover")
        world.clock.advance(DISK_TIMEOUT)
        self.assertEqual(client.answer().status, 503)
        again = world.open("/api/discover")
        self.assertEqual((again.answer().status, len(begun)), (503, 1))  # at once: nothing is added to the waiting ones

    def test_failed_search_is_an_error(self):
        def broken(work):
            return at_once(lambda: 1 / 0)

        self.assertEqual(self.world(run=broken).ask("/api/discover").status, 500)
        logged = [failure.type.__name__ for failure in self.flushLoggedErrors()]
        self.assertIn("ZeroDivisionError", logged)
