"""Which waiting requests make up the next execution. Pure: time is an argument, nothing runs or waits here.

Rows are what counts, not requests. The queue is first in, first out within a priority, and a more urgent priority goes first.
One execution takes requests from the front until the next one would exceed the rows, or has another shape or datatype:
nothing overtakes within its priority, so nothing starves behind a shape that is in fashion.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from runtime.errors import Code, PenstockError

DEFAULT_PRIORITY = 100
"""What a request without a priority has; smaller is more urgent, as in Triton."""

DEFAULT_QUEUE_SIZE = 1024


class QueueFull(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="QUEUE_FULL"):
    """The model's queue holds all it may."""


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    max_rows: int
    """Rows in one execution; 0 = every request is an execution of its own."""
    delay_s: float = 0.0
    """How long the oldest request may wait for others while the engine is idle."""
    preferred_rows: frozenset[int] = frozenset()
    max_requests: int = DEFAULT_QUEUE_SIZE


T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Waiting(Generic[T]):
    """One request and its place in the queue."""

    work: T
    rows: int
    shape: object
    """Equal for requests that may share an execution."""
    arrived_s: float
    priority: int = DEFAULT_PRIORITY
    expires_s: float | None = None
    """When it stops being worth an execution."""
    queued: bool = field(default=False, init=False)


class BatchQueue(Generic[T]):
    """Requests that wait for the engine. Holds at most `max_requests`; a withdrawn one frees its place at once."""

    def __init__(self, policy: BatchPolicy) -> None:
        self._policy = policy
        self._levels: dict[int, OrderedDict[int, Waiting[T]]] = {}
        self._requests = 0
        self._rows = 0

    @property
    def requests(self) -> int:
        return self._requests

    @property
    def rows(self) -> int:
        return self._rows

    def offer(self, waiting: Waiting[T]) -> None:
        """Take a place at the end of its priority. Raises QueueFull."""
        if self._requests >= self._policy.max_requests:
            raise QueueFull(
                f"Exceeds maximum queue size: {self._requests} of {self._policy.max_requests} requests wait; back off",
                retry_after_s=0.1,
            )
        level = self._levels.get(waiting.priority)
        if level is None:
            level = self._levels[waiting.priority] = OrderedDict()
        level[id(waiting)] = waiting
        waiting.queued = True
        self._requests += 1
        self._rows += waiting.rows

    def withdraw(self, waiting: Waiting[T]) -> bool:
        """Give up its place; False where it had none any more."""
        if not waiting.queued:
            return False
        level = self._levels[waiting.priority]
        del level[id(waiting)]
        if not level:
            del self._levels[waiting.priority]
        waiting.queued = False
        self._requests -= 1
        self._rows -= waiting.rows
        return True

    def expire(self, now_s: float) -> list[Waiting[T]]:
        """Withdraw and return what has expired."""
        expired = [waiting for waiting in self if waiting.expires_s is not None and waiting.expires_s <= now_s]
        for waiting in expired:
            self.withdraw(waiting)
        return expired

    def take(self, now_s: float) -> Sequence[Waiting[T]]:
        """Withdraw and return the next execution's requests; empty while it is better to wait, or nothing does."""
        chosen = self._choose(now_s)
        for waiting in chosen:
            self.withdraw(waiting)
        return chosen

    def due_s(self) -> float | None:
        """When `take` will give something although nothing more arrives; None where nothing waits."""
        front, _ = self._front()
        return min(waiting.arrived_s for waiting in front) + self._policy.delay_s if front else None

    def __iter__(self) -> Iterator[Waiting[T]]:
        """In the order in which they will be taken."""
        if len(self._levels) == 1:
            (level,) = self._levels.values()
            return iter(level.values())
        return (waiting for priority in sorted(self._levels) for waiting in self._levels[priority].values())

    def _choose(self, now_s: float) -> Sequence[Waiting[T]]:
        front, closed = self._front()
        if closed and sum(waiting.rows for waiting in front) == self._policy.max_rows:
            return front
        if preferred := self._preferred(front):
            return front[:preferred]
        if not front or closed or self._policy.delay_s <= 0:
            return front
        oldest_s = min(waiting.arrived_s for waiting in front)
        return front if now_s >= oldest_s + self._policy.delay_s else ()

    def _front(self) -> tuple[list[Waiting[T]], bool]:
        """The longest run of requests that may go together, and whether it can grow no more."""
        front: list[Waiting[T]] = []
        rows = 0
        for waiting in self:
            if front and (waiting.shape != front[0].shape or rows + waiting.rows > self._policy.max_rows):
                return front, True
            front.append(waiting)
            rows += waiting.rows
            if rows >= self._policy.max_rows:
                return front, True
        return front, False

    def _preferred(self, front: Sequence[Waiting[T]]) -> int:
        """How many requests from the front add up to the largest preferred size; 0 = no number of them does."""
        best, rows = 0, 0
        if self._policy.preferred_rows:
            for count, waiting in enumerate(front, 1):
                rows += waiting.rows
                if rows in self._policy.preferred_rows:
                    best = count
        return best
