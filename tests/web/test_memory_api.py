from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config.schema.memory import MemorySettings
from llamaswap.config.schema.routing import Routing
from tests.web.doubles import World, example_config, example_router


class MemoryTests(SynchronousTestCase):
    def test_document_of_the_source_is_served(self):
        class Source:
            def document(self):
                return {"mode": "on", "devices": [], "needs": {"owl": {"ram_mib": 5}}, "advice": ["a"]}

        self.assertEqual(World(memory=Source()).ask("/api/memory").json, Source().document())

    def test_without_a_source_only_the_mode_is_known(self):
        config = example_config(routing=Routing(memory=MemorySettings(mode="off")))
        answer = World(router=example_router(config)).ask("/api/memory")
        self.assertEqual(answer.json, {"mode": "off", "devices": [], "needs": {}, "advice": []})
