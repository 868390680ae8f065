"""What the scheduler tells Prometheus, read when it is scraped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import prometheus_client
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from runtime.telemetry import start_metrics_endpoint
from scheduler.jobs.room import Jobs
from scheduler.limits.room import LimitsRoom
from scheduler.loop import Scheduler
from scheduler.services import Services
from scheduler.switches import Switches


@dataclass(frozen=True, slots=True)
class Told:
    """Whom it is asked of."""

    scheduler: Scheduler
    switches: Switches | None = None
    services: Services | None = None
    jobs: Jobs | None = None
    limits: LimitsRoom | None = None


class SchedulerMetrics(Collector):
    """Register it while the scheduler runs."""

    def __init__(self, told: Told) -> None:
        self._told = told

    def collect(self) -> Iterator[Metric]:
        scheduler = self._told.scheduler
        yield GaugeMetricFamily("penstock_fleet_workers", "workers in the fleet", len(scheduler.fleet.members))
        yield GaugeMetricFamily("penstock_fleet_watchers", "watches of the fleet", len(scheduler.audience))
        yield GaugeMetricFamily("penstock_fleet_stale", "1 while etcd is not seen", float(not scheduler.connected()))
        yield GaugeMetricFamily("penstock_placements", "wishes for models", len(scheduler.control))
        yield CounterMetricFamily("penstock_assignments_written", "assignments written", scheduler.reconciler.writes)
        yield CounterMetricFamily("penstock_reconcile_failures", "rounds that failed", scheduler.reconciler.failures)
        if (leadership := scheduler.leadership) is not None:
            leads = GaugeMetricFamily(
                "penstock_scheduler_leads",
                "1 for each region that this scheduler leads; *: all that nobody names",
                labels=["region"],
            )
            for region in leadership.led():
                leads.add_metric([region], 1.0)
            yield leads
            yield CounterMetricFamily("penstock_elections_won", "times this scheduler became a leader", leadership.elections)
        if (switches := self._told.switches) is not None:
            yield GaugeMetricFamily("penstock_alias_moves_pending", "alias moves whose target is getting warm", len(switches))
            yield CounterMetricFamily("penstock_alias_moves_done", "alias moves that were done", switches.switched)
            yield CounterMetricFamily("penstock_alias_moves_abandoned", "alias moves that were given up", switches.abandoned)
        refused = CounterMetricFamily("penstock_presence_refused", "records that were not believed", labels=["doubt"])
        for doubt, count in list(scheduler.fleet.refused.items()):
            refused.add_metric([doubt.value], count)
        yield refused
        if self._told.services is not None:
            yield from _of_services(self._told.services)
        if self._told.jobs is not None:
            yield from _of_jobs(self._told.jobs)
        if self._told.limits is not None:
            yield from _of_limits(self._told.limits)


def _of_services(services: Services) -> Iterator[Metric]:
    capacity, desk, intake = services.capacity, services.desk, services.intake
    waiting = GaugeMetricFamily("penstock_capacity_waiting", "requests that wait for room, by class", labels=["class"])
    for number, count in enumerate(capacity.queue.by_class()):
        waiting.add_metric([str(number)], count)
    yield waiting
    yield GaugeMetricFamily("penstock_capacity_holds", "holds that wait at workers", capacity.holding.count)
    yield CounterMetricFamily("penstock_capacity_holds_released", "places granted for nothing", capacity.holding.released)
    yield CounterMetricFamily("penstock_capacity_granted", "requests that were given a place", capacity.granted)
    yield CounterMetricFamily("penstock_capacity_expired", "requests that waited in vain", capacity.expired)
    yield CounterMetricFamily("penstock_capacity_withdrawn", "requests whose caller left while they waited", capacity.withdrawn)
    yield CounterMetricFamily("penstock_capacity_waited_seconds", "time waited by those given a place", capacity.waited_s)
    refused = CounterMetricFamily("penstock_capacity_refused", "requests that might not wait, by bound", labels=["bound"])
    for bound, count in list(capacity.refused.items()):
        refused.add_metric([bound.value], count)
    yield refused
    yield GaugeMetricFamily("penstock_demand_gateways", "gateways that tell of demand", len(intake))
    yield GaugeMetricFamily("penstock_reservations", "places kept for clients", desk.kept)
    yield CounterMetricFamily("penstock_reservations_made", "places that were kept", desk.reserved)
    yield CounterMetricFamily("penstock_reservations_refused", "places that could not be kept", desk.refused)
    yield CounterMetricFamily("penstock_endpoints_picked", "requests given an endpoint", services.picker.picked)
    yield CounterMetricFamily("penstock_endpoints_refused", "requests given none", services.picker.turned_away)
    generation = services.policies.current.generation
    yield GaugeMetricFamily("penstock_routing_policy_generation", "of the policy in force", generation)


def _of_jobs(jobs: Jobs) -> Iterator[Metric]:
    counts = jobs.counts
    yield GaugeMetricFamily("penstock_jobs_queued", "jobs that are due now or later", counts.queued)
    yield GaugeMetricFamily("penstock_jobs_running", "jobs that a gateway has", counts.running)
    yield GaugeMetricFamily("penstock_jobs_dead", "dead letters", counts.dead)
    oldest_due_s = counts.oldest_due_ms / 1000
    yield GaugeMetricFamily("penstock_jobs_oldest_due_seconds", "for how long the oldest due job has been", oldest_due_s)
    for name, count in asdict(jobs.totals).items():
        yield CounterMetricFamily(f"penstock_jobs_{name}", f"jobs {name}, since this scheduler began", count)


def _of_limits(limits: LimitsRoom) -> Iterator[Metric]:
    book = limits.book
    yield GaugeMetricFamily(
        "penstock_limits_leads", "1 while this scheduler gives out what limits allow", float(book is not None)
    )
    yield GaugeMetricFamily("penstock_limits_gateways", "gateway processes that share limits", len(limits))
    yield GaugeMetricFamily("penstock_limits_allowances", "allowances known", len(book.pots) if book is not None else 0)
    yield CounterMetricFamily("penstock_limits_granted", "units given to gateways", limits.granted)


@contextmanager
def opened_metrics(told: Told, host: str, port: int | None) -> Iterator[int | None]:
    """Tell while the context lasts; the bound port, None where the endpoint is off."""
    collector = SchedulerMetrics(told)
    prometheus_client.REGISTRY.register(collector)
    try:
        yield None if port is None else start_metrics_endpoint(host, port)
    finally:
        prometheus_client.REGISTRY.unregister(collector)
