"""A start without OpenSSL, and with it after all."""

import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

LEAN = """
import sys
from llamaswap.proxy.fastpath.lazy_tls import enable_tls, import_reactor_without_tls
spared = import_reactor_without_tls()
import llamaswap.tap, llamaswap.app.service
from twisted.internet import reactor
assert spared and "OpenSSL" not in sys.modules, spared
early = {"psutil", "re2", "twisted.web.client", "llamaswap.discover.scan"} & set(sys.modules)
assert not early, early  # asked for by few, or later
from llamaswap.servers.server_request import wrapClientTLS
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.interfaces import IStreamClientEndpoint
way = TCP4ClientEndpoint(reactor, "127.0.0.1", 9)
try:
    wrapClientTLS(None, way)
except NotImplementedError:
    print("none")
enable_tls()
from twisted.internet.ssl import optionsForClientTLS
assert IStreamClientEndpoint.providedBy(wrapClientTLS(optionsForClientTLS("localhost"), way))
print("there")
"""


class SpareTests(SynchronousTestCase):
    def run_python(self, code):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=Path(__file__).parents[2],
            check=False,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout.split()

    def test_openssl_is_spared_until_it_is_wanted(self):
        self.assertEqual(self.run_python(LEAN), ["none", "there"])

    def test_imported_reactor_is_left_alone(self):
        code = (
            "from twisted.internet import reactor; import sys;"
            "from llamaswap.proxy.fastpath.lazy_tls import import_reactor_without_tls;"
            "print(import_reactor_without_tls(), sys.modules.get('OpenSSL', 'absent') is not None)"
        )
        self.assertEqual(self.run_python(code), ["False", "True"])
