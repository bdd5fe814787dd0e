import json

from twisted.internet.defer import succeed
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from llamaswap.config import ConfigText, load
from llamaswap.memory.spread import Estimate
from llamaswap.scheduling.memory import GpuShare, MemoryNeed
from llamaswap.web.errors import HttpError
from llamaswap.web.hub_api import MAX_DOWNLOADS
from llamaswap.web.ollama_models import CONCURRENT_PULLS, PulledFiles
from tests.web.doubles import FakeFiles, World, example_router, with_keys

SNAPSHOT = "/hub/models--org--tiny/snapshots/1/tiny-Q4_0.gguf"


def world(**more):
    return World(**{"files": FakeFiles(editable=True), **more})


def post(here, path, body, method="POST"):
    return here.ask(path, method, [("content-type", "application/json")], json.dumps(body).encode())


def begin(here, name="org/tiny:Q4_0"):
    return post(here, "/api/hub/downloads", {"name": name})


class SearchTests(TestCase):
    def test_search_asks_for_gguf_files_and_lists_repositories(self):
        asked = []
        row = {"id": "org/tiny", "downloads": 7, "likes": 2, "lastModified": "2026-01-01", "gated": "manual"}
        here = world(hub=lambda path: asked.append(path) or [row, "no object"])
        [found] = here.ask("/api/hub/models?q=tiny+llama").json["models"]
        self.assertEqual((found["repository"], found["downloads"], found["gated"]), ("org/tiny", 7, True))
        self.assertIn("search=tiny+llama&filter=gguf&", asked[0])

    def test_hub_that_cannot_be_reached_is_a_bad_gateway(self):
        def hub(path):
            raise OSError("no route to host")

        answer = world(hub=hub).ask("/api/hub/models?q=x")
        self.assertEqual(answer.status, 502)
        self.assertIn("no route to host", answer.json["error"]["message"])

    def test_quants_are_listed_with_the_size_of_their_shards_and_the_vision_part(self):
        names = {"big-Q8_0-00001-of-00002.gguf": 40, "big-Q8_0-00002-of-00002.gguf": 30, "big-Q4_K_M.gguf": 35}
        names |= {"mmproj-F16.gguf": 5, "mmproj-F32.gguf": 9, "README.md": 1}
        here = world(hub=lambda path: {"siblings": [{"rfilename": name, "size": size} for name, size in names.items()]})
        quants = here.ask("/api/hub/models/org/big").json["quants"]
        self.assertEqual(
            [(one["quant"], one["bytes"], len(one["files"])) for one in quants], [("Q4_K_M", 40, 1), ("Q8_0", 75, 2)]
        )
        self.assertEqual(here.ask("/api/hub/models/nonsense").status, 400)

    def test_nothing_is_served_unless_the_operator_allows_edits(self):
        here = world(files=FakeFiles(editable=False))
        self.assertEqual(here.ask("/api/hub/models?q=x").status, 403)
        self.assertEqual(here.ask("/api/hub/models/org/tiny").status, 403)
        self.assertEqual(begin(here).status, 403)
        self.assertEqual(post(here, "/api/memory/estimate", {"cmd": "x"}).status, 403)
        self.assertEqual(begin(world(router=example_router(with_keys("k")))).status, 401)


class DownloadTests(TestCase):
    def setUp(self):
        self.here = world()

    def newest(self):
        return self.here.ask("/api/hub/downloads").json["downloads"][0]

    def test_download_shows_its_progress_and_the_entry_of_its_model(self):
        self.assertEqual(begin(self.here).status, 202)
        [(name, progress, work)] = self.here.puller.pulled
        self.assertEqual(name, "org/tiny:Q4_0")
        progress({"file": "tiny-Q4_0.gguf", "digest": "0", "total": 10, "completed": 5})
        running = self.newest()
        self.assertEqual((running["state"], running["completed"], running["total"]), ("running", 5, 10))
        work.callback(PulledFiles("org/tiny", ["tiny-Q4_0.gguf"], [SNAPSHOT]))
        done = self.newest()
        self.assertEqual((done["state"], done["models"][0]["name"]), ("done", "tiny-q4_0"))
        config = load([ConfigText("x", "models:\n" + done["models"][0]["yaml"])], {}).config
        self.assertIn(f"-m {SNAPSHOT}", config.models["tiny-q4_0"].cmd)

    def test_failed_download_says_why(self):
        begin(self.here)
        self.here.puller.pulled[0][2].errback(Failure(HttpError(502, "the hub is not reachable")))
        failed = self.newest()
        self.assertEqual((failed["state"], failed["error"]), ("failed", "the hub is not reachable"))

    def test_download_is_cancelled_by_request_and_at_the_end_of_the_service(self):
        begin(self.here)
        self.assertEqual(self.here.ask("/api/hub/downloads/1", "DELETE").json["state"], "cancelled")
        self.assertEqual(self.here.ask("/api/hub/downloads/9", "DELETE").status, 404)
        begin(self.here)
        self.here.downloads.close()
        self.assertEqual((self.newest()["state"], self.here.puller.cancelled), ("cancelled", 2))

    def test_third_download_at_a_time_is_refused(self):
        for _ in range(CONCURRENT_PULLS):
            self.assertEqual(begin(self.here).status, 202)
        self.assertEqual(begin(self.here).status, 429)

    def test_only_the_last_downloads_can_be_read(self):
        for _ in range(MAX_DOWNLOADS + 3):
            begin(self.here)
            self.here.puller.pulled[-1][2].callback(PulledFiles("org/tiny", [], []))
        self.assertEqual(len(self.here.ask("/api/hub/downloads").json["downloads"]), MAX_DOWNLOADS)

    def test_name_that_is_no_repository_is_refused(self):
        for name in ("llama3", "--help", "a/b c", "../../x", 7):
            self.assertEqual(begin(self.here, name).status, 400)
        self.assertEqual(self.here.puller.pulled, [])


class EstimateTests(TestCase):
    def test_estimate_names_the_devices_and_how_it_is_known(self):
        need = MemoryNeed(ram=100, options=((GpuShare(2000, "gpu0"),),))
        here = world(estimate=lambda command: succeed(Estimate(need, "the file's header")))
        answer = post(here, "/api/memory/estimate", {"cmd": "llama-server -m x.gguf"}).json
        self.assertEqual(answer["needs"], [{"device": "gpu0", "mib": 2000}, {"device": "ram", "mib": 100}])
        self.assertEqual((answer["known"], answer["why"]), (True, "the file's header"))

    def test_unknown_need_is_said_so(self):
        self.assertFalse(post(world(), "/api/memory/estimate", {"cmd": "x"}).json["known"])
        self.assertEqual(post(world(), "/api/memory/estimate", {}).status, 400)
