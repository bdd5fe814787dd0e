"""A small blocking HTTP client for a running llamaswap (or any OpenAI-compatible server): JSON, lines, event streams.

Every failure is a `ClientError` whose text an operator can act on.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlsplit

from attrs import frozen

from llamaswap.errors import plain_error

PAGES = re.compile(r"/(v1|ui)/*$")  # what clients and browsers append to a server's address
RESPONSE_TIMEOUT = 10.0  # seconds for what a healthy server answers at once
WORK_TIMEOUT = 24 * 3600.0  # seconds for a load, a chat or a followed log

JsonObject = dict[str, Any]


class ClientError(Exception):
    """The server cannot be reached, refused the request, or sent an unusable response."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(plain_error(message))
        self.status = status


Send = Callable[[str, str, bytes | None, Mapping[str, str], float], http.client.HTTPResponse]
"""(method, path, body, headers, seconds between two bytes) -> response; raises OSError or HTTPException."""


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def sender(url: str) -> Send:
    """Sends to `url`: http://host:port/prefix, https://..., host:port, :port or unix:/path. Raises ClientError."""
    connect, prefix = _connector(url)

    def send(
        method: str, path: str, body: bytes | None, headers: Mapping[str, str], timeout: float
    ) -> http.client.HTTPResponse:
        connection = connect(timeout)
        try:
            connection.request(method, prefix + path, body, dict(headers))
            return connection.getresponse()
        except BaseException:
            connection.close()
            raise

    return send


def _connector(url: str) -> tuple[Callable[[float], http.client.HTTPConnection], str]:
    """(makes a connection with a timeout, what all paths begin with)."""
    if url.startswith("unix:"):
        return lambda timeout: _UnixConnection(url.removeprefix("unix:"), timeout), ""
    address = f"localhost{url}" if url.startswith(":") else url  # as -listen takes it
    try:
        parts = urlsplit(address if "://" in address else f"http://{address}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ClientError(f"{url}: {error}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ClientError(f"{url}: expected http://HOST:PORT, https://HOST or unix:/PATH")
    connection = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return lambda timeout: connection(host, port, timeout=timeout), PAGES.sub("", parts.path).rstrip("/")


@frozen
class ApiClient:
    """One server. `url` is only used in messages; `key` is sent as a Bearer token."""

    url: str
    send: Send
    key: str = ""

    @classmethod
    def at(cls, url: str, key: str = "") -> ApiClient:
        """The client of a URL. Raises ClientError."""
        return cls(url, sender(url), key)

    def json(
        self, path: str, body: object = None, *, method: str | None = None, timeout: float = RESPONSE_TIMEOUT
    ) -> Any:
        """The parsed response. `body` is sent as JSON, by default with POST."""
        data = self.text(path, body, method=method, timeout=timeout)
        try:
            return json.loads(data)
        except ValueError:
            raise ClientError(f"{self.url}{path}: the response is not JSON: {data[:200]!r}") from None

    def text(
        self, path: str, body: object = None, *, method: str | None = None, timeout: float = RESPONSE_TIMEOUT
    ) -> str:
        """The whole response as text."""
        with self._open(path, body, method, timeout) as response:
            return response.read().decode("utf-8", "replace")

    def lines(self, path: str, body: object = None, *, timeout: float = WORK_TIMEOUT) -> Generator[str, None, None]:
        """The response line by line as it comes, without line ends. Closing the iterator closes the connection."""
        with self._open(path, body, None, timeout) as response:
            while line := response.readline():
                yield line.decode("utf-8", "replace").rstrip("\r\n")

    def events(
        self, path: str, body: object = None, *, timeout: float = WORK_TIMEOUT
    ) -> Generator[tuple[str, str], None, None]:
        """(event name, data) of each server-sent event; the name is "" if the event has none."""
        name = ""
        data: list[str] = []
        for line in self.lines(path, body, timeout=timeout):
            if not line:
                if data:
                    yield name, "\n".join(data)
                name, data = "", []
                continue
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "event":
                name = value
            elif field == "data":
                data.append(value)
        if data:
            yield name, "\n".join(data)

    def news(self, topic: str, timeout: float = RESPONSE_TIMEOUT) -> Generator[tuple[str, Any], None, None]:
        """(type, data) of each message of a topic of /api/events."""
        for _, data in self.events(f"/api/events?topics={topic}", timeout=timeout):
            message = json.loads(data)
            yield message.get("type"), json.loads(message["data"])

    @contextmanager
    def _open(
        self, path: str, body: object, method: str | None, timeout: float
    ) -> Generator[http.client.HTTPResponse, None, None]:
        headers = {"Accept": "application/json, text/event-stream, text/plain", "User-Agent": "llamaswap"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        method = method or ("GET" if body is None else "POST")
        try:
            response = self.send(method, path, data, headers, timeout)
        except (OSError, http.client.HTTPException) as error:
            raise ClientError(f"{self.url}: {_reason(error)}; {_advice(error)}") from None
        try:
            if response.status >= 400:
                raise ClientError(_refusal(response.status, response.read(), self.key), response.status)
            yield response
        except (OSError, http.client.HTTPException) as error:
            raise ClientError(f"{self.url}{path}: the response ended early: {_reason(error)}") from None
        finally:
            response.close()


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no response in time"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _advice(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return "set SSL_CERT_FILE to a file with the certificate authority to trust"
    if isinstance(error, ssl.SSLError):
        return "does it speak TLS? (--url http://... if not)"
    if isinstance(error, http.client.RemoteDisconnected | ConnectionResetError):
        return "does it speak TLS only? (--url https://... if so)"
    return "is the server running? (choose another one with --url)"


def _refusal(status: int, body: bytes, key: str) -> str:
    """An error response in one line."""
    text = body.decode("utf-8", "replace").strip()
    try:
        document = json.loads(text)
        error = document.get("error", document) if isinstance(document, dict) else document
        message = error.get("message", text) if isinstance(error, dict) else str(error)
    except ValueError:
        message = text
    if status == 401:
        message = "the key is not accepted" if key else "a key is needed: --key, or LLAMASWAP_API_KEY"
    return f"{status}: {message or 'no reason given'}"


def quoted(name: str) -> str:
    """A model's name as a part of a path; its slashes stay."""
    return quote(name, safe="/:@")
