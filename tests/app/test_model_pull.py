"""The download of a model in a process of its own."""

import json
from pathlib import Path

from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.app.model_pull import OUTPUT_LIMIT, CommandPuller, hub_document
from llamaswap.web.errors import HttpError
from llamaswap.web.ollama_models import PulledFiles
from tests.cli.doubles import Server, invoke


class HubDocumentTests(SynchronousTestCase):
    def test_hub_that_cannot_be_reached_is_explained_without_python_words(self):
        error = self.assertRaises(OSError, hub_document, {"HF_ENDPOINT": "nowhere://hub"}, "/api/models")
        self.assertEqual(str(error), "unknown url type: nowhere")


class Process:
    def __init__(self):
        self.signals = []

    def signalProcess(self, name):
        self.signals.append(name)


class Processes:
    """Starts nothing, and keeps what was to be started."""

    def spawnProcess(self, protocol, program, words, env):
        self.protocol, self.words, self.env = protocol, words, env
        protocol.transport = self.process = Process()


class PullTests(SynchronousTestCase):
    def setUp(self):
        self.processes, self.seen = Processes(), []
        self.puller = CommandPuller(self.processes, {"HOME": self.mktemp()}, ("llamaswap",))
        self.done = self.puller.pull("org/tiny:Q4_0", self.seen.append)
        self.child = self.processes.protocol

    def test_command_downloads_and_its_result_is_read(self):
        self.assertEqual(self.processes.words, ["llamaswap", "pull", "--progress", "--json", "--", "org/tiny:Q4_0"])
        line = json.dumps({"file": "a", "digest": "12", "total": 9, "completed": 3}).encode() + b"\n"
        self.child.errReceived(b"1 of 1: a\n" + line[:9])
        self.child.errReceived(line[9:])
        self.assertEqual(self.seen, [{"file": "a", "digest": "12", "total": 9, "completed": 3}])
        path = "/hub/models--org--tiny/snapshots/1/sub/a.gguf"
        self.child.outReceived(json.dumps({"repository": "org/tiny", "files": [path]}).encode())
        self.child.processEnded(Failure(ProcessDone(0)))
        self.assertEqual(self.successResultOf(self.done), PulledFiles("org/tiny", ["sub/a.gguf"], [path]))

    def test_failed_command_gives_its_error(self):
        self.child.errReceived(b"1 of 1: a\n")
        self.child.outReceived(invoke(["unload", "--json", "--", "tiny"], Server()).stdout.encode())
        self.child.processEnded(Failure(ProcessTerminated(1)))
        error = self.failureResultOf(self.done, HttpError).value
        self.assertEqual((error.status, error.message), (502, "404: not found: tiny (no model is configured)"))

    def test_command_that_ends_without_an_error_is_a_failure(self):
        for output in (b"", b"Traceback", b'{"error": 3}', b'{"error": {}}'):
            done = self.puller.pull("org/tiny", self.seen.append)
            child = self.processes.protocol
            child.outReceived(output)
            child.processEnded(Failure(ProcessTerminated(1)))
            self.assertIn("without a reason", self.failureResultOf(done, HttpError).value.message)

    def test_endless_output_is_not_kept(self):
        for _ in range(3):
            self.child.outReceived(b"x" * OUTPUT_LIMIT)
            self.child.errReceived(b"x" * OUTPUT_LIMIT)
        self.child.processEnded(Failure(ProcessDone(0)))
        self.failureResultOf(self.done, HttpError)

    def test_cancelled_download_is_ended(self):
        self.done.cancel()
        self.assertEqual(self.processes.process.signals, ["TERM"])
        self.failureResultOf(self.done)
        self.child.processEnded(Failure(ProcessTerminated(None, 15)))


class RemoveTests(SynchronousTestCase):
    def test_only_the_named_files_of_the_repository_are_removed(self):
        hub = Path(self.mktemp()).absolute()
        folder = hub / "models--org--tiny"
        snapshot, blobs = folder / "snapshots/1", folder / "blobs"
        for path in (snapshot, blobs):
            path.mkdir(parents=True)
        outside = hub / "outside"
        for name, target in (("a", blobs / "1"), ("b", blobs / "2"), ("c", outside)):
            target.write_text(name)
            (snapshot / name).symlink_to(target)
        CommandPuller(Processes(), {"HF_HUB_CACHE": str(hub)}).remove("org/tiny", ["a", "c", "../../../outside"])
        self.assertEqual(sorted(path.name for path in snapshot.iterdir()), ["b", "c"])
        self.assertEqual([path.name for path in blobs.iterdir()], ["2"])
        self.assertTrue(outside.exists())
