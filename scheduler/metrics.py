"""What the scheduler tells Prometheus, read when it is scraped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import prometheus_client
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from runtime.telemetry import start_metrics_endpoint
from scheduler.loop import Scheduler
from scheduler.switches import Switches


class SchedulerMetrics(Collector):
    """Register it while the scheduler runs."""

    def __init__(self, scheduler: Scheduler, switches: Switches | None = None) -> None:
        self._scheduler, self._switches = scheduler, switches

    def collect(self) -> Iterator[Metric]:
        scheduler = self._scheduler
        yield GaugeMetricFamily("penstock_fleet_workers", "workers in the fleet", len(scheduler.fleet.members))
        yield GaugeMetricFamily("penstock_fleet_watchers", "watches of the fleet", len(scheduler.audience))
        yield GaugeMetricFamily("penstock_fleet_stale", "1 while etcd is not seen", float(not scheduler.connected()))
        yield GaugeMetricFamily("penstock_placements", "wishes for models", len(scheduler.control))
        yield CounterMetricFamily("penstock_assignments_written", "assignments written", scheduler.reconciler.writes)
        yield CounterMetricFamily("penstock_reconcile_failures", "rounds that failed", scheduler.reconciler.failures)
        if (switches := self._switches) is not None:
            yield GaugeMetricFamily("penstock_alias_moves_pending", "alias moves whose target is getting warm", len(switches))
            yield CounterMetricFamily("penstock_alias_moves_done", "alias moves that were done", switches.switched)
            yield CounterMetricFamily("penstock_alias_moves_abandoned", "alias moves that were given up", switches.abandoned)
        refused = CounterMetricFamily("penstock_presence_refused", "records that were not believed", labels=["doubt"])
        for doubt, count in list(scheduler.fleet.refused.items()):
            refused.add_metric([doubt.value], count)
        yield refused


@contextmanager
def opened_metrics(scheduler: Scheduler, switches: Switches, host: str, port: int | None) -> Iterator[int | None]:
    """Tell while the context lasts; the bound port, None where the endpoint is off."""
    collector = SchedulerMetrics(scheduler, switches)
    prometheus_client.REGISTRY.register(collector)
    try:
        yield None if port is None else start_metrics_endpoint(host, port)
    finally:
        prometheus_client.REGISTRY.unregister(collector)
