"""The worker's counters for Prometheus, under Triton's names. Read when scraped: nothing is added on a request's way.

Labels are `model` and `version` of open copies (and Triton's failure reasons), so their number is bounded by what is loaded.
Source: Triton's docs/user_guide/metrics.md for names and meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from worker.models import ModelTable
from worker.statistics import CopyStatistics
from worker.types import Inference

_LABELS = ("model", "version")
_COUNTERS: tuple[tuple[str, str, Callable[[CopyStatistics], float]], ...] = (
    ("nv_inference_request_success", "Requests answered", lambda counted: counted.success.count),
    ("nv_inference_count", "Rows inferred", lambda counted: counted.inference_count),
    ("nv_inference_exec_count", "Executions", lambda counted: counted.execution_count),
    ("nv_inference_request_duration_us", "Time from arrival to answer", lambda counted: counted.success.ns // 1000),
    ("nv_inference_queue_duration_us", "Time in the queue", lambda counted: counted.queue.ns // 1000),
    ("nv_inference_compute_input_duration_us", "Time gathering inputs", lambda counted: counted.compute_input.ns // 1000),
    ("nv_inference_compute_infer_duration_us", "Time computing", lambda counted: counted.compute_infer.ns // 1000),
    ("nv_inference_compute_output_duration_us", "Time dividing outputs", lambda counted: counted.compute_output.ns // 1000),
    ("penstock_prompt_tokens", "Tokens read from prompts", lambda counted: counted.prompt_tokens),
    ("penstock_completion_tokens", "Tokens generated", lambda counted: counted.completion_tokens),
)


def register_metrics(table: ModelTable, inference: Inference, registry: CollectorRegistry) -> None:
    """Have the registry read this worker's counters whenever it is scraped."""
    registry.register(_WorkerCollector(table, inference))


class _Counter(CounterMetricFamily):
    """Triton's counters carry no `_total`."""

    def add_metric(self, labels: Iterable[str], value: float, *_: object) -> None:
        self.add_sample(self.name, dict(zip(self._labelnames, labels, strict=True)), value)


class _WorkerCollector(Collector):
    def __init__(self, table: ModelTable, inference: Inference) -> None:
        self._table = table
        self._inference = inference

    def collect(self) -> Iterable[Metric]:
        copies = [((loaded.spec.model, loaded.spec.version), loaded) for loaded in self._table]
        for name, meaning, read in _COUNTERS:
            family = _Counter(name, meaning, labels=_LABELS)
            for labels, loaded in copies:
                family.add_metric(labels, read(loaded.statistics))
            yield family
        failures = _Counter("nv_inference_request_failure", "Requests without an answer", labels=(*_LABELS, "reason"))
        pending = GaugeMetricFamily("nv_inference_pending_request_count", "Requests waiting for the engine", labels=_LABELS)
        first = HistogramMetricFamily(
            "nv_inference_first_response_histogram_ms", "Time to the first response of a decoupled model", labels=_LABELS
        )
        for labels, loaded in copies:
            for reason, count in loaded.statistics.failures.items():
                failures.add_metric((*labels, reason.value), count)
            pending.add_metric(labels, loaded.pending_requests)
            if loaded.spec.decoupled:
                seen = loaded.statistics.first_response
                buckets = [(str(bound), float(count)) for bound, count in zip(seen.bounds_ms, seen.counts, strict=True)]
                first.add_metric(labels, [*buckets, ("+Inf", float(seen.count))], seen.sum_ms)
        yield failures
        yield pending
        yield first
        yield GaugeMetricFamily("penstock_worker_in_flight", "Requests in flight", value=self._inference.load.in_flight)
        yield GaugeMetricFamily(
            "penstock_worker_queued_rows", "Rows waiting for engines", value=self._inference.load.queued_rows
        )
