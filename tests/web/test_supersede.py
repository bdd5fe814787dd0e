"""An editor asks at every stroke: only its last request is worth a place in the queue."""

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


def heir(headers, supersede="session", path=b"/infill", peer="10.0.0.1", model="a"):
    return supersede_key(Model(model, supersede=supersede), RequestHead(b"POST", path, list(headers)), peer, SESSIONS)


class HeirTests(SynchronousTestCase):
    def test_by_default_nobody_takes_anybodys_place(self):
        self.assertIsNone(heir(NAMED, supersede=""))

    def test_a_session_is_known_by_its_header_and_without_one_left_alone(self):
        self.assertEqual(heir(NAMED), heir([(b"x-other", b"s1")]))
        self.assertEqual(heir(NAMED), heir(NAMED, peer="10.9.9.9"))
        self.assertNotEqual(heir(NAMED), heir([(b"X-Session-Id", b"s2")]))
        self.assertIsNone(heir([]))

    def test_a_client_is_known_by_address_key_and_program(self):
        agent = [(b"User-Agent", b"vim")]
        self.assertEqual(heir(agent, "client"), heir(agent, "client"))
        for other in (
            heir(agent, "client", peer="10.0.0.2"),
            heir([(b"User-Agent", b"emacs")], "client"),
            heir([*agent, (b"Authorization", b"Bearer k")], "client"),
            heir([*agent, *NAMED], "client"),
        ):
            self.assertNotEqual(heir(agent, "client"), other)

    def test_other_paths_models_and_keys_are_other_questions(self):
        for other in (
            heir(NAMED, path=b"/v1/chat/completions"),
            heir(NAMED, model="b"),
            heir([*NAMED, (b"X-Api-Key", b"k")]),
        ):
            self.assertNotEqual(heir(NAMED), other)


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
