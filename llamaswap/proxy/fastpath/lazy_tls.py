"""Starts without OpenSSL, which costs 13 MB of memory and a tenth of a second, until a connection needs it.

Twisted's reactor imports OpenSSL if it is installed, but also works without it. So while the reactor's modules are
imported OpenSSL seems not to be installed; when a configuration names an encrypted server, they are reloaded.

`python -m benchmarks --only small --without lazy_tls`: the idle process takes 74.5 MB without it, 61.8 MB with it.
"""

from __future__ import annotations

import importlib
import sys


def import_reactor_without_tls() -> bool:
    """Call this before the reactor is imported (later it has no effect). Returns whether OpenSSL was avoided."""
    if "OpenSSL" in sys.modules or "twisted.internet.tcp" in sys.modules:
        return False
    sys.modules["OpenSSL"] = None  # type: ignore[assignment] # in the import system this means: not installed
    try:
        importlib.import_module("twisted.internet.posixbase")
        importlib.import_module("twisted.internet.endpoints")
        importlib.import_module("twisted.web.http")
    finally:
        del sys.modules["OpenSSL"]
    return True


def enable_tls() -> None:
    """Reload the modules that were imported without OpenSSL."""
    endpoints = importlib.import_module("twisted.internet.endpoints")
    if getattr(endpoints, "TLSMemoryBIOFactory", None) is None:
        importlib.reload(endpoints)  # in place, so functions taken from it before see the new names as well
