import json

from twisted.trial.unittest import SynchronousTestCase

from llamaswap import errors
from llamaswap.web.errors import HttpError, render, unauthorized


class RenderTests(SynchronousTestCase):
    def test_statuses_and_codes_follow_the_failure(self):
        cases = [
            (errors.NoModelNamed(), 404, "not_found"),
            (errors.UnknownModel("x"), 404, "not_found"),
            (errors.NoTarget("s", "no"), 503, "service_unavailable"),
            (errors.ModelUnloaded("x"), 503, "service_unavailable"),
            (errors.ShuttingDown(), 503, "service_unavailable"),
            (errors.NotReady("x", "r"), 409, "conflict"),
            (errors.WaitedTooLong("x", 3600.0, ("y",)), 503, "queue_timeout"),
            (errors.ServerVanished("x"), 503, "service_unavailable"),
            (errors.BadUpstream("x", "y"), 502, "bad_gateway"),
            (errors.BadRequest("x"), 400, "bad_request"),
            (errors.BodyTooLarge(5), 413, "invalid_request"),
        ]
        for error, status, code in cases:
            told, _, body = render(error, "")
            self.assertEqual((told, json.loads(body)["error"]["code"]), (status, code), error)

    def test_a_failed_start_keeps_its_cause(self):
        """http T091"""
        error = errors.StartFailed("m", "upstream command exited prematurely", 1, "boom")
        status, _, body = render(error, "*/*")
        self.assertEqual(status, 500)
        told = json.loads(body)["error"]
        self.assertIn("unspecific error: upstream command exited prematurely", told["message"])
        self.assertEqual((told["type"], told["code"]), ("server_error", "internal_error"))

    def test_a_failed_start_ends_with_the_last_lines_of_its_servers_log(self):
        """llama-server without an old flag exits at once, and only its log says why"""
        error = errors.StartFailed("m", "upstream command exited prematurely (exit status 1)", 1, "a\nb key=s3same")
        hide = lambda text: text.replace("s3same", "***")
        _, _, body = render(error, "", hide=hide)
        message = json.loads(body)["error"]["message"]
        self.assertTrue(message.endswith("exited prematurely (exit status 1)\na\nb key=***"), message)
        long = errors.StartFailed("m", "exited", 1, "\n".join(f"line {number} " + "x" * 400 for number in range(50)))
        _, _, body = render(long, "")
        self.assertLess(len(body), 2000)
        self.assertIn(b"line 49", body)

    def test_failing_model_is_unavailable_with_a_retry_after(self):
        error = errors.KeepsFailing(
            errors.FailureRecord("m", "", 3, 1e9, "upstream command exited prematurely", "boom"), 2
        )
        status, headers, body = render(error, "")
        self.assertEqual((status, json.loads(body)["error"]["code"]), (503, "model_keeps_failing"))
        self.assertIn((b"Retry-After", b"2"), headers)
        self.assertIn("failed 3 times in a row", json.loads(body)["error"]["message"])
        self.assertIn("boom", json.loads(body)["error"]["message"])

    def test_concurrency_refusal_is_json_for_every_client_with_a_retry_after(self):
        """http T100"""
        status, headers, body = render(errors.TooManyRequests("m", 1), "text/plain")
        self.assertEqual((status, json.loads(body)["error"]["code"]), (429, "concurrency_limit"))
        self.assertIn((b"Retry-After", b"1"), headers)
        self.assertIn((b"Content-Type", b"application/json"), headers)

    def test_accept_header_chooses_the_form_of_an_error(self):
        """http T039"""
        _, headers, body = render(errors.UnknownModel("<x>"), "text/html,*/*")
        self.assertEqual(body, b"<html><body><h1>llama-swap</h1><p>no router for requested model</p></body></html>")
        self.assertIn((b"Content-Type", b"text/html"), headers)

    def test_internal_errors_are_not_described(self):
        status, _, body = render(KeyError("sesame"), "")
        self.assertEqual(status, 500)
        self.assertNotIn(b"sesame", body)

    def test_headers_and_code_of_an_error_are_sent(self):
        self.assertIn((b"WWW-Authenticate", b'Basic realm="llama-swap"'), render(unauthorized(), "")[1])
        self.assertEqual(json.loads(render(HttpError(412, "m", "stale"), "")[2])["error"]["code"], "stale")
