"""Keeps places at workers for clients that will talk to one worker alone.

The policy picks among the workers that take sealed calls; the worker itself keeps the place, so nothing of it is lost with this
scheduler, and any other one can give it back by its name. A worker that is full or out of reach is passed over for the next; if
all are full, the first of them is asked to wait a moment for a place. Never sees what the place is used for, nor the secret.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Protocol

import structlog

from placement.routing.policy import choose
from placement.routing.state import RoutingState
from placement.rules import Route
from placement.types import Granted, Outcome, Refusal, Refused, Request
from placement.view import FleetView
from runtime.clock import Clock
from runtime.errors import Code, NotFound, PenstockError, PermissionDenied, Unavailable
from runtime.ids import ModelName, Region, TenantId, WorkerId
from runtime.sealing import reservation_id, reservation_parts
from scheduler.reservations.ledger import Ledger
from scheduler.reservations.types import Asked, NobodyTakesSealed, NoPlace, Reservation, Workers, WorkerUnknown
from scheduler.types import Member

MAX_ATTEMPTS = 3
WAIT_S = 2.0
"""How long a full worker is asked to wait for a place, when all of them are."""

_GIVE_BACK_S = 2.0
_ELSEWHERE = (Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.NOT_FOUND, Code.FAILED_PRECONDITION)
"""Answers after which another worker may fare better. NOT_FOUND: the copy was unloaded while the view still showed it."""

_log = structlog.get_logger("penstock.reservations")
RouteOf = Callable[[TenantId, ModelName, Region], Route]


class Outlook(Protocol):
    """The fleet to choose from: `scheduler.outlook.Outlook`."""

    @property
    def view(self) -> FleetView: ...

    @property
    def state(self) -> RoutingState: ...

    def look(self) -> float: ...


class Desk:
    """Belongs to one event loop."""

    def __init__(
        self,
        outlook: Outlook,
        members: Callable[[], Mapping[WorkerId, Member]],
        workers: Workers,
        route_of: RouteOf,
        clock: Clock,
        *,
        synced: Callable[[], bool] = lambda: True,
    ) -> None:
        """`synced`: whether etcd was seen at all; before that an empty fleet means nothing."""
        self._outlook, self._members, self._workers = outlook, members, workers
        self._route_of, self._clock, self._synced = route_of, clock, synced
        self._ledger = Ledger(outlook.state)
        self.reserved = 0
        self.refused = 0

    @property
    def kept(self) -> int:
        """Places that this scheduler had kept and that have not ended."""
        self._ledger.expire(self._outlook.look())
        return len(self._ledger)

    async def reserve(self, asked: Asked) -> Reservation:
        """Raises why no worker keeps a place."""
        try:
            reservation = await self._reserved(asked)
        except PenstockError:
            self.refused += 1
            raise
        self.reserved += 1
        return reservation

    async def release(self, name: str) -> None:
        """Give a place back, whoever had it kept. The same where there is none, or its worker has left.

        Raises InvalidArgument for what names none, and Unavailable where its worker cannot be told.
        """
        worker_id, hold_id = reservation_parts(name)
        self._ledger.give_back(name, self._outlook.look())
        if (member := self._members().get(worker_id)) is not None:
            await self._workers.release(member.worker, hold_id)

    async def drain(self, worker_id: WorkerId, grace_s: float) -> None:
        """Tell a worker to finish and leave. Raises WorkerUnknown, and what it answers."""
        member = self._members().get(worker_id)
        if member is None:
            raise WorkerUnknown(f"no worker {worker_id[:40]!r} is in the fleet; `penstock fleet` lists those that are")
        _log.info("draining_worker", worker=worker_id, grace_s=grace_s)
        await self._workers.drain(member.worker, grace_s)

    async def _reserved(self, asked: Asked) -> Reservation:
        if not self._synced():
            raise Unavailable("this scheduler has not reached etcd yet; try again, or ask another", retry_after_s=1.0)
        unfit = self._without_a_port(asked.model)
        tried: dict[WorkerId, PenstockError] = {}
        full: Granted | None = None
        while len(tried) < MAX_ATTEMPTS:
            granted = self._chosen(asked, unfit | tried.keys())
            if isinstance(granted, Refused):
                if tried and granted.reason is Refusal.ALL_EXCLUDED:
                    break
                raise self._refusal(asked, granted, bool(unfit))
            try:
                return await self._held(asked, granted, 0.0)
            except PenstockError as error:
                if error.code not in _ELSEWHERE:
                    raise
                tried[granted.worker_id] = error
                full = full or (granted if error.code is Code.RESOURCE_EXHAUSTED else None)
        if full is not None:
            return await self._held_in_time(asked, full)
        raise next(reversed(tried.values()))

    def _chosen(self, asked: Asked, excluded: frozenset[WorkerId] | set[WorkerId]) -> Granted | Refused:
        now_s = self._outlook.look()
        self._ledger.expire(now_s)
        request = Request(
            asked.model,
            asked.version,
            asked.region,
            session_key=asked.session_key,
            exclude=frozenset(excluded),
            draw=secrets.randbits(64),
        )
        route = self._route_of(asked.tenant, asked.model, asked.region)
        return choose(self._outlook.view, self._outlook.state, request, now_s=now_s, route=route)

    async def _held_in_time(self, asked: Asked, granted: Granted) -> Reservation:
        try:
            return await self._held(asked, granted, WAIT_S)
        except PenstockError as error:
            if error.code is not Code.RESOURCE_EXHAUSTED:
                raise
            raise NoPlace(
                f"no worker with model {asked.model!r} has a place to keep; try again: {error.message}",
                retry_after_s=error.retry_after_s or WAIT_S,
            ) from error

    async def _held(self, asked: Asked, granted: Granted, wait_s: float) -> Reservation:
        """Have this worker keep the place. What it may have kept though nobody heard of it is given back."""
        member = self._members().get(granted.worker_id)
        if member is None:
            raise Unavailable(f"worker {granted.worker_id} left just now; try again", retry_after_s=0.2)
        worker, hold_id, state = member.worker, secrets.token_hex(16), self._outlook.state
        begun_s, begun_wall_s, outcome = self._clock.monotonic_s(), self._clock.wall_s(), Outcome.UNKNOWN
        state.reserve(granted)
        try:
            version = await self._workers.hold(
                worker,
                hold_id=hold_id,
                model=asked.model,
                version=granted.version,
                tenant=asked.tenant,
                wait_s=wait_s,
                ttl_s=asked.ttl_s,
                token_sha256=asked.token_sha256,
            )
            outcome = Outcome.ANSWERED
        except BaseException as error:
            outcome = _outcome(error)
            if outcome is not Outcome.ANSWERED:
                await self._give_back(member, hold_id)
            raise
        finally:
            state.release(granted, outcome, now_s=self._clock.monotonic_s())
        name = reservation_id(worker.worker_id, hold_id)
        self._ledger.keep(name, granted, begun_s + wait_s + asked.ttl_s)
        _log.info("place_kept", worker=worker.worker_id, model=asked.model, version=version, tenant=asked.tenant)
        return Reservation(name, worker, version, member.record, begun_wall_s + asked.ttl_s)

    async def _give_back(self, member: Member, hold_id: str) -> None:
        """Also while this call is being cancelled: it would be kept for minutes else."""
        with suppress(PenstockError, TimeoutError):
            async with asyncio.timeout(_GIVE_BACK_S):
                await self._workers.release(member.worker, hold_id)

    def _without_a_port(self, model: ModelName) -> frozenset[WorkerId]:
        copies = self._outlook.view.copies_of(model)
        return frozenset(worker.worker_id for worker, _ in copies if not worker.sealed_address)

    def _refusal(self, asked: Asked, refused: Refused, some_unfit: bool) -> PenstockError:
        if refused.reason in (Refusal.UNKNOWN_MODEL, Refusal.UNKNOWN_VERSION):
            return NotFound(f"{refused.detail}; a place is kept for what is loaded")
        if refused.reason is Refusal.ALL_EXCLUDED and some_unfit:
            return NobodyTakesSealed(
                f"no worker that is ready with model {asked.model!r} takes sealed calls; start some with --sealed-port"
            )
        if refused.reason is Refusal.DENIED:
            return PermissionDenied(f"{refused.detail}; `penstock fleet policy show` tells which rule says so")
        if refused.reason is Refusal.ALL_FULL:
            return NoPlace(f"{refused.detail}; try again", retry_after_s=WAIT_S)
        return Unavailable(f"{refused.detail}; try again", retry_after_s=1.0)


def _outcome(error: BaseException) -> Outcome:
    """As far as the way to the worker is concerned."""
    if not isinstance(error, PenstockError) or error.code is Code.DEADLINE_EXCEEDED:
        return Outcome.UNKNOWN
    return Outcome.PATH_FAILED if error.code is Code.UNAVAILABLE else Outcome.ANSWERED
