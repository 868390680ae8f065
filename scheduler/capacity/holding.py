"""Holds that wait at workers for the lines of the queue, and what became of each.

Brings them to what is aimed at: asks for those that lack, withdraws those that are too many. A worker that could not be asked
is left alone for a while, longer each time. Owns the calls; what a granted place is for is the caller's to say.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import structlog

from placement.types import CandidateKey, Worker
from runtime.backoff import Backoff
from runtime.clock import Clock
from runtime.errors import Code, PenstockError
from runtime.ids import ModelName, ModelVersion, TenantId, WorkerId
from scheduler.capacity.aim import Aim
from scheduler.capacity.types import CapacityRules, Place

MAX_STANDING = 4096
"""Holds of this scheduler that may wait at once, for all lines."""

_RETRY = Backoff(first_s=0.1, max_s=5.0)
_log = structlog.get_logger("penstock.capacity")


class Peers(Protocol):
    """Workers as they are called: `scheduler.workers.WorkerPeers`."""

    async def hold(
        self,
        worker: Worker,
        *,
        hold_id: str,
        model: ModelName,
        version: ModelVersion,
        tenant: TenantId,
        wait_s: float,
        ttl_s: float,
        token_sha256: bytes = b"",
    ) -> ModelVersion: ...

    async def release(self, worker: Worker, hold_id: str) -> None: ...


@dataclass(slots=True, eq=False)
class Standing:
    """One hold that waits."""

    key: CandidateKey
    aim: Aim
    number: int
    """In the order in which they were asked for."""
    asked_s: float
    task: asyncio.Task[None] | None = None


@dataclass(slots=True)
class _Trouble:
    """A worker that could not be asked for a line."""

    failures: int
    until_s: float


class Holding:
    """All holds of one scheduler. Used inside `running`'s task group alone."""

    def __init__(
        self,
        peers: Peers,
        clock: Clock,
        rng: random.Random,
        rules: CapacityRules,
        *,
        granted: Callable[[Standing, Place], None],
        ended: Callable[[CandidateKey], None],
    ) -> None:
        """`granted` takes each place; `ended` hears of each hold that is over, however it ended."""
        self._peers, self._clock, self._rng, self._rules = peers, clock, rng, rules
        self._granted, self._ended = granted, ended
        self._standing: dict[CandidateKey, dict[WorkerId, list[Standing]]] = {}
        self._troubles: dict[CandidateKey, dict[WorkerId, _Trouble]] = {}
        self._releases: set[asyncio.Task[None]] = set()
        self._asked = 0
        self.count = 0
        self.released = 0
        """Places that nobody waited for any more."""

    @property
    def keys(self) -> list[CandidateKey]:
        """Lines that holds wait for."""
        return list(self._standing)

    def shunned(self, key: CandidateKey) -> set[WorkerId]:
        """Workers to leave alone for now."""
        now_s = self._clock.monotonic_s()
        return {who for who, trouble in self._troubles.get(key, {}).items() if trouble.until_s > now_s}

    def next_retry_s(self) -> float | None:
        """When the next of them may be asked again."""
        now_s = self._clock.monotonic_s()
        later = [each.until_s for known in self._troubles.values() for each in known.values() if each.until_s > now_s]
        return min(later, default=None)

    def is_passed_over(self, granted: Standing, tenant: TenantId) -> bool:
        """Whether an older hold of this tenant still waits where this one was granted: it has its part of that worker."""
        there = self._standing.get(granted.key, {}).get(granted.aim.worker_id, ())
        return tenant != granted.aim.tenant and any(
            each.aim.tenant == tenant and each.number < granted.number for each in there
        )

    def bring_to(self, key: CandidateKey, aims: Mapping[Aim, int], workers: Mapping[WorkerId, Worker]) -> None:
        """Have exactly these holds wait for a line."""
        lacking = Counter(aims)
        for there in list(self._standing.get(key, {}).values()):
            for standing in list(there):
                if lacking[standing.aim] > 0:
                    lacking[standing.aim] -= 1
                elif standing.task is not None:
                    self._remove(standing)
                    standing.task.cancel()
        for aim, number in lacking.items():
            for _ in range(min(number, MAX_STANDING - self.count)):
                self._ask(key, aim, workers[aim.worker_id])

    def forget(self, key: CandidateKey) -> None:
        """Nobody waits in this line any more."""
        self.bring_to(key, {}, {})
        self._troubles.pop(key, None)

    def release(self, worker: Worker, hold_id: str) -> None:
        """Give a place back; where that fails, its time ends it."""
        self.released += 1
        self._give_back(worker, hold_id)

    async def close(self) -> None:
        """Withdraw every hold; give back what is being given back."""
        tasks = [each.task for known in self._standing.values() for there in known.values() for each in there]
        for task in tasks:
            if task is not None:
                task.cancel()
        await asyncio.gather(*(task for task in tasks if task is not None), return_exceptions=True)
        await asyncio.gather(*self._releases, return_exceptions=True)

    def _ask(self, key: CandidateKey, aim: Aim, worker: Worker) -> None:
        self._asked += 1
        self.count += 1
        standing = Standing(key, aim, self._asked, self._clock.monotonic_s())
        self._standing.setdefault(key, {}).setdefault(aim.worker_id, []).append(standing)
        standing.task = asyncio.get_running_loop().create_task(self._stand(standing, worker), name="hold a place")
        # A task that is cancelled before its first step never runs its own clean-up.
        standing.task.add_done_callback(lambda _: self._over(standing))

    async def _stand(self, standing: Standing, worker: Worker) -> None:
        hold_id, rules = f"{self._rng.getrandbits(128):032x}", self._rules
        try:
            version = await self._peers.hold(
                worker,
                hold_id=hold_id,
                model=standing.key.model,
                version=standing.aim.version,
                tenant=standing.aim.tenant,
                wait_s=rules.hold_wait_s,
                ttl_s=rules.hold_ttl_s,
            )
        except asyncio.CancelledError:
            self._give_back(worker, hold_id)  # its place may have been granted at this very moment
            raise
        except PenstockError as error:
            self._note(standing, error)
        except Exception:
            _log.exception("hold_broke", worker=worker.worker_id, model=standing.key.model)
            self._shun(standing)
        else:
            self._troubles.get(standing.key, {}).pop(worker.worker_id, None)
            self._remove(standing)
            until_s = self._clock.monotonic_s() + rules.hold_ttl_s
            self._granted(standing, Place(worker.worker_id, version, hold_id, until_s))

    def _note(self, standing: Standing, error: PenstockError) -> None:
        waited_s = self._clock.monotonic_s() - standing.asked_s
        if error.code is Code.RESOURCE_EXHAUSTED and waited_s >= self._rules.hold_wait_s / 2:
            return  # It was full all the while: nothing is wrong with it.
        self._shun(standing)
        _log.info("hold_refused", worker=standing.aim.worker_id, model=standing.key.model, why=error.message)

    def _shun(self, standing: Standing) -> None:
        known = self._troubles.setdefault(standing.key, {})
        trouble = known.setdefault(standing.aim.worker_id, _Trouble(0, 0.0))
        now_s = self._clock.monotonic_s()
        if trouble.until_s <= now_s:  # several holds that fail together are one failure
            trouble.failures += 1
            trouble.until_s = now_s + _RETRY.delay_s(trouble.failures, self._rng)

    def _over(self, standing: Standing) -> None:
        self._remove(standing)
        self._ended(standing.key)

    def _remove(self, standing: Standing) -> None:
        known = self._standing.get(standing.key, {})
        there = known.get(standing.aim.worker_id, [])
        if standing not in there:
            return
        there.remove(standing)
        self.count -= 1
        if not there:
            del known[standing.aim.worker_id]
        if not known:
            del self._standing[standing.key]

    def _give_back(self, worker: Worker, hold_id: str) -> None:
        releasing = asyncio.get_running_loop().create_task(self._release(worker, hold_id), name="release a place")
        self._releases.add(releasing)
        releasing.add_done_callback(self._releases.discard)

    async def _release(self, worker: Worker, hold_id: str) -> None:
        try:
            await self._peers.release(worker, hold_id)
        except PenstockError as error:
            _log.info("place_not_given_back", worker=worker.worker_id, why=error.message)
        except Exception:
            _log.exception("release_broke", worker=worker.worker_id)
