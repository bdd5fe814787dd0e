"""Start without what only some need: OpenSSL, 13 MB of memory and a tenth of a second of every start.

Twisted's reactor imports it wherever it is installed. Twisted can do without, so it is shown an installation without
OpenSSL while the modules that ask are imported; once a configuration names an encrypted server they are told that
it is there after all. Must not know why anybody wants it.
"""

from __future__ import annotations

import importlib
import sys


def import_reactor_without_tls() -> bool:
    """To be called before the reactor is imported (later it does nothing); whether OpenSSL was spared."""
    if "OpenSSL" in sys.modules or "twisted.internet.tcp" in sys.modules:
        return False
    sys.modules["OpenSSL"] = None  # type: ignore[assignment] # the import system's own way to say: not there
    try:
        importlib.import_module("twisted.internet.posixbase")
        importlib.import_module("twisted.internet.endpoints")
        importlib.import_module("twisted.web.http")
    finally:
        del sys.modules["OpenSSL"]
    return True


def enable_tls() -> None:
    """Encrypted connections are wanted: have the modules that did without look again."""
    endpoints = importlib.import_module("twisted.internet.endpoints")
    if getattr(endpoints, "TLSMemoryBIOFactory", None) is None:
        importlib.reload(endpoints)  # in place: functions taken from it before see the new names as well
