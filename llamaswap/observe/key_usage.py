"""What each API key uses, and the limits on that: counters in memory, of a size that does not grow with the requests.

A request counts against its key when it begins, with an estimate of its tokens; the estimate is replaced by the
server's count when the activity row is stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from attrs import define, field, frozen

from llamaswap.config import ApiKey
from llamaswap.errors import RequestError
from llamaswap.wire.headers import Header, ResponseHeaders
from llamaswap.wire.request_info import RequestInfo, RequestOutcome

MINUTE = 60.0
BUCKETS = 60  # into which a window is divided
BYTES_PER_TOKEN = 4
MAX_ESTIMATE = 8192  # tokens; a body of images is large, and says little
UNNAMED = ApiKey()  # stands for all clients without a named key


@frozen
class KeyLimitReached(RequestError):
    """A limit of the client's API key is reached. Retry after `retry_after` seconds, or raise the limit in `apiKeys`.

    `headers` tell the client how much is left.
    """

    key: str
    limit: str
    retry_after: int = 1
    headers: tuple[Header, ...] = field(default=(), repr=False)
    text = "the API key {self.key} has reached its limit of {self.limit}; try again in {self.retry_after} s"


class BudgetUsedUp(KeyLimitReached):
    """The tokens of the client's API key are used up until some of its use is old enough. Wait, or raise its budget."""


