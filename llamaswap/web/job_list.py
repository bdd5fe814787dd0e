"""A server's list of its jobs, shortened to those that one key has created."""

from __future__ import annotations

from attrs import define, field

from llamaswap.config import Config
from llamaswap.proxy.exchange import Exchange, ResponseSink
from llamaswap.web.head_facts import HeadFacts
from llamaswap.web.jobs import JobFollower
from llamaswap.web.sink_wrapper import SinkWrapper
from llamaswap.wire.headers import ResponseHeaders
from llamaswap.wire.json_body import JsonBody
from llamaswap.wire.json_members import json_text, split_members, split_values
from llamaswap.wire.openai import envelope

LIST_LIMIT = 1 << 20  # bytes of a list; a longer one is not read


@define(eq=False)
class OwnJobs(SinkWrapper):
    """Takes a server's list, and sends it without the jobs that the key has not created."""

    _config: Config
    _follower: JobFollower
    _list: bytearray | None = field(default=None, init=False)
    _head: tuple[int, bytes, ResponseHeaders] | None = field(default=None, init=False)

    @classmethod
    def install(cls, exchange: Exchange, facts: HeadFacts, follower: JobFollower) -> None:
        """Shorten the response of this exchange."""
        exchange.sink, exchange.translated = cls(exchange.sink, facts.config, follower), True

    def head(self, status: int, reason: bytes, headers: ResponseHeaders, *, raw: bool, data: bytes = b"") -> None:
        """The head. The client gets that of a list when the list is complete. One of our own errors passes."""
        if raw or not 200 <= status < 300:
            self._list = None
            self.sink.head(status, reason, headers, raw=raw, data=data)
            return
        self._head, self._list = (status, reason, headers), bytearray(data)

    def write(self, data: bytes) -> None:
        """Some bytes of the body."""
        if self._list is None:
            self.sink.write(data)
        elif len(self._list) <= LIST_LIMIT:
            self._list += data

    def finish(self) -> None:
        """The response is complete."""
        if self._list is not None and self._head is not None:
            status, reason, headers = self._head
            body = self._own(bytes(self._list))
            if body is None:
                cause = f"the server's list is not JSON, or has over {LIST_LIMIT >> 20} MiB; limit=N asks for a part"
                status, reason = 502, b"Bad Gateway"
                _, body = envelope(status, cause, "application/json")
            kept = [item for item in headers.items if item[0].lower() != b"content-length"]
            kept.append((b"Content-Length", b"%d" % len(body)))
            self.sink.head(status, reason, ResponseHeaders.of(kept), raw=True, data=body)
        self.sink.finish()

    def _own(self, text: bytes) -> bytes | None:
        document = JsonBody.parse(text) if len(text) <= LIST_LIMIT else None
        items = document.raw("data") if document is not None else None
        if document is None or items is None or items[:1] != b"[":
            return None
        own = self._ids()
        kept = [item for item in split_values(items) if _id(item) in own]
        document.set_raw("data", b"[" + b",".join(kept) + b"]")
        for name, place in (("first_id", 0), ("last_id", -1)):
            if document.raw(name) is not None:
                document.set(name, _id(kept[place]) if kept else None)
        return document.render()

    def _ids(self) -> set[str]:
        follower = self._follower
        request = follower.request
        assert request is not None  # its response has not ended
        asked = self._place(request.server)
        servers = follower.directory.servers(follower.owner, follower.path.kind)
        return {name for server, names in servers.items() if self._place(server) == asked for name in names}

    def _place(self, server: str) -> str:
        """What tells two servers apart: a model's ID, or that of a peer."""
        peer = self._config.peer(server) if server not in self._config.models else None
        return server if peer is None else f"peer {peer[0]}"


def _id(item: bytes) -> str:
    return json_text(split_members(item).get("id", b'""')) or ""


_check: type[ResponseSink] = OwnJobs
