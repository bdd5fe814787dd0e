"""The HTTP API as clients use it: both entrances, real servers, and the configuration of the test vectors."""

import base64
import gzip
import http.client
import json
import signal
import socket
import threading
import time
from urllib.parse import urlsplit

from twisted.trial.unittest import SynchronousTestCase

from tests.live.product import Product, wait_for, wait_for_serving
from tests.live.test_peers import Engine
from tests.live.test_service import config

JSON = {"Content-Type": "application/json"}
UNKNOWN, UNNAMED = "no router for requested model", "no model id could be identified"


def baseline(peer):
    """The vectors' configuration, on stand-in engines; everything may run side by side."""
    text = json.loads(
        config(
            **{
                "alpha": {"name": "Alpha", "aliases": ["al"], "sendLoadingState": True},
                "beta": {
                    "useModelName": "beta-up",
                    "filters": {
                        "stripParams": "temperature, model, stream",
                        "setParams": {"top_k": 7, "model": "zzz"},
                        "setParamsByID": {"beta:hot": {"temperature": 1.5, "top_k": 9}},
                    },
                },
                "org": {},
                "org/gamma": {"unlisted": True},
                "whisper": {"useModelName": "whisper-v3"},
                "42": {},
                "broken": {"flags": "--exit-at-once"},
                "asleep": {},
            }
        )
    )
    every = sorted(text["models"])
    text["groups"] = {"all": {"swap": False, "members": every}}
    text["peers"] = {
        "lab": {
            "proxy": f"http://127.0.0.1:{peer.port}/base",
            "apiKey": "pk-lab",
            "models": ["delta", "org2/eps"],
            "filters": {"stripParams": "seed"},
        },
        "den": {"proxy": f"http://127.0.0.1:{peer.port}", "models": ["delta", "zeta"]},
    }
    text["selectors"] = {"pick": {"strategy": "pin", "targets": ["beta:hot", "lab/delta"]}}
    text["profiles"] = {"work": {"pins": {"chat": "alpha", "org": None, "pool/x": "org/gamma"}}}
    return text


