"""Doubles shared by the tests of observe."""

import tracemalloc

from twisted.internet.defer import Deferred, maybeDeferred

from llamaswap.wire.request_info import RequestInfo


def at_once(work):
    """A Run without a thread."""
    return maybeDeferred(work)


class Later:
    """A Run whose work is done when the test says so."""

    def __init__(self):
        self.waiting = []

    def __call__(self, work):
        done = Deferred()
        self.waiting.append((work, done))
        return done

    def step(self):
        work, done = self.waiting.pop(0)
        maybeDeferred(work).chainDeferred(done)


def traced_memory(make):
    """Bytes of the object that `make` returns."""
    tracemalloc.start()
    try:
        kept = make()
        now, _ = tracemalloc.get_traced_memory()
        del kept
        return now
    finally:
        tracemalloc.stop()


class Request(RequestInfo):
    """A request whose `cancel` and `flush` a test may replace."""


def request_info(number=1, **changes):
    values = {
        "id": str(number),
        "method": "POST",
        "path": "/v1/chat/completions",
        "stored_path": "/v1/chat/completions",
        "model": "owl",
        "requested": "owl",
        "headers": [(b"content-type", b"application/json"), (b"authorization", b"Bearer k-1")],
        "remote_ip": "10.0.0.1",
        "started": 0.0,
        "timestamp": 1_770_000_000.25,
        "streaming": False,
        "tracked": True,
        "metered": True,
    }
    cancel = changes.pop("cancel", None)
    request = Request(**{**values, **changes})
    if cancel is not None:
        request.cancel = cancel
    return request
