"""What a run came to: counted as it happens, summed up in stretches for plots and at the end for the table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.simulation.machines import Machine
from benchmarks.simulation.types import Arrival, Sample
from placement.types import CopyState
from runtime.ids import WorkerId

_SESSIONS = 50_000


@dataclass(slots=True)
class Tally:
    """Counts since the last sample, and the samples."""

    samples: list[Sample] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)
    """Of the whole run, arrival to end."""
    waits_s: list[float] = field(default_factory=list)
    requests: int = 0
    refused: int = 0
    expired: int = 0
    lost: int = 0
    waited: int = 0
    cost: float = 0.0
    """Work done, times what it costs there."""
    session_turns: int = 0
    session_hits: int = 0
    _from: int = 0
    _waits_from: int = 0
    _last: tuple[int, ...] = (0, 0, 0, 0, 0, 0, 0, 0)
    _session_at: dict[str, WorkerId] = field(default_factory=dict)

    def begun(self, arrival: Arrival, machine: Machine, now_s: float) -> None:
        self.waits_s.append(now_s - arrival.at_s)
        self.cost += arrival.work_s / machine.kind.speed * machine.kind.cost
        before = self._session_at.get(arrival.session)
        if before is not None:
            self.session_turns += 1
            self.session_hits += before == machine.worker_id
        elif len(self._session_at) >= _SESSIONS:
            self._session_at.pop(next(iter(self._session_at)))
        self._session_at[arrival.session] = machine.worker_id

    def ended(self, arrival: Arrival, now_s: float) -> None:
        self.latencies_s.append(now_s - arrival.at_s)

    def sample(self, now_s: float, machines: Sequence[Machine]) -> None:
        """Sum up what happened since the last one."""
        latencies, waits = sorted(self.latencies_s[self._from :]), sorted(self.waits_s[self._waits_from :])
        loads, evictions = sum(each.loads for each in machines), sum(each.evictions for each in machines)
        totals = (self.requests, self.refused, self.expired, self.lost, loads, evictions, self.session_turns, self.session_hits)
        since = [now - before for now, before in zip(totals, self._last, strict=True)]
        holding = [each for each in machines if each.alive and CopyState.READY in each.states.values()]
        occupancy = [each.in_flight / each.slots for each in holding]
        mean = statistics.fmean(occupancy) if occupancy else 0.0
        self.samples.append(
            Sample(
                now_s,
                requests=since[0],
                served=len(latencies),
                refused=since[1],
                expired=since[2],
                lost=since[3],
                p50_s=percentile(latencies, 0.5),
                p99_s=percentile(latencies, 0.99),
                wait_p99_s=percentile(waits, 0.99),
                utilisation=mean,
                imbalance=statistics.pstdev(occupancy) / mean if mean else 0.0,
                loads=since[4],
                evictions=since[5],
                affinity=since[7] / since[6] if since[6] else 0.0,
            )
        )
        self._last, self._from, self._waits_from = totals, len(self.latencies_s), len(self.waits_s)


def percentile(ordered: Sequence[float], part: float) -> float:
    """Of sorted values; 0 of none."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else 0.0
