"""What `hosts join` does after it has joined: it runs Ray's node, and ends it in order."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from http.client import HTTPConnection, HTTPException

from attrs import define, field

from llamaswap.cli.context import CliContext
from llamaswap.cluster.ray_node import as_group
from llamaswap.config.endpoints import TOKEN_HEADER

REJOIN_DELAY = 3.0  # seconds between the end of a node and the next attempt
NODE_INTERVAL = 0.2  # seconds between two looks at whether the node runs
LEAVE_INTERVAL = 0.2  # seconds between two questions to the agent
LEAVE_TIMEOUT = 5.0
MAX_ANSWER = 1 << 20  # bytes


@define
class Leaving:
    """Has the agent at this address stop its models, for at most `limit` seconds."""

    address: str
    port: int
    token: str = field(repr=False)
    limit: float
    context: CliContext

    def wait(self, node: subprocess.Popen[bytes], now: threading.Event) -> None:
        """Return when nothing runs any more, the node has ended, or it is to end `now`."""
        until, noted = time.monotonic() + self.limit, False
        while node.poll() is None and not now.is_set() and time.monotonic() < until:
            models = self._models()
            if not models:
                return
            if not noted:
                self.context.note(f"{', '.join(models)}: waiting for requests to end; end it again to stop them now")
                noted = True
            now.wait(LEAVE_INTERVAL)

    def _models(self) -> Sequence[str]:
        """What still runs here; nothing if the agent does not answer."""
        connection = HTTPConnection(self.address, self.port, timeout=LEAVE_TIMEOUT)
        try:
            connection.request("POST", "/leave", b"", {TOKEN_HEADER: self.token})
            found: Sequence[str] = json.loads(connection.getresponse().read(MAX_ANSWER))["models"]
            return found
        except (OSError, HTTPException, ValueError, KeyError, TypeError):
            return ()
        finally:
            connection.close()


def run_node(context: CliContext, words: list[str], environ: Mapping[str, str], head: str, leaving: Leaving) -> None:
    """Run Ray's node, again and again, until this command is to end."""
    ending, ending_now = threading.Event(), threading.Event()

    def end(*_: object) -> None:
        (ending_now if ending.is_set() else ending).set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    while not ending.is_set():
        node = subprocess.Popen(as_group(words), env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while node.poll() is None and not ending.wait(NODE_INTERVAL):
            pass
        if node.poll() is None:
            leaving.wait(node, ending_now)
            node.terminate()
            node.wait()
        elif not ending.is_set():
            context.note(f"the node ended; it joins {head} again in {REJOIN_DELAY:.0f} s", "yellow")
            ending.wait(REJOIN_DELAY)
