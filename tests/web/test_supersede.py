"""An editor sends a request at every keystroke: only the last of them keeps a place in the queue."""

import gc
from weakref import ref

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config import Model
from llamaswap.errors import Superseded, TooManyRequests
from llamaswap.proxy.exchange import RequestHead
from llamaswap.web.errors import render
from llamaswap.web.supersede import SupersedeRegistry, supersede_key
from tests.doubles import FakeRouter

SESSIONS = ("X-Session-ID", "X-Other")
NAMED = [(b"X-Session-Id", b"s1")]


def key_of(headers, supersede="session", path=b"/infill", peer="10.0.0.1", model="a"):
    return supersede_key(Model(model, supersede=supersede), RequestHead(b"POST", path, list(headers)), peer, SESSIONS)


class SupersedeKeyTests(SynchronousTestCase):
    def test_requests_of_a_model_without_supersede_have_no_key(self):
        self.assertIsNone(key_of(NAMED, supersede=""))

    def test_session_key_comes_from_its_header_and_is_none_without_it(self):
        self.assertEqual(key_of(NAMED), key_of([(b"x-other", b"s1")]))
        self.assertEqual(key_of(NAMED), key_of(NAMED, peer="10.9.9.9"))
        self.assertNotEqual(key_of(NAMED), key_of([(b"X-Session-Id", b"s2")]))
        self.assertIsNone(key_of([]))

    def test_replica_shares_the_key_of_its_model(self):
        head = RequestHead(b"POST", b"/infill", list(NAMED))
        copy = Model("a.r2", replica_of="a", supersede="session")
        self.assertEqual(supersede_key(copy, head, "10.0.0.1", SESSIONS), key_of(NAMED))

    def test_client_key_has_address_api_key_and_program(self):
        agent = [(b"User-Agent", b"vim")]
        self.assertEqual(key_of(agent, "client"), key_of(agent, "client"))
        for other in (
            key_of(agent, "client", peer="10.0.0.2"),
            key_of([(b"User-Agent", b"emacs")], "client"),
            key_of([*agent, (b"Authorization", b"Bearer k")], "client"),
            key_of([*agent, *NAMED], "client"),
        ):
            self.assertNotEqual(key_of(agent, "client"), other)

    def test_other_paths_models_and_api_keys_have_other_keys(self):
        for other in (
            key_of(NAMED, path=b"/v1/chat/completions"),
            key_of(NAMED, model="b"),
            key_of([*NAMED, (b"X-Api-Key", b"k")]),
        ):
            self.assertNotEqual(key_of(NAMED), other)


class SupersedeRegistryTests(SynchronousTestCase):
    def setUp(self):
        self.router, self.registry = FakeRouter(auto=False, ready=False), SupersedeRegistry()

    def ask(self, key="session"):
        return self.registry.request(self.router, "a", key)

    def test_waiting_request_is_superseded_by_the_next_of_its_session(self):
        first = self.ask()
        second = self.ask()
        self.failureResultOf(first.granted, Superseded)
        self.registry.ended("session", first)  # which says nothing about the second
        self.ask()
        self.failureResultOf(second.granted, Superseded)

    def test_request_that_has_ended_is_not_superseded(self):
        first = self.ask()
        self.registry.ended("session", first)
        self.ask()
        self.assertNoResult(first.granted)

    def test_request_without_a_key_is_not_superseded(self):
        first = self.ask(key=None)
        self.ask()
        self.ask(key=None)
        self.assertNoResult(first.granted)

    def test_request_that_does_not_wait_is_not_kept(self):
        """Its record would stay until the next request of the session."""
        for case in {"ready": True}, {"refusal": TooManyRequests("a", 1)}:
            self.router = FakeRouter(**{"auto": False, "ready": False, **case})
            kept = ref(self.ask())
            self.router.asked.clear()
            gc.collect()
            self.assertIsNone(kept())

    def test_request_that_has_its_lease_is_not_superseded(self):
        first = self.ask()
        lease = first.grant()
        self.ask()
        self.assertIs(self.successResultOf(first.granted), lease)


class AnswerTests(SynchronousTestCase):
    def test_superseded_request_gets_410_and_must_not_be_repeated(self):
        """A client that tried again would take the place of its own newer request."""
        status, headers, body = render(Superseded("a"), "application/json", "/v1/completions")
        self.assertEqual(status, 410)
        self.assertIn((b"X-Should-Retry", b"false"), headers)
        self.assertIn(b'"superseded"', body)
        self.assertIn(b"newer request for a", body)
