"""A number of bytes that many requests share: bodies in memory and on disk, captures before they are compressed."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define

from llamaswap.errors import NoRoom

MIB = 1024 * 1024


@define(eq=False)
class ByteBudget:
    """Bytes that may be taken together. `bound(used)` returns their number; `words` names the limit behind it."""

    name: str
    bound: Callable[[int], int]
    words: Callable[[], str] | None = None
    used: int = 0

    @property
    def left(self) -> int:
        """How many bytes may still be taken."""
        return max(0, self.bound(self.used) - self.used)

    def take(self, count: int) -> bool:
        """Take `count` bytes if they fit, and return whether they did."""
        if self.used + count > self.bound(self.used):
            return False
        self.used += count
        return True

    def give_back(self, count: int) -> None:
        """Free `count` bytes that were taken."""
        self.used -= count

    def full(self) -> NoRoom:
        """The error for a request whose body does not fit: it names the limit."""
        return NoRoom(self.name if self.words is None else f"{self.name} ({self.words()})")


@define(eq=False)
class TakenBytes:
    """Bytes that were taken from a budget for one request."""

    budget: ByteBudget
    count: int

    @classmethod
    def of(cls, budget: ByteBudget, count: int) -> TakenBytes:
        """Take so many bytes; raises NoRoom."""
        if not budget.take(count):
            raise budget.full()
        return cls(budget, count)

    def release(self) -> None:
        """Give them back. Idempotent."""
        count, self.count = self.count, 0
        self.budget.give_back(count)


UNBOUNDED = ByteBudget("any", lambda used: used + (1 << 62))
