"""The HTTP client of the commands."""

import http.client
import ssl

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.cli.client import ApiClient, ClientError, quoted, sender
from tests.cli.doubles import Server, sse


class ClientTests(SynchronousTestCase):
    def client(self, answer, key=""):
        self.server = Server().on("GET /x", answer)
        return ApiClient("http://somewhere", self.server.send, key)

    def test_key_is_sent_as_a_bearer_token(self):
        self.client({"a": 1}, "secret").json("/x")
        self.assertEqual(self.server.headers[0]["Authorization"], "Bearer secret")

    def test_client_without_a_key_sends_none(self):
        self.client({"a": 1}).json("/x")
        self.assertNotIn("Authorization", self.server.headers[0])

    def refusal(self, answer, key=""):
        return self.assertRaises(ClientError, self.client(answer, key).json, "/x")

    def test_error_response_is_reported_with_its_reason(self):
        for body in ({"error": {"message": "no such"}}, {"error": "no such"}, b"no such\n"):
            trouble = self.refusal((404, body))
            self.assertEqual((str(trouble), trouble.status), ("404: no such", 404))

    def test_reason_of_a_refusal_does_not_begin_with_unspecific_error(self):
        self.assertEqual(str(self.refusal((502, {"error": "unspecific error: exited"}))), "502: exited")

    def test_unauthorized_request_names_the_key_option(self):
        self.assertIn("--key", str(self.refusal((401, {"error": "x"}))))
        self.assertIn("not accepted", str(self.refusal((401, {"error": "x"}), "wrong")))

    def test_unreachable_server_is_named(self):
        trouble = self.refusal(ConnectionRefusedError(111, "Connection refused"))
        self.assertIn("http://somewhere: Connection refused", str(trouble))

    def test_https_to_a_server_without_tls_is_explained(self):
        error = ssl.SSLError(1, "wrong version number")
        self.assertIn("does it speak TLS? (--url http://", str(self.refusal(error)))

    def test_http_to_a_tls_server_is_explained(self):
        error = http.client.RemoteDisconnected("Remote end closed connection without response")
        self.assertIn("(--url https://... if so)", str(self.refusal(error)))

    def test_self_signed_certificate_is_explained(self):
        self.assertIn("SSL_CERT_FILE", str(self.refusal(ssl.SSLCertVerificationError(1, "self-signed"))))

    def test_response_that_is_not_json_is_shown(self):
        self.assertIn("<html>", str(self.refusal(b"<html>")))

    def test_events_have_names_and_joined_data(self):
        body = b"event: one\ndata: a\ndata:b\n\n: a beat\n\n" + sse("c") + b"data: cut"
        self.assertEqual(list(self.client(body).events("/x")), [("one", "a\nb"), ("", "c"), ("", "cut")])


class UrlTests(SynchronousTestCase):
    def test_url_spellings_are_accepted(self):
        for url in ("http://h:1", "https://h", "h:8080", "http://h/prefix", "unix:/run/x.sock"):
            self.assertTrue(callable(sender(url)))

    def test_url_of_a_client_or_browser_is_accepted(self):
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

    def test_invalid_url_is_refused(self):
        for url in ("ftp://h", "http://", "http://h:port"):
            self.assertRaises(ClientError, sender, url)

    def test_slashes_of_a_model_name_stay_in_the_path(self):
        self.assertEqual(quoted("author/model: x?"), "author/model:%20x%3F")
