"""The loading stream: what a chat client reads while its model is being loaded.

It sends pieces of text as reasoning deltas of an event stream, typed out by timers. Nothing waits for the typing: at
the grant the rest goes out at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from attrs import define, field
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from zope.interface import implementer

from llamaswap.wire.openai import encode
from llamaswap.wire.sse import event

BANNER_RULE = "━" * 5
TICK_INTERVAL = 0.75  # seconds between two pieces; far below the idle limits of reverse proxies
PIECE_LENGTH = 5  # characters in a piece
TYPING_SPEED = 75.0  # bytes typed per second
REMARK_INTERVAL = (5.0, 9.0)

REMARKS = (
    "Unfolding several billion numbers, please mind the corners.",
    "Carrying the weights upstairs, one layer at a time.",
    "The graphics card asks whether it may finish its tea first.",
    "Counting parameters. Lost count. Starting over.",
    "Warming up the attention heads; some of them were asleep.",
    "Negotiating with the memory for a little more room.",
    "Dusting off the key-value cache.",
    "Reading the model to itself, so that it knows what it knows.",
    "Fans at the ready. Yes, that was the noise.",
    "Convincing the tokenizer that this is one word.",
    "Aligning the tensors. They prefer to face the window.",
    "Quantised does not mean small, it turns out.",
    "Looking for the last missing byte under the sofa.",
    "Teaching the previous model to leave gracefully.",
    "Turning the big wheel until the light goes green.",
    "Almost there, in the geological sense.",
    "Polishing the logits until they shine.",
    "Asking the disk nicely. The disk is thinking about it.",
    "Untangling the embeddings; somebody put them away wet.",
    "Good things come to those who wait for their context window.",
    "Shuffling the experts until one of them volunteers.",
    "Your prompt is safe, dry and next to the radiator.",
    "Measuring the temperature: between 0.2 and 0.8.",
    "The llama has been informed and is walking in your direction.",
)


def reasoning(text: str) -> bytes:
    """One piece of text as an event."""
    return event(encode({"choices": [{"delta": {"reasoning_content": text}}]}))


def typed(text: str) -> list[tuple[str, float]]:
    """A text as (piece, seconds to pause after it); there is no pause after the last."""
    pieces = [text[start : start + PIECE_LENGTH] for start in range(0, len(text), PIECE_LENGTH)]
    paced = [(piece, len(piece.encode()) / TYPING_SPEED) for piece in pieces]
    if paced:
        paced[-1] = (paced[-1][0], 0.0)
    return paced


@implementer(IPushProducer)
@define(eq=False)
class LoadingStream:
    """Types a banner, then every 0.75 s the queue position, a remark or a dot.

    `write` takes events; `uniform(a, b)` draws a number of seconds; `remarks` are shown in this order, repeatedly. It
    is the sink's producer: a client that does not read stops the typing, so what waits for it stays bounded.
    """

    clock: IReactorTime
    model: str
    write: Callable[[bytes], None]
    uniform: Callable[[float, float], float]
    remarks: Sequence[str] = REMARKS
    _pieces: deque[tuple[str, float]] = field(factory=deque)
    _timer: IDelayedCall | None = None
    _began: float = 0.0
    _position: int | None = None
    _next_remark: float = 0.0
    _remark: int = 0
    _paused: bool = False
    _over: bool = False

    def start(self) -> None:
        """Show the banner's first piece at once."""
        self._began = self._next_remark = self.clock.seconds()
        self._line(BANNER_RULE, lead=False)
        self._line(f"llama-swap loading model: {self.model}", lead=False)
        self._type()

    def show_position(self, position: int) -> None:
        """The request is at this position (from 1) of the queue; only the newest is shown, at the next tick."""
        self._position = position

    def finish(self) -> None:
        """The wait is over: send everything still to be typed and the closing line at once. Idempotent."""
        if self._over:
            return
        self.stop()
        took = self.clock.seconds() - self._began
        self._pieces.append(("\n", 0.0))
        self._line(f"Done! ({took:.2f}s)", lead=False)
        self._line(BANNER_RULE, lead=False)
        self._pieces.extend(((" ", 0.0), ("\n", 0.0)))
        self.write(b"".join([reasoning(piece) for piece, _ in self._pieces]))
        self._pieces.clear()

    def stop(self) -> None:
        """The client has left: send nothing more. Idempotent."""
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _line(self, text: str, *, lead: bool) -> None:
        if lead:
            self._pieces.append(("\n", 0.0))
        self._pieces.extend(typed(text))
        self._pieces.append((" " if lead else "\n", 0.0))

    def _type(self) -> None:
        """Write pieces up to the next pause; when all are out, wait for the next tick."""
        self._timer = None
        burst: list[bytes] = []
        pause = 0.0
        while self._pieces and not pause:
            piece, pause = self._pieces.popleft()
            burst.append(reasoning(piece))
        if burst:
            self.write(b"".join(burst))
        if not self._over and not self._paused:
            self._timer = (
                self.clock.callLater(pause, self._type) if pause else self.clock.callLater(TICK_INTERVAL, self._tick)
            )

    def _tick(self) -> None:
        now = self.clock.seconds()
        if self._position is not None:
            self._line(f"Queue position: #{self._position}", lead=True)
            self._position = None
            self._next_remark = max(self._next_remark, now + self.uniform(*REMARK_INTERVAL))
        elif now >= self._next_remark and self.remarks:
            self._line(self.remarks[self._remark % len(self.remarks)], lead=True)
            self._remark += 1
            self._next_remark = now + self.uniform(*REMARK_INTERVAL)
        else:
            self._pieces.append((".", 0.0))
        self._type()

    # -- a client that does not read

    def pauseProducing(self) -> None:
        """Stop typing for a while."""
        self._paused = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def resumeProducing(self) -> None:
        """Go on typing."""
        if self._paused and not self._over:
            self._paused = False
            self._timer = self.clock.callLater(0, self._type)

    def stopProducing(self) -> None:
        """The client is gone."""
        self.stop()
