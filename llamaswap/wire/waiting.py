"""What a streaming client receives while its request waits for a model, in the form of its API.

A comment means nothing to a reader of an event stream, nor does a `ping` to Anthropic's clients, nor a line without
text to Ollama's: a client that does not know of the wait is not disturbed by them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from llamaswap.wire.openai import encode, speaks_anthropic
from llamaswap.wire.sse import event

_WAIT = re.compile(rb'(?:^|[,;])\s*wait\s*=\s*"?([0-9]{1,9})"?\s*(?:[,;]|$)', re.IGNORECASE)


def notice(path: str, facts: Mapping[str, object]) -> bytes:
    """One notice as the client of this path reads it; that of Ollama's clients is made by its translator."""
    if speaks_anthropic(path):
        return event(encode({"type": "ping", "llamaswap": facts}), "ping")
    return b": llamaswap " + encode(facts) + b"\n\n"


def preferred_wait(prefer: bytes | None) -> float | None:
    """The seconds of `wait` in a Prefer header (RFC 7240), None if there are none."""
    found = _WAIT.search(prefer) if prefer else None
    return None if found is None else float(found[1])
