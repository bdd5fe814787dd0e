"""The commands' HTTP client."""

import http.client
import ssl

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.cli.client import ApiClient, ClientError, quoted, sender
from tests.cli.doubles import Server, sse


class ClientTests(SynchronousTestCase):
    def client(self, answer, key=""):
        self.server = Server().on("GET /x", answer)
        return ApiClient("http://somewhere", self.server.send, key)

    def test_the_key_goes_as_a_bearer_token(self):
        self.client({"a": 1}, "secret").json("/x")
        self.assertEqual(self.server.headers[0]["Authorization"], "Bearer secret")

    def test_without_a_key_none_is_sent(self):
        self.client({"a": 1}).json("/x")
        self.assertNotIn("Authorization", self.server.headers[0])

    def refusal(self, answer, key=""):
        return self.assertRaises(ClientError, self.client(answer, key).json, "/x")

    def test_a_refusal_tells_the_servers_reason(self):
        for body in ({"error": {"message": "no such"}}, {"error": "no such"}, b"no such\n"):
            trouble = self.refusal((404, body))
            self.assertEqual((str(trouble), trouble.status), ("404: no such", 404))

    def test_an_unauthorized_request_says_which_option_helps(self):
        self.assertIn("--key", str(self.refusal((401, {"error": "x"}))))
        self.assertIn("not accepted", str(self.refusal((401, {"error": "x"}), "wrong")))

    def test_a_server_that_is_not_there_is_named(self):
        trouble = self.refusal(ConnectionRefusedError(111, "Connection refused"))
        self.assertIn("http://somewhere: Connection refused", str(trouble))

    def test_https_to_a_server_without_tls_says_so(self):
        error = ssl.SSLError(1, "wrong version number")
        self.assertIn("does it speak TLS? (--url http://", str(self.refusal(error)))

    def test_http_to_a_server_that_speaks_only_tls_says_so(self):
        error = http.client.RemoteDisconnected("Remote end closed connection without response")
        self.assertIn("(--url https://... if so)", str(self.refusal(error)))

    def test_a_certificate_of_ones_own_says_how_to_trust_it(self):
        self.assertIn("SSL_CERT_FILE", str(self.refusal(ssl.SSLCertVerificationError(1, "self-signed"))))

    def test_what_is_no_json_is_shown(self):
        self.assertIn("<html>", str(self.refusal(b"<html>")))

    def test_events_have_names_and_joined_data(self):
        body = b"event: one\ndata: a\ndata:b\n\n: a beat\n\n" + sse("c") + b"data: cut"
        self.assertEqual(list(self.client(body).events("/x")), [("one", "a\nb"), ("", "c"), ("", "cut")])


class UrlTests(SynchronousTestCase):
    def test_each_spelling_is_understood(self):
        for url in ("http://h:1", "https://h", "h:8080", "http://h/prefix", "unix:/run/x.sock"):
            self.assertTrue(callable(sender(url)))

    def test_the_address_a_client_or_browser_has_is_understood_too(self):
        asked = []

        class Connection:
            def __init__(self, *words, **more):
                pass

            def request(self, method, path, body, headers):
                asked.append(path)

            def getresponse(self):
                return None

        self.patch(http.client, "HTTPConnection", Connection)
        for url in ("http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/", "h:1/ui/", ":1", "h:1/box/v1"):
            sender(url)("GET", "/running", None, {}, 1.0)
        self.assertEqual(asked, ["/running"] * 6 + ["/box/running"])

    def test_nonsense_is_refused_in_words(self):
        for url in ("ftp://h", "http://", "http://h:port"):
            self.assertRaises(ClientError, sender, url)

    def test_a_models_slashes_stay_in_the_path(self):
        self.assertEqual(quoted("author/model: x?"), "author/model:%20x%3F")
