"""What machines lack for models: programs and files."""

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config.schema.hosts import Place
from llamaswap.config.schema.model import Model
from llamaswap.discover.missing import host_findings, missing_by_model
from llamaswap.scheduling.hosts import HostFacts

OWL = Model("owl", cmd="serve -m /m/owl.gguf")
REPLICA = Model("owl.r2", cmd="serve -m /m/owl.gguf", replica_of="owl")


class MissingTests(SynchronousTestCase):
    def test_program_comes_before_the_file(self):
        models = [OWL, REPLICA, Model("cat", cmd="purr --model=/m/cat.gguf"), Model("dog", cmd="serve -m bark")]
        found = missing_by_model(models, which={"serve": "/bin/serve"}.get, exists=lambda name: False)
        self.assertEqual(found, {"owl": "/m/owl.gguf", "owl.r2": "/m/owl.gguf", "cat": "purr"})
        self.assertEqual(missing_by_model(models, which=str, exists=str), {})

    def test_each_host_that_may_run_a_model_and_lacks_what_it_needs_is_named_once(self):
        lacking = {"owl": "/m/owl.gguf", "owl.r2": "/m/owl.gguf", "cat": "/m/owl.gguf", "dog": "bark"}
        hosts = {"": HostFacts(""), "nas": HostFacts("nas", missing=lacking), "box": HostFacts("box", missing=lacking)}
        models = [
            OWL,
            REPLICA,
            Model("cat", cmd="x", place=Place(("nas", "later"))),
            Model("dog", cmd="x", place=Place(("here",))),
        ]
        self.assertEqual(
            host_findings(models, hosts),
            ["nas lacks /m/owl.gguf (needed by owl, cat)", "box lacks /m/owl.gguf (needed by owl)"],
        )
