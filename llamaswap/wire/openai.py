"""The bodies that clients parse when the proxy itself responds: the error envelope and its plainer forms.

Which failure has which status is decided in `web/errors`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape

from llamaswap.wire.ollama import ADMIN_PATHS, BLOBS, INFERENCE_PATHS

SOURCE = "llama-swap"  # clients distinguish the proxy's errors from a server's by this member

KINDS: Mapping[int, tuple[str, str]] = {
    400: ("invalid_request_error", "bad_request"),
    401: ("authentication_error", "unauthorized"),
    403: ("authentication_error", "forbidden"),
    404: ("invalid_request_error", "not_found"),
    409: ("invalid_request_error", "conflict"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
    502: ("server_error", "bad_gateway"),
    503: ("server_error", "service_unavailable"),
    504: ("server_error", "gateway_timeout"),
}


def kind(status: int) -> tuple[str, str]:
    """`type` and `code` of the envelope for a status."""
    found = KINDS.get(status)
    if found is not None:
        return found
    if 400 <= status < 500:
        return "invalid_request_error", "invalid_request"
    return "server_error", "internal_error"


def speaks_anthropic(path: str) -> bool:
    """Whether callers of this path (as received or as forwarded) parse Anthropic's documents."""
    return path.startswith(("/v1/messages", "/v/messages", "/messages"))


def speaks_ollama(path: str) -> bool:
    """Whether callers of this path parse Ollama's documents."""
    return path in INFERENCE_PATHS or path in ADMIN_PATHS or path.startswith(BLOBS)


def document(status: int, message: str, *, code: str | None = None, path: str = "") -> dict[str, object]:
    """The envelope as a value. Callers of the messages API also get the top-level `type` that their SDK reads."""
    error_type, default = kind(status)
    error = {"message": message, "type": error_type, "param": None, "code": code or default}
    if speaks_anthropic(path):
        return {"type": "error", "src": SOURCE, "error": error}
    return {"src": SOURCE, "error": error}


def encode(value: object) -> bytes:
    """Compact JSON in UTF-8; what cannot be encoded (a lone surrogate) becomes a question mark."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def envelope(
    status: int, message: str, accept: str = "", *, code: str | None = None, path: str = ""
) -> tuple[bytes, bytes]:
    """An error as (content type, body) in the form that the `Accept` text asks for, by default JSON."""
    if speaks_ollama(path):
        return b"application/json", encode({"error": message})
    wanted = accept.lower()
    if "text/plain" in wanted:
        return b"text/plain", f"{SOURCE}: {message}".encode("utf-8", "replace")
    if "text/html" in wanted:
        page = f"<html><body><h1>{SOURCE}</h1><p>{escape(message)}</p></body></html>"
        return b"text/html", page.encode("utf-8", "replace")
    return b"application/json", encode(document(status, message, code=code, path=path))
