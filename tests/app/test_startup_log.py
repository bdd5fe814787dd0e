"""The first lines of the log."""

from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.app.settings import ServiceSettings
from llamaswap.app.startup_log import announce, log_missing
from llamaswap.config import ConfigText, load
from llamaswap.proxy.listen import ListenAddress
from llamaswap.version import build

MODELS = "models:\n  owl: {cmd: 's ${PORT}', replicas: 2}\n  cat: {cmd: 's ${PORT}'}\n"


class StartupTests(SynchronousTestCase):
    def lines(self, listen, address, text=MODELS, **settings):
        with capturedLogs() as events:
            announce(
                ServiceSettings(ListenAddress(listen), **settings), load([ConfigText("c.yaml", text)], {}), address
            )
        return [formatEvent(event) for event in events]

    def test_version_file_number_of_models_address_and_page_are_logged(self):
        found = self.lines("127.0.0.1:8080", IPv4Address("TCP", "127.0.0.1", 8080), config="c.yaml", config_dir="more")
        self.assertEqual(
            found,
            [
                f"llamaswap {build().version}: 2 models in c.yaml and more",
                "listening on http://localhost:8080",
                "the web page is http://localhost:8080/ui/",
            ],
        )

    def test_warnings_of_the_configuration_and_expired_keys_are_logged(self):
        text = MODELS + "nonsense: 1\napiKeys: [{key: sk-1, name: old, expires: 2020-01-01}]\n"
        found = self.lines("127.0.0.1:8080", IPv4Address("TCP", "127.0.0.1", 8080), text, config="c.yaml")
        self.assertTrue(any("configuration: c.yaml:4" in line and "nonsense" in line for line in found), found)
        self.assertTrue(any("configuration: c.yaml:5" in line and "old has expired" in line for line in found), found)

    def test_unix_socket_has_no_page(self):
        found = self.lines(
            "unix:/run/x.sock", UNIXAddress("/run/x.sock"), "models: {a: {cmd: 's ${PORT}'}}", config="c.yaml"
        )
        self.assertTrue(any(": 1 model in c.yaml" in line for line in found))
        self.assertFalse(any("/ui/" in line for line in found))

    def test_findings_are_warnings(self):
        with capturedLogs() as events:
            log_missing(["x.gguf does not exist (needed by owl)"])
        ((level, text),) = [(event["log_level"].name, formatEvent(event)) for event in events]
        self.assertEqual((level, text), ("warn", "configuration: x.gguf does not exist (needed by owl)"))
