"""The state of the Responses API, for servers that have none: a response is kept, and a later request continues it.

Responses are kept in memory only, each for the key that asked for it. A request that continues one is sent to its
server with the whole conversation as its input.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

from attrs import define, field, frozen
from twisted.internet.interfaces import IReactorTime

from llamaswap.web.errors import HttpError
from llamaswap.wire.form import form_value
from llamaswap.wire.headers import ResponseHeaders
from llamaswap.wire.json_body import JsonBody
from llamaswap.wire.json_members import json_text, split_members, split_values
from llamaswap.wire.openai import encode
from llamaswap.wire.request_info import RequestOutcome

PATHS = frozenset((b"/v1/responses", b"/v/responses"))
TOTAL_LIMIT = 64 << 20  # bytes of all that is kept
OWNER_LIMIT = 32 << 20  # bytes of what is kept for one key
LARGEST = 8 << 20  # bytes of one response with its input; a larger one is not kept
DOCUMENT_LIMIT = 1 << 20  # bytes of one response's document
CONTINUED_LIMIT = 256 << 20  # bytes of the conversations of all requests that are under way
LONGEST_CHAIN = 1000  # responses of one conversation
LIFETIME = 86_400.0  # seconds since a response was used last
LONGEST_ID = 256  # characters
DEFAULT_PAGE, LARGEST_PAGE = 20, 100  # items
KEPT_STATUSES = ("", "completed", "incomplete")
_EVENT_END = re.compile(rb"\r?\n\r?\n")
_FINAL = (b"response.completed", b"response.incomplete")
_ITEM = b"response.output_item.done"


@frozen
class StoredResponse:
    """A response's document as its server sent it, and what continues it: its input's and output's items, without
    brackets. `previous` is the ID of the response that it continued, if any."""

    document: bytes = field(repr=False)
    previous: str
    given: bytes = field(repr=False)
    made: bytes = field(repr=False)

    @property
    def size(self) -> int:
        """The bytes that it takes."""
        return len(self.document) + len(self.given) + len(self.made)


@define(eq=False)
class ResponseStore:
    """Keeps responses. Those that were not used for longest are dropped first."""

    clock: IReactorTime
    _stored: dict[tuple[str, str], StoredResponse] = field(factory=dict, init=False)
    _used_at: dict[tuple[str, str], float] = field(factory=dict, init=False)
    _bytes: dict[str, int] = field(factory=dict, init=False)

    def add(self, owner: str, identity: str, response: StoredResponse) -> None:
        """Keep a response, unless it is too large."""
        self.forget(owner, identity)
        if response.size > LARGEST:
            return
        self._stored[owner, identity] = response
        self._bytes[owner] = self._bytes.get(owner, 0) + response.size
        self._touch(owner, identity)
        for key in list(self._surplus(owner)):
            self.forget(*key)

    def _surplus(self, owner: str) -> Iterator[tuple[str, str]]:
        """What is to be dropped: the outdated, and the oldest until the rest is small enough."""
        outdated = self.clock.seconds() - LIFETIME
        total, own = sum(self._bytes.values()) - TOTAL_LIMIT, self._bytes[owner] - OWNER_LIMIT
        for key, used in self._used_at.items():
            if used >= outdated and total <= 0 and own <= 0:
                return
            if used < outdated or total > 0 or key[0] == owner:
                size = self._stored[key].size
                total, own = total - size, own - (size if key[0] == owner else 0)
                yield key

    def _touch(self, owner: str, identity: str) -> None:
        self._used_at.pop((owner, identity), None)
        self._used_at[owner, identity] = self.clock.seconds()  # as the last

    def forget(self, owner: str, identity: str) -> bool:
        """Drop a response; returns whether there was one."""
        response = self._stored.pop((owner, identity), None)
        if response is None:
            return False
        del self._used_at[owner, identity]
        self._bytes[owner] -= response.size
        if not self._bytes[owner]:
            del self._bytes[owner]
        return True

    def find(self, owner: str, identity: str) -> StoredResponse | None:
        """The response of this key with this ID."""
        response = self._stored.get((owner, identity))
        if response is None or self._used_at[owner, identity] < self.clock.seconds() - LIFETIME:
            return None
        self._touch(owner, identity)
        return response

    def is_of_another(self, owner: str, identity: str) -> bool:
        """Whether another key has a response with this ID."""
        return any(name == identity and key != owner for key, name in self._stored)

    def chain(self, owner: str, identity: str) -> list[StoredResponse]:
        """The responses of a conversation up to this one, the first one first. Raises HttpError(400)."""
        found: list[StoredResponse] = []
        while identity:
            response = self.find(owner, identity)
            if response is None or len(found) >= LONGEST_CHAIN:
                raise HttpError(
                    400,
                    f"Previous response with id '{identity[:LONGEST_ID]}' not found: it was not stored, was too large, "
                    "has expired, or the server was restarted; send the whole conversation as the input",
                    "previous_response_not_found",
                )
            found.append(response)
            identity = response.previous
        return found[::-1]

    def context(self, owner: str, identity: str) -> list[bytes]:
        """The items of a conversation up to this response and with it, in parts without brackets."""
        return [part for response in self.chain(owner, identity) for part in (response.given, response.made) if part]

    # -- what the paths of a response answer ---------------------------------------------------------------

    def answer(self, owner: str, method: bytes, identity: str, part: str, query: bytes) -> bytes | None:
        """The document for a request about a response; None if it is not kept here."""
        response = self.find(owner, identity) if method != b"POST" else None
        if response is None or (part and (part != "/input_items" or method == b"DELETE")):
            return None
        if method == b"DELETE":
            self.forget(owner, identity)
            return encode({"id": identity, "object": "response", "deleted": True})
        if part:
            return self._items(owner, identity, response, query)
        document = JsonBody.parse(response.document)
        assert document is not None  # it was read from an object
        document.set("previous_response_id", response.previous or None)
        return document.render()

    def _items(self, owner: str, identity: str, response: StoredResponse, query: bytes) -> bytes:
        parts = [*(self.context(owner, response.previous) if response.previous else ()), response.given]
        items = split_values(b"[" + b",".join(part for part in parts if part) + b"]")
        numbers = list(range(len(items)))
        if form_value(query, "order") != "asc":
            numbers.reverse()
        names = {f"item_{identity}_{number}": number for number in numbers}
        limit, after = form_value(query, "limit"), form_value(query, "after")
        count = min(max(int(limit), 1), LARGEST_PAGE) if limit.isdecimal() and len(limit) < 5 else DEFAULT_PAGE
        left = list(names)
        if after:
            left = left[left.index(after) + 1 :] if after in names else []
        page = list(islice(left, count))
        data = b",".join(_with_id(items[names[name]], name) for name in page)
        ends = encode({"first_id": page[0] if page else None, "last_id": page[-1] if page else None})
        more = b"true" if len(left) > len(page) else b"false"
        return b'{"object":"list","data":[%b],"has_more":%b,%b' % (data, more, ends[1:])


def _with_id(item: bytes, name: str) -> bytes:
    body = JsonBody.parse(item)
    if body is None:
        return item
    body.set("id", name)
    body.set("type", "message", if_absent=True)
    return body.render()


def given_items(raw: bytes | None) -> bytes:
    """The items of a request's `input`, without brackets: it is a text, or a list of items."""
    if raw is None:
        return b""
    if raw[:1] == b'"':
        return b'{"type":"message","role":"user","content":[{"type":"input_text","text":%b}]}' % raw
    return raw[1:-1].strip() if raw[:1] == b"[" and raw[-1:] == b"]" else b""


