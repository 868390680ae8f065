"""What the scheduler tells Prometheus, read when it is scraped."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from scheduler.loop import Scheduler


class SchedulerMetrics(Collector):
    """Register it while the scheduler runs."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def collect(self) -> Iterator[Metric]:
        scheduler = self._scheduler
        yield GaugeMetricFamily("penstock_fleet_workers", "workers in the fleet", len(scheduler.fleet.members))
        yield GaugeMetricFamily("penstock_fleet_watchers", "watches of the fleet", len(scheduler.audience))
        yield GaugeMetricFamily("penstock_fleet_stale", "1 while etcd is not seen", float(not scheduler.connected()))
        yield GaugeMetricFamily("penstock_placements", "wishes for models", len(scheduler.control))
        yield CounterMetricFamily("penstock_assignments_written", "assignments written", scheduler.reconciler.writes)
        yield CounterMetricFamily("penstock_reconcile_failures", "rounds that failed", scheduler.reconciler.failures)
        refused = CounterMetricFamily("penstock_presence_refused", "records that were not believed", labels=["doubt"])
        for doubt, count in list(scheduler.fleet.refused.items()):
            refused.add_metric([doubt.value], count)
        yield refused
