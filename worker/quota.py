"""Who may take how much of this worker: the bound on all requests in flight, each tenant's part of it and of a model's queue.

Pure, and the owner of the counts. Never waits and never reads a clock: a request is admitted now or refused with a reason.

The rule for tenants is a dynamic threshold: a tenant may hold a further place if it then holds no more than `alpha` times
the places that are left free, and one that holds none may take any free place. So the last places are never taken by someone
who has some already, a tenant that comes finds room however hard another pushes, and as requests end the parts become equal:
with n tenants pushing, each holds alpha / (1 + alpha n) of all. `tenant_share` is what one tenant holds while it is alone,
alpha / (1 + alpha). Source: Choudhury and Hahne, "Dynamic Queue Length Thresholds for Shared-Memory Packet Switches",
IEEE/ACM Transactions on Networking 6 (2), 1998.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._guard.leave(self._holding, self._model)


class QuotaGuard:
    """Counts what is in flight. Used on the loop only."""

    def __init__(self, policy: QuotaPolicy) -> None:
        self._policy = policy
        self.tells_apart = policy.tenant_share < 1 or policy.tenant_max_in_flight > 0
        self._everybody = Holding("")
        self._holdings: dict[str, Holding] = {}
        self._refused = dict.fromkeys(Quota, 0)
        self.in_flight = 0

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
        holding = self._holding(tenant, free) if self.tells_apart else self._everybody
        holding.in_flight += 1
        self.in_flight += 1
        return Admission(self, holding)

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

    def leave(self, holding: Holding, model: object) -> None:
        """What an `Admission` does at its end."""
        self.in_flight -= 1
        holding.in_flight -= 1
        if not self.tells_apart:
            return
        if model is not None:
            holding.at_models[model] -= 1
            if not holding.at_models[model]:
                del holding.at_models[model]
        if not holding.in_flight:
            del self._holdings[holding.tenant]

    def _holding(self, tenant: str, free: int) -> Holding:
        holding = self._holdings.get(tenant)
        if holding is None:
            holding = self._holdings[tenant] = Holding(tenant)
            return holding
        held, bound = holding.in_flight, self._policy.tenant_max_in_flight
        if (bound and held >= bound) or not share_allows(held, free, self._policy.tenant_share):
            self._refused[Quota.TENANT] += 1
            raise TenantQuotaReached(
                f"tenant {tenant!r} has {held} requests in flight here, its part of the {self._policy.max_in_flight} that this"
                " worker takes; let some of them end, then retry",
                retry_after_s=_RETRY_AFTER_S,
            )
        return holding


def share_allows(held: int, free: int, share: float) -> bool:
    """Whether somebody who holds that many places may take one more of those that are free."""
    if not held or share >= 1:
        return free > 0
    # held + 1 <= alpha (free - 1), with alpha = share / (1 - share) multiplied out.
    return (held + 1) * (1 - share) <= share * (free - 1)