@define(eq=False)
class ResponseKeeper:
    """Observes one request for a response, and keeps the response when it is complete."""

    store: ResponseStore
    owner: str
    previous: str
    given: bytes = field(repr=False)
    _stream: bool = field(default=False, init=False)
    _reading: bool = field(default=False, init=False)
    _rest: bytearray = field(factory=bytearray, init=False, repr=False)
    _made: list[bytes] = field(factory=list, init=False, repr=False)

    def granted(self) -> None:
        """Nothing is known yet."""

    def retargeted(self) -> None:
        """Nothing is known yet."""

    def head(self, status: int, headers: ResponseHeaders) -> None:
        """Only a success without a content coding is read."""
        self._stream = headers.event_stream
        encoded = any(name.lower() == b"content-encoding" for name, _ in headers.items)
        self._reading = 200 <= status < 300 and not encoded

    def data(self, data: bytes) -> None:
        """Some of a document, or of a stream, whose last event has the document."""
        if not self._reading:
            return
        start = max(0, len(self._rest) - 3)  # where the end of an event may have begun
        self._rest += data
        while self._stream and (end := _EVENT_END.search(self._rest, start)) is not None:
            self._event(bytes(self._rest[: end.start()]))
            del self._rest[: end.end()]
            start = 0
        if len(self._rest) > DOCUMENT_LIMIT:
            self._reading = False
            self._rest.clear()

    def _event(self, event: bytes) -> None:
        final = any(kind in event for kind in _FINAL)
        if not final and _ITEM not in event:
            return
        lines = (line[5:].strip() for line in event.splitlines() if line.startswith(b"data:"))
        members = split_members(b"".join(lines))
        kind = (json_text(members.get("type", b'""')) or "").encode()
        if kind in _FINAL:
            self._keep(members.get("response", b""))  # not later: the client may continue it now
        elif kind == _ITEM and sum(map(len, self._made)) < DOCUMENT_LIMIT:
            self._made.append(members.get("item", b"{}"))

    def ended(self, outcome: RequestOutcome, error: Exception | None) -> None:
        """Keep a response that is a document, if all of it came."""
        if outcome == "complete" and self._reading and not self._stream:
            self._keep(bytes(self._rest))
        self.given = b""
        self._rest.clear()
        self._made.clear()

    def _keep(self, document: bytes) -> None:
        members = split_members(document)
        identity, status = (_text(members.get(name)) for name in ("id", "status"))
        made = given_items(members.get("output")) or b",".join(self._made)
        if identity and len(identity) <= LONGEST_ID and status in KEPT_STATUSES:
            self.store.add(self.owner, identity, StoredResponse(document, self.previous, self.given, made))


def _text(raw: bytes | None) -> str:
    return json_text(raw) or "" if raw is not None and raw[:1] == b'"' else ""
