"""Answers in the order of the requests, where several executions run side by side.

A request joins the line of its priority when its execution begins, which is the order of arrival; its answer leaves when
those before it have left, were cancelled or ran out of time. Pure: nothing runs or waits here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from worker.batching.jobs import Answer, Job


class Departures:
    """The lines of one model. Bounded by the rows that its slots run at once, and the answers that wait for those."""

    def __init__(self) -> None:
        self._lines: dict[int, deque[Job]] = {}

    def join(self, batch: Sequence[Job]) -> None:
        for job in batch:
            job.answer = None
            self._lines.setdefault(job.priority, deque()).append(job)

    def leave(self, done: Iterable[tuple[Job, Answer]] = ()) -> list[tuple[Job, Answer]]:
        """Take in these answers; give those whose turn it is."""
        for job, answer in done:
            job.answer = answer
        leaving: list[tuple[Job, Answer]] = []
        for line in self._lines.values():
            while line and (line[0].answer is not None or line[0].future.done()):
                job = line.popleft()
                if job.answer is not None:
                    leaving.append((job, job.answer))
        return leaving
