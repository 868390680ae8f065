"""The worker's counters for Prometheus, under Triton's names. Read when scraped: nothing is added on a request's way.

Labels are `model` and `version` of open copies (and Triton's failure reasons), so their number is bounded by what is loaded;
tenants are no labels. What the machine does is `machine_metrics.py`'s. Source: Triton's docs/user_guide/metrics.md for names
and meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from worker.copies import LoadedModel
from worker.inference import TableInference
from worker.models import ModelTable
from worker.statistics import CopyStatistics

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


_GAUGES: tuple[tuple[str, str, Callable[[LoadedModel], float]], ...] = (
    ("nv_inference_pending_request_count", "Requests waiting for the engine", lambda loaded: loaded.pending_requests),
    ("nv_model_load_duration_secs", "Time until the copy could answer", lambda loaded: loaded.statistics.load_s),
)
_BATCH_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def register_metrics(table: ModelTable, inference: TableInference, registry: CollectorRegistry) -> None:
    """Have the registry read this worker's counters whenever it is scraped."""
    registry.register(_WorkerCollector(table, inference))


class _Counter(CounterMetricFamily):
    """Triton's counters carry no `_total`."""

    def add_metric(self, labels: Iterable[str], value: float, *_: object) -> None:
        self.add_sample(self.name, dict(zip(self._labelnames, labels, strict=True)), value)


class _WorkerCollector(Collector):
    def __init__(self, table: ModelTable, inference: TableInference) -> None:
        self._table = table
        self._inference = inference

    def collect(self) -> Iterable[Metric]:
        copies = list(self._table)
        for name, meaning, read in _COUNTERS:
            counter = _Counter(name, meaning, labels=_LABELS)
            for loaded in copies:
                counter.add_metric(_labels(loaded), read(loaded.statistics))
            yield counter
        for name, meaning, look in _GAUGES:
            gauge = GaugeMetricFamily(name, meaning, labels=_LABELS)
            for loaded in copies:
                gauge.add_metric(_labels(loaded), look(loaded))
            yield gauge
        yield _failures(copies)
        yield _first_responses(copies)
        yield _batch_rows(copies)
        yield from self._admission()

    def _admission(self) -> Iterable[Metric]:
        load, guard, holds = self._inference.load, self._inference.guard, self._inference.holds
        for name, meaning, value in (
            ("penstock_worker_in_flight", "Requests in flight", load.in_flight),
            ("penstock_worker_max_in_flight", "Requests that may be in flight", load.max_in_flight),
            ("penstock_worker_queued_rows", "Rows waiting for engines", load.queued_rows),
            ("penstock_worker_tenants", "Tenants with something in flight", guard.tenants),
            ("penstock_worker_holds_waiting", "Holds that wait for a place", holds.waiting),
            ("penstock_worker_holds_kept", "Places kept for requests that are to come", holds.kept),
        ):
            yield GaugeMetricFamily(name, meaning, value=value)
        for name, meaning, count in (
            ("penstock_worker_holds_granted", "Holds that got a place", holds.granted),
            ("penstock_worker_holds_expired", "Holds whose time was over", holds.expired),
        ):
            counter = _Counter(name, meaning)
            counter.add_metric((), count)
            yield counter
        refused = _Counter("penstock_worker_requests_refused", "Requests beyond a bound of the worker", labels=("bound",))
        for quota, count in guard.refused.items():
            refused.add_metric((quota.value,), count)
        yield refused


def _labels(loaded: LoadedModel) -> tuple[str, str]:
    return loaded.spec.model, loaded.spec.version


def _failures(copies: Iterable[LoadedModel]) -> Metric:
    failures = _Counter("nv_inference_request_failure", "Requests without an answer", labels=(*_LABELS, "reason"))
    for loaded in copies:
        for reason, count in loaded.statistics.failures.items():
            failures.add_metric((*_labels(loaded), reason.value), count)
    return failures


def _first_responses(copies: Iterable[LoadedModel]) -> Metric:
    first = HistogramMetricFamily(
        "nv_inference_first_response_histogram_ms", "Time to the first response of a decoupled model", labels=_LABELS
    )
    for loaded in copies:
        if loaded.spec.decoupled:
            seen = loaded.statistics.first_response
            buckets = [(str(bound), float(count)) for bound, count in zip(seen.bounds_ms, seen.counts, strict=True)]
            first.add_metric(_labels(loaded), [*buckets, ("+Inf", float(seen.count))], seen.sum_ms)
    return first


def _batch_rows(copies: Iterable[LoadedModel]) -> Metric:
    """How full executions were: the mean is nv_inference_count / nv_inference_exec_count, this is the rest of it."""
    histogram = HistogramMetricFamily("penstock_batch_rows", "Rows of an execution", labels=_LABELS)
    for loaded in copies:
        sizes = [(rows, times.compute_infer.count) for rows, times in list(loaded.statistics.batches.items())]
        buckets = [(str(bound), float(sum(count for rows, count in sizes if rows <= bound))) for bound in _BATCH_ROWS]
        buckets.append(("+Inf", float(sum(count for _, count in sizes))))
        histogram.add_metric(_labels(loaded), buckets, float(sum(rows * count for rows, count in sizes)))
    return histogram
