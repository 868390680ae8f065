"""What the gateway counts, for Prometheus. Labels are bounded: a model that is not in the fleet is counted as "other"."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from placement.routing.breaker import BreakerState
from placement.routing.health import Health
from placement.routing.outliers import OutlierSign
from runtime.ids import Region, WorkerId

OTHER = "other"
_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_MAX_MODELS = 1_000


class Link(Protocol):
    """What is shown of a link."""

    @property
    def ready(self) -> bool: ...

    @property
    def in_flight(self) -> int: ...


class GatewayMetrics:
    """Made once per process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        labels = ("method", "model", "code")
        self._requests = Counter("penstock_gateway_requests", "Requests answered.", labels, registry=registry)
        self._seconds = Histogram(
            "penstock_gateway_request_seconds",
            "From the arrival of a request to its last answer.",
            ("method", "model"),
            buckets=_BUCKETS_S,
            registry=registry,
        )
        self._retries = Counter(
            "penstock_gateway_retries", "Requests sent to another worker.", ("reason", "granted"), registry=registry
        )
        self._migrations = Counter(
            "penstock_gateway_migrations",
            "Generations whose worker was lost, by whether they went on at another.",
            ("reason", "granted"),
            registry=registry,
        )
        self._silences = Counter(
            "penstock_gateway_silences", "Times that a worker which owed answers said nothing for long.", registry=registry
        )
        self._refusals = Counter(
            "penstock_gateway_admission_refusals", "Requests refused before routing.", ("reason",), registry=registry
        )
        self._limited = Counter(
            "penstock_gateway_limit_refusals",
            "Requests that a limit kept out, by what it counts.",
            ("kind",),
            registry=registry,
        )
        self._limits_unsure = Gauge(
            "penstock_gateway_limits_unsure", "1 while the leader of the limits does not answer.", registry=registry
        )
        self._cold = Counter("penstock_gateway_cold_waits", "Requests that waited for a copy.", registry=registry)
        self._in_flight = Gauge("penstock_gateway_in_flight", "Requests sent to workers, not answered yet.", registry=registry)
        self._links = Gauge("penstock_gateway_links", "Links to workers, by state.", ("state",), registry=registry)
        self._queued = Counter(
            "penstock_gateway_capacity_waits",
            "Requests that asked the scheduler for a place, by how that ended.",
            ("outcome",),
            registry=registry,
        )
        self._waiting = Gauge("penstock_gateway_capacity_waiting", "Requests that wait for a place now.", registry=registry)
        self._shadows = Counter(
            "penstock_gateway_shadow_decisions",
            "Decisions that another strategy was asked for as well, by whether it agreed.",
            ("strategy", "shadow", "agreed"),
            registry=registry,
        )
        self._breakers = Gauge(
            "penstock_gateway_breakers", "Workers that are not simply trusted, by why.", ("state",), registry=registry
        )
        self._ejections = Counter("penstock_gateway_ejections", "Outliers put aside.", ("sign",), registry=registry)
        self._reports = Counter(
            "penstock_gateway_demand_reports", "Reports of demand, by whether they left.", ("outcome",), registry=registry
        )
        self._rtt_ms = Gauge(
            "penstock_gateway_region_rtt_ms", "Median round trip to the workers of a region.", ("region",), registry=registry
        )
        self._fallbacks = Counter(
            "penstock_gateway_fallbacks",
            "Requests taken to another model than the one asked for, by why.",
            ("model", "to", "why"),
            registry=registry,
        )
        self._hedges = Counter(
            "penstock_gateway_hedges",
            "Requests whose worker took long: whether a second one was asked, and which of them answered.",
            ("outcome",),
            registry=registry,
        )
        self._cached = Counter(
            "penstock_gateway_cache_requests",
            "Requests that were looked for among answers given before, by whether they were there.",
            ("model", "found"),
            registry=registry,
        )
        self._looked_for: dict[tuple[str, bool], Counter] = {}
        self._cache_entries = Gauge("penstock_gateway_cache_entries", "Answers that are kept.", registry=registry)
        self._cache_bytes = Gauge("penstock_gateway_cache_bytes", "What kept answers take.", registry=registry)
        self._cache_evicted = Gauge(
            "penstock_gateway_cache_evictions", "Answers that went to make room, so far.", registry=registry
        )
        self._models: set[str] = set()
        self._answered: dict[tuple[str, str], tuple[Counter, Histogram]] = {}

    def follow(self, links: Mapping[WorkerId, Link]) -> None:
        """Show these links, as they are when somebody asks."""

        def count(ready: bool) -> int:
            return sum(link.ready is ready for link in list(links.values()))

        self._in_flight.set_function(lambda: sum(link.in_flight for link in list(links.values())))
        self._links.labels("ready").set_function(lambda: count(True))
        self._links.labels("not_ready").set_function(lambda: count(False))

    def follow_waiting(self, waiting: Callable[[], int]) -> None:
        self._waiting.set_function(waiting)

    def follow_health(self, health: Callable[[], Health]) -> None:
        """Show breakers and ejections, as they are when somebody asks."""

        def count(state: BreakerState) -> int:
            return sum(breaker.state is state for breaker in list(health().breakers.values()))

        for state in (BreakerState.OPEN, BreakerState.HALF_OPEN):
            self._breakers.labels(state.value.replace(" ", "_")).set_function(partial(count, state))
        self._breakers.labels("draining").set_function(lambda: len(health().draining))

    def follow_cache(self, entries: Callable[[], int], size_bytes: Callable[[], int], evicted: Callable[[], int]) -> None:
        """Show the response cache, as it is when somebody asks."""
        self._cache_entries.set_function(entries)
        self._cache_bytes.set_function(size_bytes)
        self._cache_evicted.set_function(evicted)

    def cached(self, model: str, *, hit: bool) -> None:
        """`model` is one of the fleet's."""
        found = self._looked_for.get((model, hit))
        if found is None:
            found = self._cached.labels(self._label(model), "yes" if hit else "no")
            if len(self._looked_for) < _MAX_MODELS:
                self._looked_for[model, hit] = found
        found.inc()

    def answered(self, method: str, model: str, elapsed_s: float) -> None:
        """One request went well. `model` is one of the fleet's."""
        # Children are remembered: looking them up by labels costs more than counting does.
        found = self._answered.get((method, model))
        if found is None:
            label = self._label(model)
            found = self._requests.labels(method, label, "OK"), self._seconds.labels(method, label)
            if len(self._answered) < _MAX_MODELS:
                self._answered[method, model] = found
        found[0].inc()
        found[1].observe(elapsed_s)

    def failed(self, method: str, model: str, code: str) -> None:
        self._requests.labels(method, model if model in self._models else OTHER, code).inc()

    def retried(self, reason: str, *, granted: bool) -> None:
        self._retries.labels(reason, "yes" if granted else "no").inc()

    def migrated(self, reason: str, *, granted: bool) -> None:
        self._migrations.labels(reason, "yes" if granted else "no").inc()

    def silent(self) -> None:
        self._silences.inc()

    def refused(self, reason: str) -> None:
        self._refusals.labels(reason).inc()

    def limited(self, kind: str) -> None:
        self._limited.labels(kind).inc()

    def follow_limits(self, unsure: Callable[[], bool]) -> None:
        self._limits_unsure.set_function(lambda: float(unsure()))

    def waited(self) -> None:
        self._cold.inc()

    def queued(self, outcome: str) -> None:
        self._queued.labels(outcome).inc()

    def shadowed(self, strategy: str, shadow: str, *, agreed: bool) -> None:
        self._shadows.labels(strategy, shadow, "yes" if agreed else "no").inc()

    def fell_back(self, model: str, to: str, why: str) -> None:
        """`to` is one of the fleet's."""
        self._fallbacks.labels(self._label(model), self._label(to), why).inc()

    def hedged(self, outcome: str) -> None:
        self._hedges.labels(outcome).inc()

    def ejected(self, sign: OutlierSign) -> None:
        self._ejections.labels(sign.name.lower()).inc()

    def reported(self, *, written: bool) -> None:
        self._reports.labels("written" if written else "lost").inc()

    def measured(self, rtt_ms: Mapping[Region, float]) -> None:
        """Round trips by region. Of regions there are a handful."""
        for region, each_ms in rtt_ms.items():
            self._rtt_ms.labels(region).set(each_ms)

    def _label(self, model: str) -> str:
        if len(self._models) < _MAX_MODELS:
            self._models.add(model)
        return model if model in self._models else OTHER
