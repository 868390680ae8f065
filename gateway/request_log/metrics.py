"""What is counted of the request log, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from gateway.request_log.types import Drop

_BUCKETS_S = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class LogMetrics:
    """Made once per process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._written = Counter("penstock_gateway_log_written", "Requests written to the request log.", registry=registry)
        dropped = Counter(
            "penstock_gateway_log_dropped", "Requests that are not in the request log, by why.", ("reason",), registry=registry
        )
        self._dropped = {why: dropped.labels(why.value) for why in Drop}
        self._rows = Gauge("penstock_gateway_log_waiting", "Requests that wait to be written to the log.", registry=registry)
        self._bytes = Gauge("penstock_gateway_log_waiting_bytes", "What those take in memory.", registry=registry)
        self._seconds = Histogram(
            "penstock_gateway_log_batch_seconds",
            "How long the log's database took for a batch.",
            buckets=_BUCKETS_S,
            registry=registry,
        )
        self._failures = Counter(
            "penstock_gateway_log_failures", "Times that the log's database did not take a batch.", registry=registry
        )

    def follow(self, rows: Callable[[], int], size_bytes: Callable[[], int]) -> None:
        """Show these, as they are when somebody asks."""
        self._rows.set_function(rows)
        self._bytes.set_function(size_bytes)

    def written(self, rows: int, elapsed_s: float) -> None:
        self._written.inc(rows)
        self._seconds.observe(elapsed_s)

    def dropped(self, why: Drop, rows: int = 1) -> None:
        self._dropped[why].inc(rows)

    def failed(self) -> None:
        self._failures.inc()
