"""What one copy of a model has done: Triton's counters, exactly. Plain additions on the loop; read by RPC and by Prometheus.

Never decides anything. Durations are nanoseconds, as in ModelStatistics; every request is charged the durations of the
execution it took part in.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


class Failure(enum.Enum):
    """Why a request got no answer; Triton's reasons of nv_inference_request_failure."""

    REJECTED = "REJECTED"
    CANCELED = "CANCELED"
    BACKEND = "BACKEND"
    OTHER = "OTHER"


@dataclass(slots=True)
class Duration:
    count: int = 0
    ns: int = 0

    def add(self, ns: int, count: int = 1) -> None:
        self.count += count
        self.ns += ns


@dataclass(frozen=True, slots=True)
class Timing:
    """One execution: gathering its inputs, computing, dividing its outputs."""

    input_ns: int
    infer_ns: int
    output_ns: int


@dataclass(slots=True)
class BatchTimes:
    """Executions of one size."""

    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)


_FIRST_RESPONSE_BOUNDS_MS = (100, 500, 2000, 5000)  # Triton's default buckets of nv_inference_first_response_histogram_ms


@dataclass(slots=True)
class Histogram:
    """Cumulative counts, as Prometheus has them."""

    bounds_ms: tuple[int, ...] = _FIRST_RESPONSE_BOUNDS_MS
    counts: list[int] = field(default_factory=lambda: [0] * len(_FIRST_RESPONSE_BOUNDS_MS))
    count: int = 0
    sum_ms: float = 0.0

    def observe(self, ms: float) -> None:
        self.count += 1
        self.sum_ms += ms
        for index, bound in enumerate(self.bounds_ms):
            if ms <= bound:
                self.counts[index] += 1


@dataclass(slots=True)
class CopyStatistics:
    """The counters of one copy."""

    last_inference_ms: int = 0
    inference_count: int = 0
    """Rows."""
    execution_count: int = 0
    """Executions."""
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    batches: dict[int, BatchTimes] = field(default_factory=dict)
    """By rows; the model's largest batch bounds the keys."""
    failures: dict[Failure, int] = field(default_factory=lambda: dict.fromkeys(Failure, 0))
    first_response: Histogram = field(default_factory=Histogram)
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def executed(self, rows: int, requests: int, timing: Timing, *, wall_ms: int) -> None:
        """One execution of so many rows for so many requests ended well."""
        self.last_inference_ms = wall_ms
        self.inference_count += rows
        self.execution_count += 1
        self.compute_input.add(timing.input_ns * requests, requests)
        self.compute_infer.add(timing.infer_ns * requests, requests)
        self.compute_output.add(timing.output_ns * requests, requests)
        times = self.batches.get(rows)
        if times is None:
            times = self.batches[rows] = BatchTimes()
        times.compute_input.add(timing.input_ns)
        times.compute_infer.add(timing.infer_ns)
        times.compute_output.add(timing.output_ns)

    def failed(self, reason: Failure, ns: int) -> None:
        """One request ended without an answer, this long after it came."""
        self.failures[reason] += 1
        self.fail.add(ns)
