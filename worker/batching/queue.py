"""Which waiting requests make up the next execution. Pure: time is an argument, nothing runs or waits here.

Rows are what counts, not requests. The queue is first in, first out within a priority, and a more urgent priority goes first.
One execution takes requests from the front until the next one would exceed the rows, or has another shape or datatype:
nothing overtakes within its priority, so nothing starves behind a shape that is in fashion. A request that waited longer than
its priority allows is rejected, or goes to the back: there it waits, oldest first, until nothing in time waits at any priority.
Source: Triton's ModelDynamicBatching and ModelQueuePolicy for the rules.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Generic, TypeVar

from runtime.errors import Code, PenstockError
from worker.types import ModelSpec, QueuePolicy, TimeoutAction

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
    """Of all priorities together; the priorities' own bounds hold beside it."""
    priority_levels: int = 0
    """Priorities go from 1, the most urgent, to this; 0 = all requests are alike."""
    default_priority: int = 0
    default_queue: QueuePolicy = field(default_factory=QueuePolicy)
    queues: Mapping[int, QueuePolicy] = field(default_factory=dict)
    """By priority, where it is not the default."""


def queue_places(spec: ModelSpec) -> int:
    """Requests that may wait for the model."""
    return spec.batching.max_queue_size or DEFAULT_QUEUE_SIZE


def batch_policy(spec: ModelSpec) -> BatchPolicy:
    """What the manifest asks for, and the worker's defaults where it asks for nothing."""
    batching = spec.batching
    return BatchPolicy(
        max_rows=spec.max_batch_size,
        delay_s=batching.max_queue_delay_us / 1e6,
        preferred_rows=frozenset(batching.preferred_batch_sizes),
        max_requests=queue_places(spec),
        priority_levels=batching.priority_levels,
        default_priority=batching.default_priority_level,
        default_queue=batching.default_queue_policy,
        queues=batching.priority_queue_policies,
    )


T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Waiting(Generic[T]):
    """One request and its place in a queue."""

    work: T
    rows: int
    shape: object
    """Equal for requests that may share an execution."""
    arrived_s: float
    priority: int = 0
    """One of the levels once it is queued; 0 = the default one."""
    expires_s: float | None = None
    """When it has waited as long as its priority allows."""
    deadline_s: float | None = None
    """When nobody wants its answer any more."""
    queued: bool = field(default=False, init=False)
    late: bool = field(default=False, init=False)
    """It has expired and waits at the back."""


W = TypeVar("W", bound=Waiting[Any])


@dataclass(slots=True)
class _Level(Generic[W]):
    policy: QueuePolicy
    entries: OrderedDict[int, W] = field(default_factory=OrderedDict)
    late: int = 0
    """Its requests that wait at the back."""


