"""What is kept of a head between two requests: never longer than the configuration and the client are the same."""

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config import Config
from llamaswap.proxy.bodies import BytesBody
from llamaswap.proxy.exchange import Exchange, RequestHead
from llamaswap.web.errors import HttpError, unauthorized
from llamaswap.web.head_facts import Authenticated, facts_of
from llamaswap.web.key_access import OPEN
from tests.web.pipeline import FakeSink

KEY = [(b"Authorization", b"Bearer k"), (b"Content-Length", b"5")]


class HeadFactsTests(SynchronousTestCase):
    def setUp(self):
        self.config = Config()
        self.asked = []
        self.valid = True

    def authenticate(self, head):
        self.asked.append(head.target)
        if not self.valid:
            raise unauthorized()
        return Authenticated(frozenset([b"authorization"]), OPEN)

    def facts(self, head, address="1.2.3.4"):
        exchange = Exchange(head, BytesBody(b"{}"), FakeSink(), address, 0.0)
        return facts_of(exchange, self.config, self.authenticate)

    def test_second_request_with_the_same_head_is_not_authenticated_again(self):
        first = RequestHead(b"POST", b"/v/v1/x?a=b", KEY)
        second = RequestHead(b"POST", b"/v/v1/x?a=b", [KEY[0], (b"Content-Length", b"70")], known=first.known)
        facts = self.facts(first)
        self.assertIs(self.facts(second), facts)
        self.assertEqual(len(self.asked), 1)
        self.assertEqual(facts.headers(first), [(b"Authorization", b"[REDACTED]"), (b"Content-Length", b"5")])
        self.assertEqual(facts.headers(second)[1], (b"Content-Length", b"70"))
        self.assertEqual((facts.target, facts.stored_path), (b"/v1/x?a=b", "/v1/x"))

    def test_key_that_a_new_configuration_lacks_is_refused_although_its_head_is_known(self):
        head = RequestHead(b"POST", b"/v1/x", KEY)
        self.facts(head)
        self.config, self.valid = evolve(self.config), False
        self.assertRaises(HttpError, self.facts, head)
        self.assertRaises(HttpError, self.facts, head)

    def test_another_client_with_the_same_head_has_its_own_address(self):
        head = RequestHead(b"POST", b"/v1/x", KEY)
        self.assertEqual(self.facts(head).remote_ip, "1.2.3.4")
        self.assertEqual(self.facts(head, "5.6.7.8").remote_ip, "5.6.7.8")
