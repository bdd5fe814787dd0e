from twisted.trial.unittest import SynchronousTestCase

from llamaswap.discover.config_writer import FoundServer
from llamaswap.discover.servers import MAX_MODELS, servers


class ServersTests(SynchronousTestCase):
    def test_servers_that_list_models_are_peers(self):
        def ask(url):
            if url.endswith(":8000"):
                return {"data": [{"id": "m"}]}
            if url.endswith(":1234"):
                return {"hello": "I am something else"}
            raise ConnectionRefusedError

        self.assertEqual(servers(ask), [FoundServer("vllm", "http://127.0.0.1:8000", ("m",))])

    def test_skipped_ports_are_not_asked(self):
        asked = []

        def ask(url):
            asked.append(url)
            return {"data": [{"id": "m"}]}

        servers(ask, {1: "a", 2: "b"}, skip=[1])
        self.assertEqual(asked, ["http://127.0.0.1:2"])

    def test_server_like_this_one_is_not_a_peer(self):
        self.assertEqual(servers(lambda url: {"data": [{"id": "m", "owned_by": "llama-swap"}]}, {1: "a"}), [])

    def test_odd_response_is_ignored_and_a_long_list_is_cut(self):
        for odd in ([], None, {"data": {}}, {"data": [7]}, {"data": None}):
            self.assertEqual(servers(lambda url, odd=odd: odd, {1: "a"}), [])
        [server] = servers(lambda url: {"data": [{"id": str(n)} for n in range(999)]}, {1: "a"})
        self.assertEqual(len(server.models), MAX_MODELS)