class SurfaceTestCase(SynchronousTestCase):
    timeout = 60
    more = {}

    def setUp(self):
        self.peer = Engine("--name", "far").__enter__()
        self.addCleanup(self.peer.__exit__)
        self.product = Product(json.dumps({**baseline(self.peer), **self.more})).__enter__()
        self.addCleanup(self.product.__exit__)

    def ask(self, method, path, body=b"", headers=None):
        """(status, lower-case headers, bytes), nothing added and nothing followed."""
        parts = urlsplit(self.product.url)
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=20)
        try:
            connection.putrequest(method, path, skip_accept_encoding=True)
            for name, value in (headers or {}).items():
                connection.putheader(name, value)
            if body:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def post(self, path, body, **headers):
        return self.ask("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode(), JSON | headers)

    def echoed(self, *request, **more):
        """What the server got, as it tells it."""
        status, _, data = self.ask(*request, **more) if request[0].isupper() else self.post(*request, **more)
        self.assertEqual(status, 200, data)
        found = json.loads(data)
        found["headers"] = {name.lower(): value for name, value in found["headers"]}
        return found

    def refused(self, answer, status, message):
        self.assertEqual(answer[0], status, answer)
        self.assertEqual(json.loads(answer[2])["error"]["message"], message)


class AllowedOriginsTests(SurfaceTestCase):
    more = {"security": {"cors": {"allowOrigins": ["https://chat.example"]}}}

    def test_only_a_page_of_a_listed_origin_reads_answers_and_errors_of_models(self):
        for model, status in (("alpha", 200), ("lab/delta", 200), ("ghost", 404)):
            for origin, allowed in (("https://chat.example", "https://chat.example"), ("https://evil.example", None)):
                got, headers, _ = self.post("/v1/rerank", {"model": model}, Origin=origin)
                self.assertEqual((got, headers.get("access-control-allow-origin")), (status, allowed), model)
                self.assertIn("Origin", headers["vary"])
        preflight = lambda origin: self.ask("OPTIONS", "/v1/rerank", headers={"Origin": origin})[0]
        self.assertEqual((preflight("https://chat.example"), preflight("https://evil.example")), (204, 403))


class RoutingTests(SurfaceTestCase):
    def test_fixed_answers(self):
        """http T001, T003, T004, T005, T007, T015, T016"""
        for path in ("/health", "/wol-health"):
            status, headers, body = self.ask("GET", path)
            self.assertEqual((status, headers["content-type"], body), (200, "text/plain; charset=utf-8", b"OK"))
        status, headers, body = self.ask("POST", "/health")
        self.assertEqual((status, headers["allow"], body), (405, "GET, HEAD", b"Method Not Allowed\n"))
        status, headers, body = self.ask("GET", "/nope", headers={"Accept": "application/json"})
        self.assertEqual((status, body), (404, b"404 page not found\n"))
        self.assertEqual(headers["content-type"], "text/plain; charset=utf-8")
        self.assertNotIn("server", headers)
        for path, location in (("/", "/ui"), ("/upstream", "/ui/models")):
            status, headers, _ = self.ask("GET", path)
            self.assertEqual((status, headers["location"]), (302, location))
        status, headers, _ = self.ask("DELETE", "/v1/audio/voices")
        self.assertEqual((status, headers["allow"]), (405, "GET, HEAD, POST"))
        self.assertEqual(self.ask("POST", "/unload")[0], 405)
        self.assertEqual(self.ask("GET", "/v1/chat/completions")[0], 405)
        for path in ("/v1/models/ghost", "/api/models", "/v1", "/api"):
            self.assertEqual(self.ask("GET", path)[0], 404, path)

    def test_a_head_is_a_get_without_its_body(self):
        for path in ("/health", "/v1/models", "/running", "/metrics", "/api/version"):
            status, _, body = self.ask("HEAD", path)
            self.assertEqual((status, body), (200, b""), path)

    def test_a_preflight_is_answered_everywhere_and_starts_nothing(self):
        """http T009, T011, T012, T013, T017"""
        for path in ("/does/not/exist", "/upstream/asleep/x", "/v1/chat/completions"):
            status, headers, body = self.ask(
                "OPTIONS", path, headers={"Access-Control-Request-Headers": "X-A, bad header, X-B"}
            )
            self.assertEqual((status, body, headers["access-control-allow-origin"]), (204, b"", "*"))
            self.assertEqual(headers["access-control-allow-headers"], "X-A, X-B")
            self.assertEqual(headers["access-control-max-age"], "86400")
        headers = self.ask("OPTIONS", "/x", headers={"Access-Control-Request-Headers": "b@d"})[1]
        self.assertEqual(headers["access-control-allow-headers"], "")
        self.assertNotIn("asleep", self.product.running())
        for model in ("alpha", "ghost"):
            _, headers, _ = self.post("/v1/rerank", {"model": model}, Origin="http://a.b")
            self.assertEqual(headers["access-control-allow-origin"], "*")

    def test_upstream_path_without_a_model_gets_404(self):
        """http T008, T065"""
        for path in ("/upstream/", "/upstream/pick/v1/chat/completions", "/upstream/delta/x"):
            self.refused(self.post(path, {}), 404, "model not found")


class NamingTests(SurfaceTestCase):
    def test_model_name_is_found_in_body_form_and_query(self):
        """http T035, T040, T041, T043, T045, T047, T048, T052, T053, T055"""
        self.assertEqual(json.loads(self.echoed("/v1/rerank", {"model": "al"})["body"]), {"model": "al"})
        for path in ("/rerank", "/reranking", "/v1/rerank", "/v1/reranking", "/infill", "/v1/audio/speech"):
            self.assertEqual(self.echoed(path, {"model": "alpha"})["path"], path)
        found = self.echoed("/v/rerank", {"model": "alpha"})
        self.assertEqual(found["path"], "/rerank")
        self.assertEqual(self.echoed("/audioapi/v1/tasks/run", {"model": "alpha"})["path"], "/v1/tasks/run")
        for path in ("/v1/audio/voices?model=alpha", "/props?model=al", "/sdapi/v1/loras?model=alpha&x=%2F"):
            self.assertEqual(self.echoed("GET", path)["path"], path)
        self.assertEqual(self.echoed("POST", "/v1/rerank", b'{"model":"alpha"}')["length"], 17)
        self.assertEqual(self.echoed("POST", "/v1/rerank?model=alpha")["path"], "/v1/rerank?model=alpha")
        self.assertEqual(self.echoed("/v1/rerank", {"model": 42})["body"], '{"model": 42}')
        both = self.echoed("/v1/rerank", b'{"model":"alpha","model":"org"}')
        self.assertEqual(both["body"], '{"model":"alpha","model":"org"}')
        charset = {"Content-Type": "application/json; charset=utf-8"}
        self.assertEqual(self.post("/v1/rerank", {"model": "alpha"}, **charset)[0], 200)

    def test_request_without_a_name_or_with_an_unknown_one_gets_404(self):
        """http T036, T037, T039, T044, T051"""
        for body in (b"{}", b'{"model":""}', b"not-json", b'[{"model":"alpha"}]'):
            answer = self.post("/v1/chat/completions", body)
            self.refused(answer, 404, UNNAMED)
            self.assertEqual(json.loads(answer[2])["error"]["code"], "not_found")
            self.assertEqual(json.loads(answer[2])["src"], "llama-swap")
        self.refused(self.ask("GET", "/v1/audio/voices"), 404, UNNAMED)
        self.refused(self.ask("GET", "/sdapi/v1/loras?model=ghost"), 404, UNKNOWN)
        form = {"Content-Type": "multipart/form-data"}
        self.refused(self.ask("POST", "/v1/audio/transcriptions", b"x", form), 404, UNNAMED)
        status, headers, body = self.post("/v1/chat/completions", {"model": "ghost"}, Accept="text/html")
        self.assertEqual((status, headers["content-type"]), (404, "text/html"))
        self.assertEqual(body.decode(), f"<html><body><h1>llama-swap</h1><p>{UNKNOWN}</p></body></html>")

    def test_bodies_reach_the_server_as_the_filters_say(self):
        """http T056, T057, T060, T061, T063"""
        sent = lambda path, body, **more: json.loads(self.echoed(path, body, **more)["body"])
        body = {"model": "beta", "temperature": 0.2, "stream": False, "x": 1}
        self.assertEqual(sent("/v1/rerank", body), {"model": "beta-up", "x": 1, "top_k": 7})
        hot = {"model": "beta-up", "top_k": 9, "temperature": 1.5}
        self.assertEqual(sent("/v1/rerank", {"model": "beta:hot", "temperature": 0.2}), hot)
        self.assertEqual(sent("/v1/rerank", {"model": "pick", "temperature": 0.1}), hot)
        odd = b'{ "model" :"alpha",  "n":9007199254740993 , "x" : 1.10 }'
        self.assertEqual(self.echoed("/v1/rerank", odd)["body"], odd.decode())
        far = self.echoed("/v1/rerank", {"model": "lab/delta", "seed": 1, "n": 2}, Authorization="Bearer mine")
        headers = far["headers"]
        self.assertEqual((far["path"], json.loads(far["body"])), ("/base/v1/rerank", {"model": "delta", "n": 2}))
        self.assertEqual((headers["authorization"], headers["x-api-key"]), ("Bearer pk-lab", "pk-lab"))
        self.assertEqual(headers["host"], f"127.0.0.1:{self.peer.port}")
        self.assertNotIn("x-forwarded-for", headers)
        far = self.echoed("/v1/rerank", b'{"model":"zeta"}', Authorization="Bearer mine")
        self.assertEqual((far["body"], far["path"]), ('{"model":"zeta"}', "/v1/rerank"))
        self.assertIn("Bearer mine", far["headers"].values())

    def test_an_upload_reaches_the_server_as_it_was_or_with_its_name_exchanged(self):
        """http T049"""
        parts = (
            b'--XX\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n'
            b"Content-Type: audio/wav\r\n\r\n"
            + b"0123"
            * 5000
            + b'\r\n--XX\r\nContent-Disposition: form-data; name="model"'
            b"\r\n\r\n%b\r\n--XX--\r\n"
        )
        form = {"Content-Type": "multipart/form-data; boundary=XX"}
        for name, sent in ((b"alpha", b"alpha"), (b"whisper", b"whisper-v3")):
            found = self.echoed("POST", "/v1/audio/transcriptions", parts % name, form)
            self.assertEqual(found["body"].encode(), parts % sent)

    def test_hop_headers_stay_here(self):
        """http T092, T093, T095"""
        headers = {
            "Connection": "close, X-Secret",
            "X-Secret": "1",
            "Keep-Alive": "5",
            "Te": "gzip",
            "Proxy-Authorization": "x",
            "X-Forwarded-For": "9.9.9.9",
            "Accept-Encoding": "gzip;q=1.0, br, Deflate",
            "X-Kept": "yes",
        }
        got = self.echoed("/v1/rerank", {"model": "alpha"}, **headers)["headers"]
        for name in ("x-secret", "keep-alive", "te", "proxy-authorization"):
            self.assertNotIn(name, got)
        self.assertEqual((got["x-forwarded-for"], got["x-kept"]), ("9.9.9.9, 127.0.0.1", "yes"))
        self.assertEqual(got["accept-encoding"], "gzip;q=1.0, Deflate")
        self.assertNotIn("user-agent", got)
        got = self.echoed("GET", "/v1/audio/voices?model=alpha", b"", {"Accept-Encoding": "br"})["headers"]
        self.assertIn("br", got.values())

    def test_a_servers_own_errors_pass(self):
        """http T097"""
        status, _, _ = self.ask("GET", "/upstream/alpha/status/404")
        self.assertEqual(status, 404)

    def test_a_start_that_fails_says_why(self):
        """http T091"""
        status, headers, body = self.post("/v1/chat/completions", {"model": "broken"})
        error = json.loads(body)["error"]
        self.assertEqual((status, error["type"]), (500, "server_error"), body)
        self.assertIn("unspecific error: upstream command exited prematurely", error["message"])
        self.assertEqual(headers["content-type"], "application/json")


class PassthroughTests(SurfaceTestCase):
    def test_paths_are_forwarded_raw(self):
        """http T112, T113, T115, T116, T117, T119"""
        for method, path, status, location in (
            ("GET", "/upstream/alpha", 301, "/upstream/alpha/"),
            ("POST", "/upstream/al?x=1", 308, "/upstream/al/?x=1"),
        ):
            found, headers, _ = self.ask(method, path)
            self.assertEqual((found, headers["location"]), (status, location))
        for path, got in (
            ("/upstream/org/gamma/x", "/x"),
            ("/upstream/org%2Fgamma/api/a%2Fb?p=1", "/api/a%2Fb?p=1"),
            ("/upstream/alpha/api/w%252Fx", "/api/w%252Fx"),
            ("/upstream/alpha/%C3%A4/", "/%C3%A4/"),
            ("/upstream/lab/delta/v1/x", "/base/v1/x"),
            ("/upstream/zeta/app.js", "/app.js"),
        ):
            self.assertEqual(self.echoed("GET", path)["path"], got)
        body = b'{"model":"beta","temperature":1}'
        self.assertEqual(self.echoed("/upstream/beta/v1/rerank", body)["body"], body.decode())
        answer = self.ask("GET", "/upstream/asleep/app.js")
        self.refused(answer, 409, "model asleep is not loaded; path matches upstream.ignorePaths")
        self.refused(self.ask("GET", "/comfyui/"), 404, "local model comfyui_auto not found")
        found, headers, _ = self.ask("GET", "/comfyui?t=1")
        self.assertEqual((found, headers["location"]), (301, "/comfyui/?t=1"))
        self.assertEqual(self.ask("POST", "/comfyui")[0], 308)

    def test_a_profile_leads_elsewhere(self):
        """http T068, T069, T071, T072, T073, T085"""
        choose = lambda body: self.ask("PUT", "/api/profiles/active", body)
        self.assertEqual(json.loads(choose(b'{"name":"work"}')[2]), {"active": "work"})
        try:
            self.assertEqual(json.loads(self.echoed("/v1/rerank", {"model": "chat"})["body"]), {"model": "alpha"})
            self.refused(self.post("/v1/rerank", {"model": "org"}), 404, UNNAMED)
            self.refused(self.ask("GET", "/upstream/org/x"), 404, "model not found")
            self.assertEqual(self.ask("GET", "/upstream/chat?q=1")[1]["location"], "/upstream/chat/?q=1")
            listed = [record["id"] for record in self.product.json("/v1/models")["data"]]
            self.assertIn("pool/x", listed)
            self.refused(choose(b'{"name":"nope"}'), 404, 'profile "nope" not found')
        finally:
            self.assertEqual(json.loads(choose(b'{"name":null}')[2]), {"active": None})

    def test_listings_and_unloads(self):
        """http T077, T080, T081, T087, T088, T089, T169"""
        records = {record["id"]: record for record in self.product.json("/v1/models")["data"]}
        wanted = "42 alpha asleep beta broken den/delta den/zeta lab/delta lab/org2/eps org pick whisper"
        self.assertEqual(list(records), wanted.split())
        self.assertEqual(records["lab/delta"]["name"], "lab: delta")
        self.assertEqual(records["pick"]["meta"]["llamaswap"]["targets"], ["beta:hot", "lab/delta"])
        self.echoed("/v1/rerank", {"model": "alpha"})
        self.echoed("/v1/rerank", {"model": "org/gamma"})
        self.assertEqual(self.ask("POST", "/api/models/unload/al")[2], b"OK")
        self.assertEqual(self.product.running().get("org/gamma"), "ready")
        self.assertNotIn("alpha", self.product.running())
        self.assertEqual(self.ask("POST", "/api/models/unload/org/gamma")[2], b"OK")
        for name in ("ghost", "zeta"):
            self.refused(self.ask("POST", f"/api/models/unload/{name}"), 404, "model not found")
        self.assertEqual(json.loads(self.ask("POST", "/api/models/unload")[2]), {"msg": "ok"})
        self.assertEqual(self.product.json("/running"), {"running": []})
        self.assertEqual((self.ask("GET", "/unload")[2], self.ask("POST", "/models/unload")[2]), (b"OK", b"OK"))
        self.assertEqual(self.ask("GET", "/log")[2][:100], self.ask("GET", "/logs")[2][:100])


class RecordTests(SurfaceTestCase):
    def rows(self, count):
        wait_for(lambda: self.product.json("/api/metrics/activity")["total"] >= count, 5, "the rows")
        return self.product.json("/api/metrics/activity")["data"]

    def test_requests_leave_their_rows_and_captures(self):
        """http T039, T053, T064, T119, T137, T139, T148"""
        page = self.product.json("/api/metrics/activity")
        self.assertEqual(page, {"data": [], "page": 1, "limit": 25, "total": 0, "total_pages": 0})
        self.post("/v1/chat/completions", {"model": "pick"}, Authorization="Bearer secret")
        self.post("/v/rerank", {"model": "alpha"})
        self.ask("GET", "/props?model=alpha")
        self.post("/v1/rerank", {})
        self.post("/upstream/beta/v1/rerank", {"model": "beta"})
        self.post("/upstream/beta/probe", {})
        self.post("/v1/chat/completions", {"model": "ghost"}, Accept="text/html")
        rows = self.rows(4)[::-1]
        self.assertEqual([row["model"] for row in rows], ["beta", "alpha", "beta", "ghost"])
        self.assertEqual([row["req_path"] for row in rows[1:3]], ["/rerank", "/v1/rerank"])
        self.assertEqual(rows[0]["metadata"], {"fifo_priority": "0", "selector": "pick"})
        self.assertEqual((rows[0]["tokens"]["input_tokens"], rows[0]["tokens"]["output_tokens"]), (3, 5))
        self.assertEqual((rows[3]["resp_status_code"], rows[3]["error_msg"]), (404, UNKNOWN))
        capture = self.product.json(f"/api/captures/{rows[0]['id']}")
        self.assertEqual(json.loads(base64.b64decode(capture["req_body"]))["model"], "beta-up")
        self.assertIn(b"choices", base64.b64decode(capture["resp_body"]))
        self.assertNotIn("secret", json.dumps(capture))
        flat = self.product.json("/api/metrics")
        self.assertEqual([row["model"] for row in flat], ["beta", "alpha", "beta"])

    def test_streams_for_cold_models_begin_with_a_text(self):
        """http T107, T108"""
        self.product.ask("/unload")
        _, headers, body = self.post("/v1/chat/completions", {"model": "alpha", "stream": True})
        self.assertEqual(headers["content-type"], "text/event-stream")
        first = 'data: {"choices":[{"delta":{"reasoning_content":"━━━━━"}}]}\n\n'
        events = [event for event in body.decode().split("\n\n") if event]
        texts = [json.loads(event[6:]) for event in events if event != "data: [DONE]"]
        self.assertEqual(json.loads(first[6:]), texts[0])
        shown = "".join((one["choices"] or [{}])[0].get("delta", {}).get("reasoning_content", "") for one in texts)
        self.assertIn("\nllama-swap loading model: alpha\n", shown)
        self.assertIn("Done! (", shown)
        self.assertTrue(body.endswith(b"data: [DONE]\n\n"))
        again = self.post("/v1/chat/completions", {"model": "alpha", "stream": True})[2]
        self.assertNotIn(b"reasoning_content", again)

    def test_pages_compress_and_answers_are_marked(self):
        status, headers, body = self.ask("GET", "/v1/models", headers={"Accept-Encoding": "gzip"})
        plain = gzip.decompress(body) if headers.get("content-encoding") == "gzip" else body
        self.assertEqual((status, json.loads(plain)["object"]), (200, "list"))


class GateTests(SurfaceTestCase):
    more = {"apiKeys": ["k-1", "k-2"]}

    def status(self, path="/running", **headers):
        return self.ask("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})[0]

    def test_keys(self):
        """http T019, T020, T021, T023, T024, T025, T027, T028, T029, T031, T032, T033"""
        basic = lambda text: "Basic " + base64.b64encode(text.encode()).decode()
        for right in (
            {"Authorization": "Bearer k-2"},
            {"x_api_key": "k-1"},
            {"Authorization": basic("anyone:k-1")},
            {"Authorization": "Basic %%%", "x_api_key": "k-1"},
            {"Authorization": basic("user:"), "x_api_key": "k-1"},
        ):
            self.assertEqual(self.status(**right), 200, right)
        for wrong in ({}, {"Authorization": "Bearer wrong", "x_api_key": "k-1"}, {"Authorization": "Bearer  k-1"}):
            self.assertEqual(self.status(**wrong), 401, wrong)
        self.assertEqual(self.status("/running?api_key=k-1"), 401)
        for path in ("/health", "/wol-health", "/", "/ui/"):
            self.assertNotEqual(self.status(path), 401)
        for path in ("/comfyui/", "/api/peers", "/metrics", "/logs", "/upstream/alpha/", "/api/events"):
            self.assertEqual(self.status(path), 401, path)
        status, headers, body = self.ask("GET", "/running", headers={"Accept": "text/plain"})
        self.assertEqual((status, headers["content-type"]), (401, "text/plain"))
        self.assertEqual(headers["www-authenticate"], 'Basic realm="llama-swap"')
        self.assertEqual(body, b"llama-swap: unauthorized: invalid or missing API key")
        self.assertEqual(self.post("/nope", {})[0], 404)
        self.assertEqual(self.post("/v1/chat/completions", {"model": "alpha"})[0], 401)

    def test_the_key_itself_goes_no_further(self):
        got = self.echoed("/v1/rerank", {"model": "alpha"}, Authorization="Bearer k-1", **{"X-Api-Key": "other"})
        self.assertNotIn("Bearer k-1", got["headers"].values())

    def test_a_request_cut_in_two_is_understood(self):
        parts = urlsplit(self.product.url)
        with socket.create_connection((parts.hostname, parts.port), 10) as sock:
            sock.sendall(b"GET /run")
            sock.sendall(b"ning HTTP/1.1\r\nHost: x\r\nx-api-")
            sock.sendall(b"key: k-1\r\n\r\n")
            self.assertIn(b"200 OK", sock.recv(65536))


class ExpectationTests(SurfaceTestCase):
    more = {"apiKeys": ["k"]}

    def first_line(self, target, *fields):
        """The first line that a client receives that has sent a head with an expectation, but no body."""
        parts = urlsplit(self.product.url)
        with socket.create_connection((parts.hostname, parts.port), 10) as sock:
            head = [f"POST {target} HTTP/1.1", "Host: x", "Expect: 100-continue", *fields, "", ""]
            sock.sendall("\r\n".join(head).encode())
            return sock.makefile("rb").readline().split(b" ", 2)[1]

    def test_request_that_will_be_refused_is_refused_before_its_body(self):
        json, key, length = "Content-Type: application/json", "X-Api-Key: k", "Content-Length: 9"
        form = "Content-Type: multipart/form-data; boundary=x"
        for expected, target, *fields in (
            (b"100", "/v1/chat/completions", json, key, length),
            (b"100", "/v9/invented", json, key, length),
            (b"401", "/v1/chat/completions", json, length),
            (b"413", "/v1/chat/completions", json, key, "Content-Length: 999999999"),
            (
                b"413",
                "/v1/audio/transcriptions",
                "Content-Type: application/x-www-form-urlencoded",
                key,
                "Content-Length: 9999999",
            ),
            (b"404", "/v1/audio/transcriptions?model=ghost", form, key, length),
            (b"100", "/upstream/alpha/x", key, length),
            (b"404", "/upstream/ghost/x", key, length),
            (b"401", "/upstream/alpha/x", length),
            (b"404", "/comfyui/x", key, length),
        ):
            self.assertEqual(self.first_line(target, *fields), expected, (target, fields))


class LimitTests(SurfaceTestCase):
    """Models that load slowly, hold websockets for nothing, or belong to ComfyUI."""

    more_models = {
        "slow": {"flags": "--ready-after 1.5", "concurrencyLimit": 1, "sendLoadingState": True},
        "sock": {"compat": {"ignoreWebsockets": True}},
        "comfyui_auto": {},
        "long": {"flags": "--tokens 500 --interval 0.02"},
    }

    def setUp(self):
        text = json.loads(config(**self.more_models))
        every = sorted(text["models"])
        self.more = {"models": text["models"], "groups": {"all": {"swap": False, "members": every}}}
        self.more |= {"selectors": {}, "profiles": {}, "performance": {"disabled": True}}
        super().setUp()

    def in_thread(self, *request):
        results = []

        def post():
            try:
                results.append(self.post(*request))
            except (OSError, http.client.HTTPException) as error:
                results.append(error)

        thread = threading.Thread(target=post)
        thread.start()
        self.addCleanup(thread.join, 20)
        return thread, results

    def test_a_full_model_refuses_at_once_and_in_json(self):
        """http T100; core V51"""
        body = {"model": "slow", "stream": True}
        thread, results = self.in_thread("/v1/chat/completions", body)
        wait_for(lambda: self.product.running() == {"slow": "starting"}, 5, "the load")
        status, headers, data = self.post("/v1/chat/completions", body, Accept="text/plain")
        self.assertEqual((status, headers["retry-after"], headers["content-type"]), (429, "1", "application/json"))
        wanted = {
            "message": "Too many requests",
            "type": "rate_limit_error",
            "param": None,
            "code": "concurrency_limit",
        }
        self.assertEqual(json.loads(data), {"src": "llama-swap", "error": wanted})
        thread.join(20)
        self.assertEqual(results[0][0], 200)
        self.assertTrue(results[0][2].endswith(b"data: [DONE]\n\n"))

    def test_an_ignored_websocket_and_the_pages_of_comfyui_start_nothing(self):
        """http T105, T120, T121"""
        upgrade = {"Connection": "keep-alive, UpGrAdE", "Upgrade": "WebSocket"}
        answer = self.ask("GET", "/upstream/sock/ws", headers=upgrade)
        self.refused(answer, 409, "model sock is not loaded; ignored websocket requests cannot start it")
        answer = self.ask("GET", "/comfyui/api/prompt")
        self.refused(answer, 409, "model comfyui_auto is not loaded; only /comfyui/ can start it")
        self.assertEqual(self.product.running(), {})
        self.assertEqual(self.echoed("GET", "/comfyui/?t=1")["path"], "/?t=1")
        self.assertEqual(self.echoed("GET", "/comfyui/api/u/a%2Fb.json")["path"], "/api/u/a%2Fb.json")

    def test_without_a_watch_on_the_machine_there_is_nothing_to_tell(self):
        """http T163"""
        status, _, body = self.ask("GET", "/api/performance")
        self.assertEqual((status, json.loads(body)), (503, {"enabled": False}))

    def test_logs_are_found_by_name(self):
        """http T159"""
        self.post("/v1/rerank", {"model": "sock"})
        for path, there in (("proxy", True), ("upstream", True), ("sock/extra", True), ("zeta", False), ("x", False)):
            parts = urlsplit(self.product.url)
            connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=10)
            connection.request("GET", f"/logs/stream/{path}")
            answer = connection.getresponse()
            self.assertEqual(answer.status, 200 if there else 400, path)
            if there:
                self.assertEqual(answer.getheader("X-Accel-Buffering"), "no")
                self.assertTrue(answer.read1(100))
            else:
                self.assertIn(b"invalid logger. Use 'proxy', 'upstream' or a model's ID", answer.read())
            connection.close()

    def test_an_unload_cuts_a_stream_so_that_its_client_sees_it(self):
        """core V101"""
        self.product.json("/api/models/load/long", b"", method="POST")
        wait_for(lambda: self.product.running() == {"long": "ready"}, 10, "the server")
        thread, results = self.in_thread("/v1/chat/completions", {"model": "long", "stream": True})
        wait_for_serving(self.product, "long")
        time.sleep(0.3)
        self.assertEqual(self.ask("POST", "/api/models/unload/long")[2], b"OK")
        thread.join(10)
        self.assertIsInstance(results[0], (OSError, http.client.HTTPException))  # the end was no end


class EventTests(SurfaceTestCase):
    """What /api/events tells while requests come and go."""

    def setUp(self):
        text = json.loads(config(long="--tokens 500 --interval 0.02", short=""))
        self.more = {"models": text["models"], "groups": {}, "selectors": {}, "profiles": {}}
        super().setUp()
        self.told, self.raw = [], []
        parts = urlsplit(self.product.url)
        self.connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
        self.connection.request("GET", "/api/events")
        self.answer = self.connection.getresponse()
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()
        self.addCleanup(self.reader.join, 10)
        # The reader ends when the product does.

    def read(self):
        try:
            for line in self.answer:
                self.raw.append(line)
                if line.startswith(b"data:"):
                    envelope = json.loads(line[5:])
                    self.told.append((envelope["type"], json.loads(envelope["data"])))
        except (OSError, http.client.HTTPException, ValueError):
            pass

    def of(self, kind):
        return [data for told, data in list(self.told) if told == kind]

    def test_events_follow_a_request_from_its_begin_to_its_row(self):
        """http T153, T155, T156"""
        wait_for(lambda: len(self.told) >= 6, 10, "the first messages")
        kinds = [kind for kind, _ in self.told[:6]]
        wanted = ["logData", "logData", "modelStatus", "uiConfig", "profileChanged", "inflight"]
        self.assertEqual(kinds, wanted)
        self.assertEqual(self.answer.getheader("X-Accel-Buffering"), "no")
        failed = []

        def cut():
            try:
                self.post("/v1/chat/completions", {"model": "long", "stream": True}, Authorization="x")
            except (OSError, http.client.HTTPException) as error:
                failed.append(error)

        thread = threading.Thread(target=cut)
        thread.start()
        upserts = lambda: [told["request"] for told in self.of("inflight") if told["operation"] == "upsert"]
        wait_for(lambda: any(entry["resp_bytes"] for entry in upserts()), 10, "some bytes")
        first = upserts()[0]
        self.assertEqual((first["model"], first["req_path"]), ("long", "/v1/chat/completions"))
        self.assertEqual(first["req_headers"]["Authorization"], "[REDACTED]")
        self.assertEqual(json.loads(self.ask("POST", f"/api/inflight/{first['id']}/cancel")[2]), {"msg": "ok"})
        wait_for(lambda: {"operation": "remove", "id": first["id"]} in self.of("inflight"), 10, "the end")
        wait_for(lambda: self.of("activity") == [{"id": 1}], 10, "the row")
        thread.join(10)
        self.assertEqual(len(failed), 1)
        self.refused(self.ask("POST", "/api/inflight/999/cancel"), 404, "inflight request not found")
        states = [{row["id"]: row["state"] for row in rows}["long"] for rows in self.of("modelStatus")]
        self.assertEqual([states[0], states[-1]], ["stopped", "ready"])

    def test_a_reload_ends_it_and_the_next_one_shows_what_is_new(self):
        """http T168"""
        wait_for(lambda: len(self.told) >= 6, 10, "the first messages")
        self.post("/v1/chat/completions", {"model": "short"})
        text = json.loads(self.product.config.read_text())
        text["models"]["newer"] = text["models"]["short"]
        self.product.config.write_text(json.dumps(text))
        self.product.process.send_signal(signal.SIGHUP)
        self.reader.join(10)
        self.assertFalse(self.reader.is_alive())
        self.assertIn("newer", [record["id"] for record in self.product.json("/v1/models")["data"]])
        wait_for(lambda: self.product.json("/api/metrics/activity")["total"] == 1, 5, "the row")
        self.assertIsNone(self.product.json("/api/profiles")["active"])


del SurfaceTestCase
