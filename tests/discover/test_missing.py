"""What machines lack for models: programs and files."""

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config.schema.hosts import Place
from llamaswap.config.schema.model import Model
from llamaswap.discover.missing import NeededFiles, host_findings, lacking, needed_files
from llamaswap.scheduling.hosts import HostFacts

OWL = Model("owl", cmd="serve -m /m/owl.gguf")
REPLICA = Model("owl.r2", cmd="serve -m /m/owl.gguf", replica_of="owl")


class MissingTests(SynchronousTestCase):
    def test_program_comes_before_the_file(self):
        needs = {name: NeededFiles(program, ("/m/owl.gguf",)) for name, program in (("owl", "serve"), ("cat", "purr"))}
        found = lacking(needs, which={"serve": "/bin/serve"}.get, exists=lambda name: False)
        self.assertEqual(found, {"owl": "/m/owl.gguf", "cat": "purr"})
        self.assertEqual(lacking(needs, which=str, exists=str), {})

    def test_needs_are_the_program_and_the_absolute_paths_of_a_command(self):
        model = Model("cat", cmd="purr -m /m/cat.gguf --lora=/m/claw.gguf --mmproj here.gguf /m/folder --keep --x /m/y")
        self.assertEqual(
            needed_files(model),
            NeededFiles(
                "purr",
                ("/m/cat.gguf", "/m/claw.gguf"),
                ("/m/cat.gguf", "/m/claw.gguf", "/m/folder", "/m/y"),
            ),
        )

    def test_each_host_that_may_run_a_model_and_lacks_what_it_needs_is_named_once(self):
        lacks = {"owl": "/m/owl.gguf", "owl.r2": "/m/owl.gguf", "cat": "/m/owl.gguf", "dog": "bark"}
        hosts = {"": HostFacts(""), "nas": HostFacts("nas", missing=lacks), "box": HostFacts("box", missing=lacks)}
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
