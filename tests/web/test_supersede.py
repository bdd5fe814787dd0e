"""An editor asks at every stroke: only its last request is worth a place in the queue."""

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config import Model
from llamaswap.errors import Superseded
from llamaswap.proxy.exchange import RequestHead
from llamaswap.web.errors import render
from llamaswap.web.supersede import SupersedeRegistry, supersede_key
from tests.web.pipeline import FakeAcquisition

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


class Router:
    """Gives acquisitions; hands on those that wait."""

    def __init__(self):
        self.ready, self.refusal, self.waiting = False, None, []

    def request(self, model, *, on_position=None, origin=""):
        made = FakeAcquisition(model, on_position, self.refusal, self.ready)
        self.waiting.append(made)
        return made

    def supersede(self, waiting, *, on_position=None):
        if waiting not in self.waiting or waiting.granted.called:
            return None
        return self.request(waiting.model)


class SuccessionTests(SynchronousTestCase):
    def setUp(self):
        self.router, self.here = Router(), SupersedeRegistry()

    def ask(self, heir="me"):
        return self.here.request(self.router, "a", heir)

    def test_the_last_one_of_a_session_is_kept_until_its_wait_is_over(self):
        first = self.ask()
        second = self.ask()
        self.here.ended("me", first)
        self.assertEqual(list(self.here._waiting.values()), [second])
        self.here.ended("me", second)
        self.assertEqual(self.here._waiting, {})

    def test_nothing_is_kept_of_those_who_do_not_wait(self):
        self.ask(heir=None)
        self.router.ready = True
        self.ask()
        self.router.ready, self.router.refusal = False, ValueError()
        self.ask()
        self.assertEqual(self.here._waiting, {})

    def test_one_that_is_served_meanwhile_is_joined_not_replaced(self):
        first = self.ask()
        first.grant()
        second = self.ask()
        self.assertEqual(self.router.waiting, [first, second])


class AnswerTests(SynchronousTestCase):
    def test_it_is_told_as_gone_and_not_to_be_tried_again(self):
        """A client that tried again would take the place of its own newer request."""
        status, headers, body = render(Superseded("a"), "application/json", "/v1/completions")
        self.assertEqual(status, 410)
        self.assertIn((b"X-Should-Retry", b"false"), headers)
        self.assertIn(b'"superseded"', body)
        self.assertIn(b"newer request for a", body)
