from twisted.trial.unittest import SynchronousTestCase

from tests.web.doubles import World


class MemoryTests(SynchronousTestCase):
    def test_document_of_the_source_is_served(self):
        class Source:
            def document(self):
                return {"mode": "on", "devices": [], "needs": {"owl": {"ram_mib": 5}}, "advice": ["a"]}

        self.assertEqual(World(memory=Source()).ask("/api/memory").json, Source().document())
