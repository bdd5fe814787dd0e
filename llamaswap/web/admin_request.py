"""A request and its response as handlers see them.

Only the handlers of streams use twisted.web, by `AdminRequest.request`; the others return a value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from urllib.parse import parse_qs

from attrs import AttrsInstance, define, field, fields, frozen
from twisted.web.http import Request

from llamaswap.errors import BodyTooLarge
from llamaswap.observe.query import timestamp
from llamaswap.web.errors import HttpError
from llamaswap.web.key_access import OPEN, KeyAccess
from llamaswap.wire.headers import PROXY_HEADERS, address_host, from_this_machine, real_client_address

JsonObject = dict[str, object]

JSON = b"application/json"
MAX_JSON_BYTES = 1 << 20  # of an admin request's body; the largest bodies contain the prompt of a load test
TEXT = b"text/plain; charset=utf-8"


@frozen
class Response:
    """A whole response. `content_type` None leaves the header out."""

    status: int = 200
    body: bytes = field(default=b"", repr=False)
    content_type: bytes | None = TEXT
    headers: tuple[tuple[bytes, bytes], ...] = ()


def json_bytes(value: object) -> bytes:
    """Compact JSON in UTF-8, without a line end. A record becomes an object without the members that have their default
    value."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=_members)
    return text.encode("utf-8", "replace")


def _members(record: AttrsInstance) -> JsonObject:
    members: JsonObject = {}
    for member in fields(type(record)):
        value = getattr(record, member.name)
        factory = getattr(member.default, "factory", None)
        if value != (member.default if factory is None else factory()):
            members[member.name] = value
    return members


def json_answer(value: object, status: int = 200, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Response:
    """A response with a JSON document, ended by one line feed."""
    return Response(status, json_bytes(value) + b"\n", JSON, headers)


def redirect(location: str, status: int, method: bytes) -> Response:
    """A redirection. Only a GET shows a page, so only it gets one."""
    headers = ((b"Location", location.encode("utf-8")),)
    if method not in (b"GET", b"HEAD"):
        return Response(status, b"", None, headers)
    target = location.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return Response(status, f'<a href="{target}">{target}</a>\n'.encode(), b"text/html; charset=utf-8", headers)


@define(eq=False)
class AdminRequest:
    """One admin request. `variables` are the route's path variables, percent-decoded; `access` is what its key allows,
    once that was checked. `keyless`: no client needs a key."""

    request: Request
    variables: Mapping[str, str] = field(factory=dict)
    access: KeyAccess = OPEN
    keyless: bool = False
    _query: dict[str, list[str]] | None = None

    @property
    def key_name(self) -> str:
        """The name of the client's API key, once that was checked. It is kept with the request, for the access log."""
        return str(getattr(self.request, "key_name", ""))

    @key_name.setter
    def key_name(self, name: str) -> None:
        self.request.key_name = name  # type: ignore[attr-defined]

    @property
    def method(self) -> bytes:
        """GET, POST, ..."""
        return bytes(self.request.method)

    @property
    def path(self) -> str:
        """The path in normal form, still encoded, as text."""
        return bytes(self.request.path).decode("latin-1")

    @property
    def query_string(self) -> str:
        """The raw query, without the question mark."""
        return bytes(self.request.uri).partition(b"?")[2].decode("latin-1")

    def with_query(self, path: str) -> str:
        """A path with this request's query."""
        return f"{path}?{self.query_string}" if self.query_string else path

    @property
    def query(self) -> dict[str, list[str]]:
        """The decoded query; keys without a value are kept."""
        if self._query is None:
            self._query = parse_qs(self.query_string, keep_blank_values=True)
        return self._query

    def text(self, name: str) -> str:
        """The first value of a query parameter, trimmed; empty when absent (blank and absent are the same)."""
        return self.query.get(name, [""])[0].strip()

    def time(self, name: str) -> float | None:
        """The unix seconds of a query parameter in RFC 3339; None if it is absent."""
        text = self.text(name)
        try:
            return timestamp(text) if text else None
        except (ValueError, OverflowError):
            raise HttpError(400, f"invalid '{name}' timestamp, use RFC3339 format")

    def first(self, name: bytes) -> bytes | None:
        """The first value of a header (`name` in lower case), or None."""
        values = self.request.requestHeaders.getRawHeaders(name)
        return values[0] if values else None

    def has_tag(self, condition: bytes, tag: bytes) -> bool:
        """Whether a conditional header names this entity tag, or any. A proxy that compresses makes tags weak, and a
        shell takes their quotes; they name the same content."""
        given = (one.strip().removeprefix(b"W/") for one in (self.first(condition) or b"").split(b","))
        return any(one in (b"*", tag, tag.strip(b'"')) for one in given)

    @property
    def client(self) -> str:
        """The client's address, as in the access log."""
        return real_client_address(self.first, address_host(self.request.getClientAddress()))

    @property
    def local_port(self) -> int | None:
        """The port that the client connected to; None for a socket without one."""
        return getattr(self.request.getHost(), "port", None)

    @property
    def from_this_machine(self) -> bool:
        """Whether the client is on this machine, by its socket and the headers of reverse proxies."""
        raw = self.request.requestHeaders.getRawHeaders
        forwarding = [(name, value) for name in PROXY_HEADERS for value in raw(name, ())]
        return from_this_machine(forwarding, address_host(self.request.getClientAddress()))

    @property
    def may_run_commands(self) -> bool:
        """Whether the client may decide which commands the server runs: without keys only from this machine."""
        return not self.keyless or self.from_this_machine

    @property
    def accept(self) -> str:
        """The Accept header's text."""
        return (self.first(b"accept") or b"").decode("latin-1")

    @property
    def body(self) -> bytes:
        """The whole request body (twisted.web has spooled it before a handler is called)."""
        content = self.request.content
        if content is None:
            return b""
        content.seek(0)
        return bytes(content.read())

    def json_object(self, refusal: str) -> JsonObject:
        """The JSON object in the body; HttpError(400) with the message `refusal` if it is anything else."""
        try:
            value = first_json(self.body)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise HttpError(400, refusal)
        return value

    def answer(self, answer: Response) -> bytes:
        """Put head and status on the request; returns the body to write."""
        request = self.request
        request.setResponseCode(answer.status)
        headers = request.responseHeaders
        if answer.content_type is not None:
            headers.setRawHeaders(b"Content-Type", [answer.content_type])
        for name, value in answer.headers:
            headers.setRawHeaders(name, [value])
        if answer.status not in (204, 304):
            headers.setRawHeaders(b"Content-Length", [b"%d" % len(answer.body)])
        return answer.body


def positive(text: str, most: int) -> int | None:
    """The number from 1 to `most` that a text writes in digits; None if it is anything else."""
    if not (text.isascii() and text.isdigit()) or len(text) > len(str(most)):
        return None
    return number if 1 <= (number := int(text)) <= most else None


def first_json(text: bytes) -> object:
    """The first JSON value of a body; the rest is ignored.

    ValueError if the body does not begin with one, BodyTooLarge beyond `MAX_JSON_BYTES`,
    because it is parsed on the reactor.
    """
    if len(text) > MAX_JSON_BYTES:
        raise BodyTooLarge(MAX_JSON_BYTES)
    decoded = text.decode("utf-8", "replace").lstrip(" \t\r\n")
    try:
        value: object = json.JSONDecoder().raw_decode(decoded)[0]
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value
