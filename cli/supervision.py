"""When a child of `penstock up` is started again, and in which order children are stopped. Pure: values in, values out."""

from __future__ import annotations

from dataclasses import dataclass, replace

FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 10.0
STEADY_S = 30.0
"""A child that ran for so long is believed to be well: its next failure counts as the first."""

STOP_ORDER = ("envoy", "gateway", "worker", "scheduler", "registry", "etcd")
"""The door first, memory last: each is stopped while what it needs to say goodbye is still there."""


@dataclass(frozen=True, slots=True)
class RestartState:
    """What is remembered of one child's failures."""

    failures: int = 0
    started_at_s: float = 0.0


def restart_delay_s(state: RestartState, now_s: float) -> tuple[RestartState, float]:
    """The child ended by itself: its new state, and how long to wait before it is started again."""
    failures = 1 if now_s - state.started_at_s >= STEADY_S else state.failures + 1
    delay_s = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** (failures - 1))
    return replace(state, failures=failures), delay_s


def stop_waves(names: list[str]) -> list[list[str]]:
    """Children in the order they are stopped; those of one wave together. `worker-1` belongs to `worker`."""
    waves = [[name for name in names if name.partition("-")[0] == kind] for kind in STOP_ORDER]
    known = {name for wave in waves for name in wave}
    return [wave for wave in ([name for name in names if name not in known], *waves) if wave]
