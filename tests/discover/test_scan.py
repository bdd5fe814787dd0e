from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.discover.scan import scan
from tests.discover.doubles import ollama_store, touch


class ScanTests(SynchronousTestCase):
    def setUp(self):
        self.home = Path(self.mktemp()).absolute()
        self.home.mkdir()

    def names(self, *given, **more):
        found = scan(self.home, {}, *given, which=lambda name: None, ask=None, **more)
        return [model.name for model in found.models]

    def test_only_given_folders_are_searched(self):
        touch(self.home, "models/usual.gguf", "mine/own.gguf")
        everywhere = scan(self.home, {}, which=lambda name: None, ask=None)
        self.assertIn("usual", [model.name for model in everywhere.models])
        only = scan(self.home, {}, [self.home / "mine"], which=lambda name: None, ask=None)
        self.assertEqual([model.name for model in only.models], ["own"])

    def test_ollamas_store_is_searched_on_request(self):
        ollama_store(self.home / ".ollama/models")
        self.assertNotIn("llama3.2-1b", self.names())
        self.assertIn("llama3.2-1b", self.names(ollama=True))

    def test_file_name_that_would_change_a_configuration_is_skipped(self):
        touch(self.home, "models/good.gguf", "models/x\n  evil:\n    cmd: rm.gguf", "models/${env.KEY}.gguf")
        self.assertEqual(self.names([self.home / "models"]), ["good"])

    def test_stopped_search_is_marked_as_incomplete(self):
        found = scan(self.home, {}, which=lambda name: None, ask=None, should_stop=lambda: True)
        self.assertEqual((found.models, found.complete), ((), False))

    def test_model_has_the_size_of_all_its_shards(self):
        for number in (1, 2):
            touch(self.home, f"models/a-0000{number}-of-00002.gguf")
            (self.home / f"models/a-0000{number}-of-00002.gguf").write_bytes(b"x" * 100 * number)
        [model] = scan(self.home, {}, [self.home / "models"], which=lambda name: None, ask=None).models
        self.assertEqual(model.bytes, 300)

    def test_unreadable_folder_and_broken_link_do_not_end_the_search(self):
        touch(self.home, "models/good.gguf", "models/closed/secret.gguf")
        (self.home / "models/loop.gguf").symlink_to("loop.gguf")
        (self.home / "models/gone.gguf").symlink_to("nothing.gguf")
        ollama_store(self.home / ".ollama/models")
        usual = Path.stat

        def stat(path, **how):
            if {"closed", ".ollama"} & set(path.parts[:-1]):
                raise PermissionError(13, "Permission denied", str(path))  # root has every permission
            return usual(path, **how)

        self.patch(Path, "stat", stat)
        self.assertEqual(self.names(ollama=True), ["good"])