class BatchQueue(Generic[W]):
    """Requests that wait for the engine. A withdrawn one frees its place at once."""

    def __init__(self, policy: BatchPolicy) -> None:
        self.requests = 0
        self.rows = 0
        self.earliest_s = math.inf
        """No waiting request has its time up before this."""
        self._policy = policy
        self._gathers = policy.delay_s > 0 or bool(policy.preferred_rows)
        numbers = range(policy.priority_levels + 1) if policy.priority_levels else (policy.default_priority,)
        self._levels: dict[int, _Level[W]] = {
            number: _Level(policy.queues.get(number, policy.default_queue)) for number in numbers
        }
        self._late: OrderedDict[int, W] = OrderedDict()

    def offer(self, waiting: W, timeout_s: float | None = None) -> None:
        """Take a place at the end of its priority. `timeout_s` is what the request itself asks for. Raises QueueFull."""
        policy = self._policy
        if not 0 < waiting.priority <= policy.priority_levels:
            waiting.priority = policy.default_priority
        level = self._levels[waiting.priority]
        limits = level.policy
        if self.requests >= policy.max_requests or 0 < limits.max_queue_size <= len(level.entries) + level.late:
            raise self._full(level)
        if timeout_s is not None or limits.default_timeout_s is not None:
            timeout_s = allowed_wait_s(limits, timeout_s)
            if timeout_s is not None:
                waiting.expires_s = earlier(waiting.expires_s, waiting.arrived_s + timeout_s)
        if waiting.expires_s is not None or waiting.deadline_s is not None:
            self._watch(waiting.expires_s, waiting.deadline_s)
        level.entries[id(waiting)] = waiting
        waiting.queued = True
        self.requests += 1
        self.rows += waiting.rows

    def withdraw(self, waiting: W) -> bool:
        """Give up its place; False where it had none any more."""
        if not waiting.queued:
            return False
        level = self._levels[waiting.priority]
        if waiting.late:
            del self._late[id(waiting)]
            level.late -= 1
        else:
            del level.entries[id(waiting)]
        waiting.queued = False
        self.requests -= 1
        self.rows -= waiting.rows
        return True

    def abandon(self, waiting: W) -> Sequence[W]:
        """Withdraw. Gives those that cannot run without it, withdrawn as well: here none."""
        self.withdraw(waiting)
        return ()

    def overdue(self, now_s: float) -> Sequence[W]:
        """The requests whose time is up, in the order in which they would have run; the caller abandons them.

        Those that are to be delayed go to the back instead.
        """
        overdue: list[W] = []
        self.earliest_s = math.inf
        for waiting in list(self):
            if waiting.deadline_s is not None and waiting.deadline_s <= now_s:
                overdue.append(waiting)
                continue
            if not waiting.late and waiting.expires_s is not None and waiting.expires_s <= now_s:
                if self._levels[waiting.priority].policy.timeout_action is TimeoutAction.REJECT:
                    overdue.append(waiting)
                    continue
                self._send_back(waiting)
            self._watch(None if waiting.late else waiting.expires_s, waiting.deadline_s)
        return overdue

    def take(self, now_s: float, slot: int = 0) -> Sequence[W]:
        """Withdraw and return the next execution's requests; empty while it is better to wait, or nothing does.

        What is overdue has to be abandoned before. Any slot may run any request.
        """
        front, rows, closed = self._front()
        if self._gathers:
            front = self._worth(front, rows, closed, now_s)
        for waiting in front:
            self.withdraw(waiting)
        return front

    def finished(self, batch: Sequence[W], now_s: float) -> None:
        """An execution has ended: nothing here depends on it."""

    def leave(self) -> None:
        """Nothing more will be offered: nothing here depends on it."""

    def due_s(self, slots: Sequence[int] = ()) -> float | None:
        """When `take` will give something although nothing more arrives; None where nothing waits."""
        front, _, _ = self._front()
        return min(waiting.arrived_s for waiting in front) + self._policy.delay_s if front else None

    def __iter__(self) -> Iterator[W]:
        """In the order in which they will be taken."""
        if len(self._levels) == 1 and not self._late:
            (level,) = self._levels.values()
            return iter(level.entries.values())
        return chain(*(level.entries.values() for level in self._levels.values()), self._late.values())

    def _watch(self, expires_s: float | None, deadline_s: float | None) -> None:
        if expires_s is not None and expires_s < self.earliest_s:
            self.earliest_s = expires_s
        if deadline_s is not None and deadline_s < self.earliest_s:
            self.earliest_s = deadline_s

    def _full(self, level: _Level[W]) -> QueueFull:
        count, limit, where = self.requests, self._policy.max_requests, ""
        if count < limit:
            count, limit = len(level.entries) + level.late, level.policy.max_queue_size
            where = " at this priority" if self._policy.priority_levels else ""
        return QueueFull(f"Exceeds maximum queue size: {count} of {limit} requests wait{where}; back off", retry_after_s=0.1)

    def _send_back(self, waiting: W) -> None:
        level = self._levels[waiting.priority]
        del level.entries[id(waiting)]
        level.late += 1
        waiting.late = True
        behind = []
        while self._late and (last := next(reversed(self._late.values()))).arrived_s > waiting.arrived_s:
            behind.append(self._late.pop(id(last)))
        for each in (waiting, *reversed(behind)):
            self._late[id(each)] = each

    def _worth(self, front: list[W], rows: int, closed: bool, now_s: float) -> list[W]:
        """What of the front is to go now rather than to wait for more."""
        if closed and rows == self._policy.max_rows:
            return front
        if preferred := self._preferred(front):
            return front[:preferred]
        if not front or closed or self._policy.delay_s <= 0:
            return front
        oldest_s = min(waiting.arrived_s for waiting in front)
        return front if now_s >= oldest_s + self._policy.delay_s else []

    def _front(self) -> tuple[list[W], int, bool]:
        """The longest run of requests that may go together, its rows, and whether it can grow no more."""
        front: list[W] = []
        max_rows = self._policy.max_rows
        rows, shape = 0, None
        for waiting in self:
            if not front:
                shape = waiting.shape
            elif waiting.shape != shape or rows + waiting.rows > max_rows:
                return front, rows, True
            front.append(waiting)
            rows += waiting.rows
            if rows >= max_rows:
                return front, rows, True
        return front, rows, False

    def _preferred(self, front: Sequence[W]) -> int:
        """How many requests from the front add up to the largest preferred size; 0 = no number of them does."""
        best, rows = 0, 0
        if self._policy.preferred_rows:
            for count, waiting in enumerate(front, 1):
                rows += waiting.rows
                if rows in self._policy.preferred_rows:
                    best = count
        return best


def allowed_wait_s(policy: QueuePolicy, asked_s: float | None) -> float | None:
    """How long a request may wait: its own timeout can shorten the policy's where that lets it. None = for ever."""
    if asked_s is None or not policy.allow_timeout_override:
        return policy.default_timeout_s
    return earlier(policy.default_timeout_s, asked_s)


def earlier(one_s: float | None, other_s: float) -> float:
    return other_s if one_s is None or other_s < one_s else one_s
