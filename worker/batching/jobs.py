"""Admitted requests, and what an engine's thread does with several of them at once.

Owns how an execution goes and what is noted about it. How requests become arrays and back is the assembly's question
(`rows.py`, `sequencer.py`); which ones go together is the queue's. Never touches the loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from runtime.errors import PenstockError
from worker.batching.sequences import Member
from worker.engine import Array, TensorEngine
from worker.types import CallContext

Inputs = Mapping[str, Array]
Answer = Sequence[Array] | Exception


@dataclass(slots=True)
class Run:
    """One execution, on the monotonic clock. What it did not get to is 0."""

    rows: int
    requests: int
    begun_ns: int
    gathered_ns: int = 0
    ran_ns: int = 0
    ended_ns: int = 0


@dataclass(slots=True, eq=False)
class Job(Member[Inputs]):
    """One admitted request."""

    future: asyncio.Future[Sequence[Array]] = field(kw_only=True)
    call: CallContext = field(kw_only=True)
    arrived_ns: int = field(kw_only=True)
    run: Run | None = field(default=None, init=False)
    """The last execution that it was in."""
    answer: Answer | None = field(init=False)
    """Held back until those before it have left; set by the departures, and there only."""


@dataclass(slots=True)
class Executed:
    """What the engine's thread gives back: an answer for each job, and the executions that ended well."""

    answers: list[Answer]
    runs: list[Run]


class JobQueue(Protocol):
    """Decides what runs next: `BatchQueue` or `SequenceQueue`."""

    requests: int
    earliest_s: float

    @property
    def rows(self) -> int: ...

    def offer(self, job: Job, timeout_s: float | None = None, /) -> None: ...

    def abandon(self, job: Job, /) -> Sequence[Job]: ...

    def overdue(self, now_s: float, /) -> Sequence[Job]: ...

    def take(self, now_s: float, slot: int, /) -> Sequence[Job]: ...

    def finished(self, batch: Sequence[Job], now_s: float, /) -> None: ...

    def leave(self) -> None: ...

    def due_s(self, slots: Sequence[int], /) -> float | None: ...

    def __iter__(self) -> Iterator[Job]: ...


class Assembly(Protocol):
    """Makes one execution of several jobs."""

    @property
    def repeatable(self) -> bool:
        """Whether an execution that failed has left nothing behind, so that each job can be tried alone."""
        ...

    def gather(self, batch: Sequence[Job], slot: int) -> Inputs: ...

    def divide(self, outputs: Sequence[Array], batch: Sequence[Job]) -> Sequence[Sequence[Array]]:
        """Each job's own outputs. Raises EngineFailed where they are not what the batch should give."""
        ...


class Executor:
    """Runs jobs on an engine. Each slot is used by one thread at a time; different slots may be at once."""

    def __init__(self, engine: TensorEngine, assembly: Assembly, *, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._engine = engine
        self._assembly = assembly
        self._clock_ns = clock_ns

    def execute(self, batch: Sequence[Job], slot: int) -> Executed:
        """One bad request does not spoil its neighbours: after a failure each runs alone, where it may."""
        executed = Executed([], [])
        self._execute_as_one(batch, slot, executed)
        if len(batch) > 1 and isinstance(executed.answers[0], Exception) and self._assembly.repeatable:
            executed.answers.clear()
            for job in batch:
                self._execute_as_one((job,), slot, executed)
        return executed

    def _execute_as_one(self, batch: Sequence[Job], slot: int, executed: Executed) -> None:
        clock_ns = self._clock_ns
        run = Run(0, len(batch), clock_ns())
        for job in batch:
            job.run = run
            run.rows += job.rows
        try:
            inputs = self._assembly.gather(batch, slot)
            run.gathered_ns = clock_ns()
            outputs = self._engine.run(inputs, slot)
            run.ran_ns = clock_ns()
            executed.answers.extend(self._assembly.divide(outputs, batch))
        except PenstockError as error:
            executed.answers.extend([error] * len(batch))
            return
        run.ended_ns = clock_ns()
        executed.runs.append(run)
