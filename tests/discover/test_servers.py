from twisted.trial.unittest import SynchronousTestCase

from llamaswap.discover.config_writer import FoundServer
from llamaswap.discover.servers import MOST_MODELS, servers


class ServersTests(SynchronousTestCase):
    def test_servers_that_answer_are_peers(self):
        def ask(url):
            if url.endswith(":8000"):
                return {"data": [{"id": "m"}]}
            if url.endswith(":1234"):
                return {"hello": "I am something else"}
            raise ConnectionRefusedError

        self.assertEqual(servers(ask), [FoundServer("vllm", "http://127.0.0.1:8000", ("m",))])

    def test_some_ports_are_not_asked(self):
        asked = []

        def ask(url):
            asked.append(url)
            return {"data": [{"id": "m"}]}

        servers(ask, {1: "a", 2: "b"}, skip=[1])
        self.assertEqual(asked, ["http://127.0.0.1:2"])

    def test_a_server_like_this_one_is_no_peer(self):
        self.assertEqual(servers(lambda url: {"data": [{"id": "m", "owned_by": "llama-swap"}]}, {1: "a"}), [])

    def test_an_odd_answer_is_none_and_a_long_one_is_cut(self):
        for odd in ([], None, {"data": {}}, {"data": [7]}, {"data": None}):
            self.assertEqual(servers(lambda url, odd=odd: odd, {1: "a"}), [])
        [server] = servers(lambda url: {"data": [{"id": str(n)} for n in range(999)]}, {1: "a"})
        self.assertEqual(len(server.models), MOST_MODELS)
