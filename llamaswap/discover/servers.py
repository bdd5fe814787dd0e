"""OpenAI-compatible servers that run on this machine: the ports that such programs use are asked for their models.

Only the loopback is asked, each port once, with one deadline for the whole answer: what listens there may be anything.
"""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
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
ANSWER = 1.0  # seconds a local server has to list its models
LARGEST = 1024 * 1024  # bytes of a listing; a thousand models are a tenth of it
MOST_MODELS = 200  # of one server
OURS = "llama-swap"  # owner of the models that a server like this one lists: it stands in front of others itself

Ask = Callable[[str], Any]
"""URL of a server -> its /v1/models document. Raises OSError, HTTPException or ValueError."""


def ask(url: str) -> Any:
    """Ask a server for its models."""
    parts = urlsplit(url)
    until = time.monotonic() + ANSWER
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=ANSWER)
    try:
        connection.connect()
        connected: socket.socket = connection.sock
        connection.request("GET", "/v1/models", headers={"Accept": "application/json", "User-Agent": "llamaswap"})
        response = connection.getresponse()
        if response.status != 200:
            raise ValueError(f"status {response.status}")
        body = b""
        # A server that sends a byte now and then would pass a limit on silence alone.
        while (left := until - time.monotonic()) > 0 and len(body) <= LARGEST:
            connected.settimeout(left)
            piece = response.read1(65536)
            if not piece:
                return json.loads(body)
            body += piece
        raise ValueError("the answer is too long, or takes too long")
    finally:
        connection.close()


def servers(ask: Ask = ask, ports: Mapping[int, str] = PORTS, skip: Collection[int] = ()) -> list[FoundServer]:
    """Those that answer with a list of models, except at the ports `skip`."""

    def look(port: int) -> FoundServer | None:
        url = f"http://127.0.0.1:{port}"
        try:
            rows = ask(url)["data"][:MOST_MODELS]
            if rows and all(row.get("owned_by") == OURS for row in rows):
                return None
            return FoundServer(ports[port], url, tuple(str(row["id"]) for row in rows))
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, AttributeError):
            return None  # nobody, or something else

    chosen = [port for port in ports if port not in skip]
    with ThreadPoolExecutor(max(1, len(chosen))) as pool:
        return [server for server in pool.map(look, chosen) if server is not None]
