"""What one copy of a model has done: Triton's counters, exactly. Plain additions on the loop; read by RPC and by Prometheus.

Never decides anything. Durations are nanoseconds, as in ModelStatistics; every request is charged the durations of the
execution it took part in. What adds up, always: a request that the model was asked for ends in `success` or in one of
`failures`, whose sum is `fail`. The rows of `batches`, each as often as it was executed, are `inference_count`; how often that
was is `execution_count`. `queue` counts the requests that reached the engine, `compute_infer` those whose execution ended well,
whether or not somebody still waited for the answer.
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


@dataclass(slots=True)  # not frozen: one is made for every execution, at half the price
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


_RESPONSE_INDEXES = 128
"""Responses of one request that are told apart; those after are counted as the last of them."""


@dataclass(slots=True)
class ResponseTimes:
    """The n-th responses of a decoupled model's requests."""

    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    empty_response: Duration = field(default_factory=Duration)
    cancel: Duration = field(default_factory=Duration)


@dataclass(slots=True)
class CopyStatistics:
    """The counters of one copy."""

    load_s: float = 0.0
    """How long it took until the copy could answer."""
    memory_bytes: int = 0
    """By how much the process grew meanwhile; 0 = not known."""
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
    responses: list[ResponseTimes] = field(default_factory=list)
    """By their index in a request's answer."""
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

    def responded(self, index: int, ns: int, *, empty: bool = False) -> None:
        """A decoupled model gave the response of this index, so long after the one before, or after its request began."""
        times = self._response(index)
        if empty:
            times.empty_response.add(ns)
        else:
            times.compute_infer.add(ns)
            times.compute_output.add(0)
        times.success.add(ns)

    def response_failed(self, index: int, reason: Failure, ns: int) -> None:
        """A request that had begun ended, so long after its last response, without the one of this index."""
        times = self._response(index)
        (times.cancel if reason is Failure.CANCELED else times.fail).add(ns)

    def failed(self, reason: Failure, ns: int) -> None:
        """One request ended without an answer, this long after it came."""
        self.failures[reason] += 1
        self.fail.add(ns)

    def _response(self, index: int) -> ResponseTimes:
        index = min(index, _RESPONSE_INDEXES - 1)
        while len(self.responses) <= index:
            self.responses.append(ResponseTimes())
        return self.responses[index]
