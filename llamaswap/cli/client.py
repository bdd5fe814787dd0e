"""A small HTTP client for a running llamaswap (or any OpenAI-compatible server): JSON, lines and event streams.

It blocks, as commands may. Whatever goes wrong is a `ClientError` whose text an operator can act on.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
from collections.abc import Callable, Generator, Mapping
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

from attrs import frozen

PAGES = re.compile(r"/(v1|ui)/*$")  # what clients and browsers are given below a server's own address
PROMPT = 10.0  # seconds for what a healthy server answers at once
PATIENT = 24 * 3600.0  # a load, a chat, a followed log: as long as it takes


class ClientError(Exception):
    """The server cannot be reached, refused, or answered with something else than was asked for."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class ClientResponse(Protocol):
    """What is used of `http.client.HTTPResponse`."""

    @property
    def status(self) -> int:
        """The status."""

    def read(self) -> bytes:
        """The rest of the body."""

    def readline(self) -> bytes:
        """The next line with its end; empty at the end."""

    def close(self) -> None:
        """Let the connection go."""


Send = Callable[[str, str, bytes | None, Mapping[str, str], float], ClientResponse]
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
    """What sends to `url`: http://host:port/prefix, https://..., host:port, :port or unix:/path. Raises Trouble."""
    if url.startswith(":"):
        url = f"localhost{url}"  # as -listen takes it
    if url.startswith("unix:"):
        path = url.removeprefix("unix:")
        return _sender(lambda timeout: _UnixConnection(path, timeout), "")
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ClientError(f"{url}: {error}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ClientError(f"{url}: expected http://HOST:PORT, https://HOST or unix:/PATH")
    base = PAGES.sub("", parts.path)
    if parts.scheme == "https":
        context = ssl.create_default_context()
        return _sender(lambda timeout: http.client.HTTPSConnection(host, port, timeout=timeout, context=context), base)
    return _sender(lambda timeout: http.client.HTTPConnection(host, port, timeout=timeout), base)


def _sender(connect: Callable[[float], http.client.HTTPConnection], prefix: str) -> Send:
    base = prefix.rstrip("/")

    def send(method: str, path: str, body: bytes | None, headers: Mapping[str, str], timeout: float) -> ClientResponse:
        connection = connect(timeout)
        try:
            connection.request(method, base + path, body, dict(headers))
            return connection.getresponse()
        except BaseException:
            connection.close()
            raise

    return send


@frozen
class ApiClient:
    """One server. `url` is only told in messages; `key` goes as a Bearer token."""

    url: str
    send: Send
    key: str = ""

    @classmethod
    def at(cls, url: str, key: str = "") -> ApiClient:
        """The client of a URL. Raises Trouble where it is none."""
        return cls(url, sender(url), key)

    def json(self, path: str, body: Any = None, *, method: str | None = None, timeout: float = PROMPT) -> Any:
        """The parsed answer. `body` goes as JSON, with POST unless told otherwise."""
        data = self.text(path, body, method=method, timeout=timeout)
        try:
            return json.loads(data)
        except ValueError:
            raise ClientError(f"{self.url}{path}: the response is not JSON: {data[:200]!r}") from None

    def text(self, path: str, body: Any = None, *, method: str | None = None, timeout: float = PROMPT) -> str:
        """The whole answer as text."""
        response = self.open(path, body, method=method, timeout=timeout)
        try:
            return response.read().decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as error:
            raise ClientError(f"{self.url}{path}: the response ended early: {_words(error)}") from None
        finally:
            response.close()

    def lines(self, path: str, body: Any = None, *, timeout: float = PATIENT) -> Generator[str, None, None]:
        """The answer line by line as it comes, without line ends. Closing the iterator closes the connection."""
        response = self.open(path, body, timeout=timeout)
        try:
            while line := response.readline():
                yield line.decode("utf-8", "replace").rstrip("\r\n")
        except (OSError, http.client.HTTPException) as error:
            raise ClientError(f"{self.url}{path}: the response ended early: {_words(error)}") from None
        finally:
            response.close()

    def events(
        self, path: str, body: Any = None, *, timeout: float = PATIENT
    ) -> Generator[tuple[str, str], None, None]:
        """(event name, data) of each server-sent event; the name is "" where none is given."""
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

    def open(
        self, path: str, body: Any = None, *, method: str | None = None, timeout: float = PROMPT
    ) -> ClientResponse:
        """Ask, and hand out the response of a request that succeeded. Raises Trouble."""
        headers = {"Accept": "application/json, text/event-stream, text/plain", "User-Agent": "llamaswap"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        chosen = method or ("GET" if body is None else "POST")
        try:
            response = self.send(chosen, path, data, headers, timeout)
            if response.status < 400:
                return response
            try:
                told = response.read()
            finally:
                response.close()
        except (OSError, http.client.HTTPException) as error:
            raise ClientError(f"{self.url}: {_words(error)}; {_advice(error)}") from None
        raise ClientError(_refusal(response.status, told, self.key), response.status)


def _words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _advice(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return "SSL_CERT_FILE names a file with the authority to be trusted"
    if isinstance(error, ssl.SSLError):
        return "does it speak TLS? (--url http://... if not)"
    if isinstance(error, http.client.RemoteDisconnected | ConnectionResetError):
        return "does it speak TLS alone? (--url https://... if so)"
    return "is the server running? (--url says where)"


def _refusal(status: int, body: bytes, key: str) -> str:
    """What a server said with an error status, in one line."""
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
