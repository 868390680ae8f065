"""Who may take how much of this worker: the bound on all requests in flight, each tenant's part of it and of a model's queue.

Pure, and the owner of the counts. Never waits and never reads a clock: a request is admitted now or refused with a reason.

The rule for tenants is `placement.shares`'. Places that are kept for requests still to come (`worker.holds`) count as taken,
and whoever waits for one is asked first whenever one comes back: `freed` is called before anybody else can enter.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Self

from placement.shares import share_allows
from runtime.errors import Code, PenstockError

DEFAULT_MAX_IN_FLIGHT = 4096
DEFAULT_TENANT_SHARE = 0.9
_RETRY_AFTER_S = 0.1


class WorkerFull(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="WORKER_FULL"):
    """As many requests are in flight as this worker takes, whoever sent them."""


class TenantQuotaReached(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="TENANT_QUOTA_REACHED"):
    """This tenant holds its part of the worker, or of a model's queue; others are still taken."""


class Quota(enum.Enum):
    """Which bound refused a request."""

    WORKER = "worker"
    TENANT = "tenant"
    QUEUE = "queue"


@dataclass(frozen=True, slots=True)
class QuotaPolicy:
    max_in_flight: int = DEFAULT_MAX_IN_FLIGHT
    tenant_share: float = 1.0
    """What one tenant may hold while it is alone, of the worker and of each queue; 1 = tenants are not told apart."""
    tenant_max_in_flight: int = 0
    """0 = no bound beside the share."""


@dataclass(slots=True, eq=False)
class Holding:
    """What one tenant has in flight; there is one while that is more than nothing."""

    tenant: str
    in_flight: int = 0
    at_models: dict[object, int] = field(default_factory=dict)


class Admission:
    """One request that was let in. Leaving the context gives back all that it counted for, once."""

    __slots__ = ("_guard", "_holding", "_model")

    def __init__(self, guard: QuotaGuard, holding: Holding) -> None:
        self._guard = guard
        self._holding = holding
        self._model: object = None

    @property
    def tells_apart(self) -> bool:
        return self._guard.tells_apart

    def queue(self, model: object, *, waiting: int, places: int) -> None:
        """Count the request at a model in whose queue so many wait, where tenants are told apart. Raises TenantQuotaReached.

        What is counted is in flight at the model, so a tenant's part of the queue is known only from above: it is no more than
        that, and no more than all that wait. A full queue is the queue's own to refuse.
        """
        self._guard.check_queue(self._holding, model, waiting, places)
        at_models = self._holding.at_models
        at_models[model] = at_models.get(model, 0) + 1
        self._model = model

    def unqueue(self) -> None:
        """Count it at no model any more; its place it keeps."""
        if self._model is not None:
            self._guard.unqueue(self._holding, self._model)
            self._model = None

    def pass_to(self, tenant: str) -> None:
        """Count it for this tenant from now on, whose absolute bound holds. Raises TenantQuotaReached, and is as before."""
        self._holding = self._guard.pass_on(self._holding, tenant)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.unqueue()
        self._guard.leave(self._holding)


class QuotaGuard:
    """Counts what is in flight. Used on the loop only."""

    def __init__(self, policy: QuotaPolicy) -> None:
        self._policy = policy
        self.tells_apart = policy.tenant_share < 1 or policy.tenant_max_in_flight > 0
        self._everybody = Holding("")
        self._holdings: dict[str, Holding] = {}
        self._refused = dict.fromkeys(Quota, 0)
        self.in_flight = 0
        self.freed: Callable[[], None] = _nobody_waits
        """Called when a place came back."""

    @property
    def max_in_flight(self) -> int:
        return self._policy.max_in_flight

    @property
    def refused(self) -> Mapping[Quota, int]:
        """Requests refused since the start, by the bound that did."""
        return self._refused

    @property
    def tenants(self) -> int:
        """Tenants that have something in flight, where they are told apart."""
        return len(self._holdings)

    def enter(self, tenant: str) -> Admission:
        """Let one request of the tenant in. Raises WorkerFull, TenantQuotaReached."""
        free = self._policy.max_in_flight - self.in_flight
        if free <= 0:
            self._refused[Quota.WORKER] += 1
            raise WorkerFull(
                f"{self.in_flight} requests are in flight, all that this worker takes; back off, then retry",
                retry_after_s=_RETRY_AFTER_S,
            )
        if not self._allows(tenant, free):
            self._refused[Quota.TENANT] += 1
            raise self._quota_reached(tenant)
        return self._admitted(tenant)

    def enter_if_free(self, tenant: str) -> Admission | None:
        """Let one that waits for a place in, if it may have one now; a no is counted nowhere."""
        free = self._policy.max_in_flight - self.in_flight
        return self._admitted(tenant) if free > 0 and self._allows(tenant, free) else None

    def check_queue(self, holding: Holding, model: object, waiting: int, places: int) -> None:
        """Whether one who holds this may wait at the model too. Raises TenantQuotaReached."""
        held = min(holding.at_models.get(model, 0), waiting)
        if waiting < places and not share_allows(held, places - waiting, self._policy.tenant_share):
            self._refused[Quota.QUEUE] += 1
            raise TenantQuotaReached(
                f"tenant {holding.tenant!r} holds its part of this model's queue, of whose {places} places {waiting} are taken;"
                " let some of its requests end, then retry",
                retry_after_s=_RETRY_AFTER_S,
            )

    def pass_on(self, holding: Holding, tenant: str) -> Holding:
        """Count a place that this one holds for another tenant. Raises TenantQuotaReached.

        Only the absolute bound is asked: the share was, when the place was taken, and whoever shares places out decided.
        """
        if not self.tells_apart or holding.tenant == tenant:
            return holding
        bound = self._policy.tenant_max_in_flight
        if bound and self._held(tenant) >= bound:
            self._refused[Quota.TENANT] += 1
            raise self._quota_reached(tenant)
        self._give_back(holding)
        return self._take(tenant)

    def unqueue(self, holding: Holding, model: object) -> None:
        """One request that was counted at the model is there no more."""
        holding.at_models[model] -= 1
        if not holding.at_models[model]:
            del holding.at_models[model]

    def leave(self, holding: Holding) -> None:
        """What an `Admission` does at its end."""
        self.in_flight -= 1
        self._give_back(holding)
        self.freed()

    def _admitted(self, tenant: str) -> Admission:
        self.in_flight += 1
        return Admission(self, self._take(tenant))

    def _take(self, tenant: str) -> Holding:
        holding = self._everybody
        if self.tells_apart:
            holding = self._holdings.get(tenant) or self._holdings.setdefault(tenant, Holding(tenant))
        holding.in_flight += 1
        return holding

    def _give_back(self, holding: Holding) -> None:
        holding.in_flight -= 1
        if self.tells_apart and not holding.in_flight:
            del self._holdings[holding.tenant]

    def _allows(self, tenant: str, free: int) -> bool:
        held, bound = self._held(tenant), self._policy.tenant_max_in_flight
        return not held or (not (bound and held >= bound) and share_allows(held, free, self._policy.tenant_share))

    def _held(self, tenant: str) -> int:
        holding = self._holdings.get(tenant)
        return holding.in_flight if holding is not None else 0

    def _quota_reached(self, tenant: str) -> TenantQuotaReached:
        return TenantQuotaReached(
            f"tenant {tenant!r} has {self._held(tenant)} requests in flight here, its part of the"
            f" {self._policy.max_in_flight} that this worker takes; let some of them end, then retry",
            retry_after_s=_RETRY_AFTER_S,
        )


def _nobody_waits() -> None:
    return
