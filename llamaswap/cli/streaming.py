"""A streamed chat response and the times of its pieces: what `run` prints and `bench` measures."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Mapping

from attrs import define, field, frozen

from llamaswap.cli.client import ApiClient, ClientError, JsonObject

CHAT = "/v1/chat/completions"


@frozen
class StreamPiece:
    """One event of the response. `loading`: the text is a loading message of llamaswap."""

    text: str = ""
    reasoning: str = ""
    loading: bool = False
    usage: JsonObject | None = None
    timings: JsonObject | None = None


@define
class StreamStats:
    """The measurements of a response. Times are seconds from the request."""

    text: str = ""
    reasoning: str = ""
    pieces: int = 0
    first: float | None = None
    total: float = 0.0
    usage: JsonObject = field(factory=dict)
    timings: JsonObject = field(factory=dict)

    @property
    def tokens(self) -> int:
        """Tokens of the response, or its pieces if the server does not count tokens."""
        count = self.usage.get("completion_tokens")
        return int(count) if count else self.pieces

    @property
    def rate(self) -> float | None:
        """Tokens per second after the first."""
        if self.first is None or self.tokens < 2 or self.total <= self.first:
            return None
        return (self.tokens - 1) / (self.total - self.first)

    def add(self, piece: StreamPiece, at: float) -> None:
        """Count one piece that came `at` seconds after the request."""
        self.total = at
        if piece.loading:
            return
        if piece.text or piece.reasoning:
            self.pieces += 1
            if self.first is None:
                self.first = at
        self.text += piece.text
        self.reasoning += piece.reasoning
        self.usage.update(piece.usage or {})
        self.timings.update(piece.timings or {})


def stream(client: ApiClient, body: Mapping[str, object]) -> Generator[StreamPiece, None, None]:
    """Request a chat response and yield its pieces as they come. Raises ClientError, also for an error event."""
    request = {**body, "stream": True, "stream_options": {"include_usage": True}}
    for _, data in client.events(CHAT, request):
        if data.strip() == "[DONE]":
            return
        try:
            document = json.loads(data)
        except ValueError:
            raise ClientError(f"an event is not JSON: {data[:200]}") from None
        if "error" in document:
            error = document["error"]
            raise ClientError(str(error.get("message", error) if isinstance(error, dict) else error))
        choices = document.get("choices") or [{}]
        delta = choices[0].get("delta") or {}
        # A loading message has none of the other members that the events of every server have.
        loading = set(document) == {"choices"} and set(delta) == {"reasoning_content"}
        yield StreamPiece(
            loading=loading,
            text=delta.get("content") or "",
            reasoning=delta.get("reasoning_content") or delta.get("reasoning") or "",
            usage=document.get("usage"),
            timings=document.get("timings"),
        )


def collect(
    client: ApiClient,
    body: Mapping[str, object],
    show: Callable[[StreamPiece], None] = lambda piece: None,
    now: Callable[[], float] = time.perf_counter,
) -> StreamStats:
    """The measurements of the whole response; `show` is called with each piece as it comes."""
    began = now()
    stats = StreamStats()
    for piece in stream(client, body):
        stats.add(piece, now() - began)
        show(piece)
    stats.total = now() - began
    return stats
