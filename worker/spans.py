"""Trace spans of what happened to a request inside of the worker: queue, batch, execute.

Made afterwards from the times that were taken anyway, so a request without a sampled trace costs one comparison. Never logs
and never holds a payload.
"""

from __future__ import annotations

from dataclasses import dataclass

from worker.types import CallContext


@dataclass(frozen=True, slots=True)
class ExecutionTimes:
    """Of one request, on the monotonic clock."""

    arrived_ns: int
    started_ns: int
    """Its batch began to be gathered."""
    gathered_ns: int
    ran_ns: int
    ended_ns: int


def trace_execution(call: CallContext, model: str, version: str, times: ExecutionTimes, *, rows: int, batch_rows: int) -> None:
    """The spans of one request that ended well, as children of the caller's."""
    if not call.traceparent:
        return
