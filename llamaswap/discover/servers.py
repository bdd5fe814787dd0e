"""OpenAI-compatible servers that run on this machine: the usual ports of such programs are asked for their models.

Only the loopback interface is asked, each port once, with a deadline for the whole response: any program may listen
there.
"""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from llamaswap.discover.config_writer import FoundServer

PORTS: Mapping[int, str] = {
    1234: "lmstudio",
    1337: "jan",
    5000: "tabbyapi",
    5001: "koboldcpp",
    8000: "vllm",
    8001: "openai-8001",
    8080: "llama-server",
    8081: "openai-8081",
    8188: "comfyui",
    11434: "ollama",
    30000: "sglang",
}
TIMEOUT = 1.0  # seconds for a server to list its models
MAX_BYTES = 1024 * 1024  # of a list; that of a thousand models has a tenth of it
MAX_MODELS = 200  # of one server
OWNER = "llama-swap"  # of models listed by a server like this one, which is a proxy of others

Listing = dict[str, list[dict[str, str]]]
Ask = Callable[[str], Listing]
"""URL of a server -> its /v1/models document. Raises OSError, HTTPException or ValueError."""


def ask(url: str) -> Listing:
    """Ask a server for its models."""
    parts = urlsplit(url)
    until = time.monotonic() + TIMEOUT
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT)
    try:
        connection.connect()
        connected: socket.socket = connection.sock
        connection.request("GET", "/v1/models", headers={"Accept": "application/json", "User-Agent": "llamaswap"})
        response = connection.getresponse()
        if response.status != 200:
            raise ValueError(f"status {response.status}")
        body = b""
        # The time is limited as a whole: a server that sends a byte now and then never reaches a socket's timeout.
        while (left := until - time.monotonic()) > 0 and len(body) <= MAX_BYTES:
            connected.settimeout(left)
            piece = response.read1(65536)
            if not piece:
                document: Listing = json.loads(body)
                return document
            body += piece
        raise ValueError("the response is too long, or takes too long")
    finally:
        connection.close()


def servers(ask: Ask = ask, ports: Mapping[int, str] = PORTS, skip: Collection[int] = ()) -> list[FoundServer]:
    """The servers that list models, without those at the ports `skip`."""

    def find(port: int) -> FoundServer | None:
        url = f"http://127.0.0.1:{port}"
        try:
            rows = ask(url)["data"][:MAX_MODELS]
            if rows and all(row.get("owned_by") == OWNER for row in rows):
                return None
            return FoundServer(ports[port], url, tuple(str(row["id"]) for row in rows))
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, AttributeError):
            return None  # no server, or another program

    chosen = [port for port in ports if port not in skip]
    with ThreadPoolExecutor(max(1, len(chosen))) as pool:
        return [server for server in pool.map(find, chosen) if server is not None]
