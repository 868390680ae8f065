"""Times what limits cost a request, and measures how exactly they hold: gateways in regions, uneven load, joins, deaths,
partitions, a change of the leader.

The first is of the thread alone: the same request admitted with no, one and four limits, its ticket closed. The second runs the
gateway's own holdings and the leader's own book over a virtual clock, with the ways between regions; nothing sleeps. The bar
(design, section 15): admitted within 5 % of the configured rate under skew.
Run: python -m benchmarks.limits [--output FILE.json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from prometheus_client import CollectorRegistry

from benchmarks.limit_scenes import SCENES, Accuracy, played
from benchmarks.serving import machine
from gateway.admission import KeyFacts
from gateway.limits.limiter import Limiter
from gateway.limits.purse import Purse
from gateway.limits.types import Limit, Scope
from gateway.metrics import GatewayMetrics
from placement.limits.types import Grant
from runtime.clock import SystemClock
from runtime.ids import KeyId, TenantId

_PLENTY = 10**9
_LIMITS = (
    Limit("all", requests_per_s=1e9),
    Limit("tenants", scope=Scope.EACH_TENANT, tokens_per_min=10**9),
    Limit("keys", scope=Scope.EACH_KEY, concurrent_requests=10**6),
    Limit("days", requests_per_day=10**9),
)


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one request: admitted, charged, given back."""

    limits: int
    median_us: float
    best_us: float


async def cost_of(limits: Sequence[Limit], rounds: int = 20, requests: int = 5_000) -> Cost:
    """By the process's own CPU time."""
    purse = Purse()
    limiter = Limiter(purse, SystemClock(), GatewayMetrics(CollectorRegistry()))
    key = KeyFacts(KeyId("k"), TenantId("t"), limits=tuple(limits))
    for limit in limits:
        subject = limit.subject(key.tenant, key.key_id) or ""
        for terms in limit.terms():
            purse.take([Grant(purse.holding(limit, terms, subject).allowance, _PLENTY, _PLENTY)], 0.0)
    taken_us = []
    for _ in range(rounds):
        begun_ns = time.process_time_ns()
        for _ in range(requests):
            if key.limits:  # as gateway.exchange has it
                ticket = await limiter.admit(key, "digits", 0)
                if ticket is not None:
                    ticket.used(3, 4)
                    ticket.close()
        taken_us.append((time.process_time_ns() - begun_ns) / 1000 / requests)
    return Cost(len(limits), statistics.median(taken_us), min(taken_us))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, help="also write the figures here")
    options = parser.parse_args(argv)
    costs = [asyncio.run(cost_of(_LIMITS[:count])) for count in (0, 1, 4)]
    for cost in costs:
        print(f"{cost.limits} limits: {cost.median_us:.2f} µs a request (best {cost.best_us:.2f})")
    accuracy: list[Accuracy] = []
    print(f"\n{'scene':36} {'allowed':>9} {'asked':>9} {'admitted':>9} {'off':>8}")
    for scene in SCENES:
        found = played(scene)
        accuracy.append(found)
        print(f"{scene.name:36} {found.allowed:9.0f} {found.asked:9d} {found.admitted:9d} {found.off:+8.2%}")
    if options.output is not None:
        told = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "costs": [asdict(cost) for cost in costs],
            "accuracy": [asdict(each) for each in accuracy],
        }
        options.output.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
