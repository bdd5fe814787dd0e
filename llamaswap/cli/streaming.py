"""A streamed chat answer, piece by piece, and when each piece came: what `run` prints and `bench` measures."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any

from attrs import define, field, frozen

from llamaswap.cli.client import ApiClient, ClientError

CHAT = "/v1/chat/completions"


@frozen
class StreamPiece:
    """One event of the answer. `reasoning` is the model's thinking; `loading`: the text is the
    service's own, sent while the model loads."""

    text: str = ""
    reasoning: str = ""
    loading: bool = False
    usage: Mapping[str, Any] | None = None
    timings: Mapping[str, Any] | None = None


@define
class StreamStats:
    """What a whole answer came to. Times are seconds from asking; `tokens` are the server's count where it gave one."""

    text: str = ""
    reasoning: str = ""
    pieces: int = 0
    first: float | None = None
    total: float = 0.0
    usage: dict[str, Any] = field(factory=dict)
    timings: dict[str, Any] = field(factory=dict)

    @property
    def tokens(self) -> int:
        """Tokens of the answer; where the server does not count them, the pieces it sent."""
        count = self.usage.get("completion_tokens")
        return int(count) if count else self.pieces

    @property
    def rate(self) -> float | None:
        """Tokens a second after the first."""
        if self.first is None or self.tokens < 2 or self.total <= self.first:
            return None
        return (self.tokens - 1) / (self.total - self.first)

    def add(self, piece: StreamPiece, at: float) -> None:
        """Count one piece that came `at` seconds after asking."""
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


def stream(client: ApiClient, body: Mapping[str, Any]) -> Generator[StreamPiece, None, None]:
    """Ask for a chat answer and give its pieces as they come. Raises Trouble, also for an error told mid-stream."""
    order = {**body, "stream": True, "stream_options": {"include_usage": True}}
    for _, data in client.events(CHAT, order):
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
        # What is sent while the model loads carries none of the members that every server's events have.
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
    body: Mapping[str, Any],
    show: Callable[[StreamPiece], None] = lambda piece: None,
    now: Callable[[], float] = time.perf_counter,
) -> StreamStats:
    """The whole answer; `show` sees each piece as it comes."""
    began = now()
    tally = StreamStats()
    for piece in stream(client, body):
        tally.add(piece, now() - began)
        show(piece)
    tally.total = now() - began
    return tally