@define(eq=False)
class SlidingSum:
    """The sum of what was added in the last `window` seconds, to a sixtieth of them, rounded up."""

    window: float
    _counts: dict[int, int] = field(factory=dict, init=False)
    _newest: int = field(default=0, init=False)
    _total: int = field(default=0, init=False)

    def _advance(self, now: float) -> int:
        newest = int(now // (self.window / BUCKETS))
        if newest != self._newest:
            self._newest = newest
            # A clock that was set back must not keep what was counted later.
            kept = {at: count for at, count in self._counts.items() if newest - BUCKETS <= at <= newest + 1}
            self._counts, self._total = kept, sum(kept.values())
        return newest

    def add(self, now: float, amount: int, at: float | None = None) -> None:
        """Count an amount at `now`, or at an earlier time `at`. An amount from before the window is ignored."""
        newest = self._advance(now)
        place = newest if at is None else int(at // (self.window / BUCKETS))
        if newest - BUCKETS <= place <= newest:
            self._counts[place] = self._counts.get(place, 0) + amount
            self._total += amount

    def sum(self, now: float) -> int:
        """The sum at `now`."""
        self._advance(now)
        return max(0, self._total)

    def seconds_until(self, now: float, most: int) -> float:
        """How long it takes until the sum is at most `most`, if nothing is added."""
        left = self.sum(now)
        wait = 0.0
        for at in sorted(self._counts):
            if left <= most:
                break
            left -= self._counts[at]
            wait = (at + BUCKETS + 1) * self.window / BUCKETS - now
        return max(0.0, wait)


@define(eq=False)
class KeyMeter:
    """The counters of one key. `refused` counts the requests that a limit refused since the start, `reserved` the
    estimated tokens of requests whose real number is not known yet."""

    key: ApiKey
    running: int = field(default=0, init=False)
    reserved: int = field(default=0, init=False)
    refused: int = field(default=0, init=False)
    requests: SlidingSum = field(factory=lambda: SlidingSum(MINUTE), init=False)
    tokens: SlidingSum = field(factory=lambda: SlidingSum(MINUTE), init=False)
    spent: SlidingSum = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.forget_spent()

    def forget_spent(self) -> None:
        """Count what is spent from 0, in the key's window."""
        self.spent = SlidingSum(self.key.budget.window)

    def refusal(self, now: float, estimate: int) -> KeyLimitReached | None:
        """Why a request of about so many tokens is refused now, None if it is not."""
        key = self.key
        if key.max_parallel and self.running >= key.max_parallel:
            return self._reached(f"{_requests(key.max_parallel)} at the same time", 1.0, now)
        if key.rpm and self.requests.sum(now) >= key.rpm:
            wait = self.requests.seconds_until(now, key.rpm - 1)
            return self._reached(f"{_requests(key.rpm)} in a minute", wait, now)
        for limit, counter, words in (
            (key.tpm, self.tokens, f"{key.tpm} tokens in a minute"),
            (key.budget.tokens, self.spent, f"{key.budget.tokens} tokens in {_in_words(key.budget.window)}"),
        ):
            used = counter.sum(now) if limit else 0
            # A request that is larger than the limit is served if nothing else is: it could never be otherwise.
            if (used and used + estimate > limit) or (limit and used >= limit):
                if self.reserved and used - self.reserved + max(1, estimate) <= limit:
                    return self._reached(f"{words} with the requests in progress", 1.0, now)
                wait = counter.seconds_until(now, max(0, min(limit - 1, limit - estimate)))
                return self._reached(words, wait, now, budget=counter is self.spent)
        return None

    def _reached(self, words: str, wait: float, now: float, *, budget: bool = False) -> KeyLimitReached:
        self.refused += 1
        kind = BudgetUsedUp if budget else KeyLimitReached
        return kind(self.key.name, words, max(1, math.ceil(wait)), tuple(self.headers(now)))

    def headers(self, now: float) -> Iterable[Header]:
        """What the client learns of its limits, in the words of OpenAI's API."""
        key = self.key
        if key.rpm:
            yield from _headers(b"requests", key.rpm, self.requests, now)
        if key.tpm:
            yield from _headers(b"tokens", key.tpm, self.tokens, now)
        elif key.budget.tokens:
            yield from _headers(b"tokens", key.budget.tokens, self.spent, now)


def _headers(what: bytes, limit: int, counter: SlidingSum, now: float) -> Iterable[Header]:
    yield b"x-ratelimit-limit-" + what, b"%d" % limit
    yield b"x-ratelimit-remaining-" + what, b"%d" % max(0, limit - counter.sum(now))
    yield b"x-ratelimit-reset-" + what, b"%ds" % math.ceil(counter.seconds_until(now, 0))


def _requests(count: int) -> str:
    return f"{count} request{'s' if count > 1 else ''}"


def _in_words(seconds: float) -> str:
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds % size == 0:
            count = int(seconds // size)
            return f"{count} {unit}s" if count > 1 else f"one {unit}"
    return f"{seconds:g} seconds"


@define(eq=False)
class CountedRequest:
    """The observer and the `TokenCharge` of one request."""

    _meter: KeyMeter
    _wall: Callable[[], float]
    began: float
    reserved: int
    metered: bool
    standing: tuple[int, float]
    headers: tuple[Header, ...] = ()
    refusal: RequestError | None = None
    _spent: SlidingSum = field(init=False)  # that the estimate is a part of
    _granted: bool = field(default=False, init=False)
    _status: int = field(default=0, init=False)
    _streams: bool = field(default=False, init=False)
    _written: int = field(default=0, init=False)  # tokens, as far as they can be told from what passed

    def __attrs_post_init__(self) -> None:
        self._spent = self._meter.spent

    def granted(self) -> None:
        """From now on the server may work for the request."""
        self._granted = True

    def retargeted(self) -> None:
        """The same request, to another model."""

    def head(self, status: int, headers: ResponseHeaders) -> None:
        """Only a success is counted."""
        self._status, self._streams = status, headers.event_stream

    def data(self, data: bytes) -> None:
        """Servers send an event for each token; of a document only the length is known."""
        self._written += data.count(b"data:") if self._streams else len(data) // BYTES_PER_TOKEN

    def ended(self, outcome: RequestOutcome, error: Exception | None) -> None:
        """The request leaves the key's place; its tokens are known later."""
        if self.refusal is None:
            self._meter.running -= 1
            if not self.metered:
                self.settle(0)

    def settle(self, tokens: int) -> None:
        """Count the server's number of tokens in place of the estimate; without it, what was seen of them."""
        if self.refusal is not None:
            return
        if tokens < 0:
            worked = self._status < 400 if self._status else self._granted
            tokens = self.reserved + self._written if worked else 0
        now = self._wall()
        self._meter.reserved -= self.reserved
        for counter in (self._meter.tokens, self._meter.spent):
            if counter is not self._meter.spent or counter is self._spent:
                counter.add(now, -self.reserved, self.began)
            counter.add(now, tokens)


@define(eq=False)
class KeyUsage:
    """The counters of all keys, and the `RequestObserverFactory` that applies the limits. `wall` gives unix seconds."""

    wall: Callable[[], float]
    _meters: dict[str, KeyMeter] = field(factory=dict, init=False)

    def retune(self, keys: Sequence[ApiKey]) -> dict[str, bool]:
        """Use these keys; returns the names of those whose past use is not known yet, each with whether that of
        the last minute is not known either. A key whose limits change keeps its counters."""
        named = {key.name: key for key in keys if key.name}
        if named:
            named[""] = UNNAMED
        new: dict[str, bool] = {}
        for name, key in named.items():
            meter = self._meters.get(name)
            if meter is None:
                meter = self._meters[name] = KeyMeter(key)
                new[name] = True
            meter.key = key
            if meter.spent.window != key.budget.window:
                meter.forget_spent()
                new[name] = False
        for name in self._meters.keys() - named.keys():
            del self._meters[name]
        return new

    def remember(self, name: str, at: float, tokens: int) -> None:
        """Count what a key used in its window before the start."""
        meter = self._meters.get(name)
        if meter is not None:
            now = self.wall()
            meter.spent.add(now, tokens, min(now, at))

    def remember_minute(self, name: str, at: float, tokens: int, requests: int) -> None:
        """Count what a key used in the last minute before the start. This is counted apart from the use in the window,
        whose times are too coarse for a minute."""
        meter = self._meters.get(name)
        if meter is not None:
            now = self.wall()
            meter.tokens.add(now, tokens, min(now, at))
            meter.requests.add(now, requests, min(now, at))

    def meter(self, name: str) -> KeyMeter | None:
        """The counters of a key, None if it has none."""
        return self._meters.get(name)

    def open(self, request: RequestInfo) -> CountedRequest | None:
        """Count a request and reserve its tokens, unless a limit of its key refuses it."""
        meter = self._meters.get(request.key_name)
        if meter is None:
            return None
        now = self.wall()
        estimate = min(MAX_ESTIMATE, len(request.captured_body or b"") // BYTES_PER_TOKEN) if request.metered else 0
        standing = meter.key.priority, float(meter.spent.sum(now))
        counted = CountedRequest(meter, self.wall, now, estimate, request.metered, standing)
        counted.refusal = meter.refusal(now, estimate)
        if counted.refusal is None:
            meter.running += 1
            meter.reserved += estimate
            meter.requests.add(now, 1)
            meter.tokens.add(now, estimate)
            meter.spent.add(now, estimate)
        counted.headers = tuple(meter.headers(now))
        request.charge = counted
        return counted
