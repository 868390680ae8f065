"""Finds a place for a request that did not get one at once.

In this order: a worker with room that can be reached now; where all are full or none is ready, a place that the scheduler gives
out; where it gives none, a copy that is being loaded or a link that is being connected, for as long as that may help. A
sequence whose state is at one worker waits for no other. Never sends anything: `gateway.routing` does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, replace

from gateway.capacity import Capacity, CapacityEnded
from gateway.fleet import Fleet
from gateway.journeys import Journey
from gateway.ledger import Ledger
from gateway.links.roster import Link
from gateway.metrics import GatewayMetrics
from gateway.refusals import may_come, refusal_of
from gateway.types import CapacityAsk, Held
from placement.routing.contest import distance
from placement.routing.policy import choose
from placement.types import ANY_REGION, CopyState, Granted, Refusal, Refused, Request, Why
from runtime.errors import DeadlineExceeded, PenstockError
from runtime.ids import ModelVersion, Region

_FAILED_WAIT_S = 1.0
"""How long a request waits where every copy has failed: as long as it takes to place one elsewhere."""

_MAX_ASKS = 3
"""A place may be lost on the way to it: the hold ran out, or the worker left."""

_MAX_EXCLUDED = 256
"""As many workers as a scheduler takes to be passed over for one request."""

_HELD_WAIT_S = 1.0
"""How long a worker that keeps a place may be missing from the view, or its link unconnected."""

_COLD = (Refusal.NOT_READY, Refusal.UNKNOWN_MODEL, Refusal.UNKNOWN_VERSION, Refusal.NO_REGION)


@dataclass(frozen=True, slots=True)
class WaitSettings:
    cold_wait_s: float = 10.0
    """For a copy or a link, where the scheduler gives no places out."""


class Places:
    """Belongs to one event loop."""

    def __init__(
        self, fleet: Fleet, metrics: GatewayMetrics, ledger: Ledger, settings: WaitSettings, capacity: Capacity | None
    ) -> None:
        self._fleet, self._metrics, self._ledger = fleet, metrics, ledger
        self._settings, self._capacity = settings, capacity
        self._loop = asyncio.get_running_loop()

    async def find(self, journey: Journey) -> Granted:
        """A worker that can be reached, however long it may take. Raises why there is none."""
        while True:
            changed = self._fleet.changed
            decision = self._nearest(journey)
            if isinstance(decision, Granted):
                return decision
            self._count(journey, decision)
            if self._queues(journey, decision) and (held := await self._held(journey, decision)) is not None:
                return held
            if journey.queues_only:
                raise journey.failure or self._refusal(journey, decision)
            await self._wait(journey, decision, changed)

    async def warm(self, journey: Journey) -> None:
        """Return once a copy is ready, be it full: to ask for it is demand. Raises why none becomes ready."""
        while True:
            changed = self._fleet.changed
            decision = self._nearest(journey)
            if isinstance(decision, Granted) or decision.reason not in _COLD:
                return
            self._count(journey, decision)
            await self._wait(journey, decision, changed)

    def may_queue(self, journey: Journey) -> bool:
        """Whether a request that found every worker busy may still get a place from the scheduler."""
        return journey.met_busy and self._may_ask(journey)

    def _nearest(self, journey: Journey) -> Granted | Refused:
        """A worker whose link is up, or why none is. Begins to connect to those passed over for their link."""
        fleet, now_s = self._fleet, self._loop.time()
        while True:
            request = replace(journey.request, exclude=journey.request.exclude | journey.unconnected)
            decision = choose(fleet.view, fleet.state, request, now_s=now_s, route=journey.route)
            if isinstance(decision, Refused) or journey.queues_only:
                return decision if isinstance(decision, Refused) else Refused(Refusal.ALL_FULL, "every worker tried was full")
            link = fleet.link(decision.worker_id)
            if link.ready:
                return decision
            self._pass_over(decision, link, now_s)
            journey.unconnected.add(decision.worker_id)

    def _pass_over(self, granted: Granted, link: Link, now_s: float) -> None:
        state, load = self._fleet.state, link.load
        if load.draining:
            state.hear(
                self._fleet.view,
                granted.worker_id,
                in_flight=load.in_flight,
                queued_rows=load.queued_rows,
                now_s=now_s,
                draining=True,
            )
        elif link.last_failure:
            state.inhibit(granted.worker_id, now_s)

    def _count(self, journey: Journey, refused: Refused) -> None:
        """A request that found nothing is demand all the same, once."""
        request = journey.request
        if journey.counted or not self._fleet.synced:
            return
        if refused.reason is Refusal.ALL_FULL:
            journey.counted = True
            self._ledger.tallies[request.region, request.model, self._meant(journey)].refuse()
        elif refused.reason in _COLD and self._may_come(journey, refused):
            journey.counted = True
            self._ledger.tallies[self._aim(journey), request.model, self._meant(journey)].miss()

    def _may_come(self, journey: Journey, refused: Refused) -> bool:
        return may_come(self._fleet, journey.request, refused, crosses=journey.route.cross_region)

    def _refusal(self, journey: Journey, refused: Refused) -> PenstockError:
        return refusal_of(self._fleet, journey.request, refused, crosses=journey.route.cross_region)

    def _aim(self, journey: Journey) -> Region:
        """Where a copy is to come from: its own region, or the nearest that can have one where its own cannot."""
        fleet, request = self._fleet, journey.request
        own = request.region or fleet.home
        if not journey.route.cross_region or self._can_have(request, own):
            return own
        others = [each for each in fleet.regions_with(request.model) if self._can_have(request, each)]
        return min(others, key=lambda region: (distance(fleet.state, own, region), region), default=own)

    def _can_have(self, request: Request, region: Region) -> bool:
        """Whether copies are wanted there, and somebody is there to hold them."""
        return self._is_inhabited(region) and self._fleet.placed(request.model, request.version, region)

    def _is_inhabited(self, region: Region) -> bool:
        return region == ANY_REGION or region in self._fleet.inhabited()

    def _meant(self, journey: Journey) -> ModelVersion:
        request = journey.request
        return request.version or self._fleet.newest(request.model, self._aim(journey))

    def _queues(self, journey: Journey, refused: Refused) -> bool:
        """Whether this is for the scheduler's queue."""
        if not self._may_ask(journey):
            return False
        if refused.reason in (Refusal.ALL_FULL, Refusal.ALL_EXCLUDED):
            return (refused.reason is Refusal.ALL_FULL or journey.met_busy) and not self._connecting(journey)
        # Where nobody is there is nobody to load it: that is waited out here, for as long as a worker may take to come back.
        return refused.reason in _COLD and self._may_come(journey, refused) and self._is_inhabited(self._aim(journey))

    def _connecting(self, journey: Journey) -> bool:
        """Whether a link is on its way up for the first time: that is sooner there than a place elsewhere."""
        links = [self._fleet.links[each] for each in journey.unconnected if each in self._fleet.links]
        return any(not link.last_failure and not link.load.draining for link in links)

    def _may_ask(self, journey: Journey) -> bool:
        fleet, request = self._fleet, journey.request
        if self._capacity is None or not fleet.synced or journey.asked >= _MAX_ASKS:
            return False
        return not request.sticky or fleet.state.sessions.home_of(request.model, request.session_key) is None

    async def _held(self, journey: Journey, refused: Refused) -> Granted | None:
        """A place that the scheduler keeps; None: it gives none now. Raises what it says to the caller."""
        if self._capacity is None:
            return None
        request, call = journey.request, journey.call
        ask = CapacityAsk(
            request.model,
            request.version,
            self._aim(journey),
            call.tenant,
            self._capacity.until_s(call.deadline_s),
            call.priority,
            frozenset([*(journey.failed_on - journey.busy_on), *journey.unconnected][:_MAX_EXCLUDED]),
            request.session_key,
        )
        while self._may_ask(journey):
            journey.asked += 1
            try:
                held = await self._capacity.place(ask)
            except CapacityEnded as ended:
                raise self._too_late(journey, refused, ended.message) from ended
            if held is None:
                return None
            if (granted := await self._reached(journey, held)) is not None:
                return granted
        return None

    async def _reached(self, journey: Journey, held: Held) -> Granted | None:
        """The place, once the way to it is there; None: it is not in time, and the hold runs out by itself."""
        fleet = self._fleet
        try:
            async with asyncio.timeout(_HELD_WAIT_S):
                while (seat := fleet.view.seats.get(held.worker_id)) is None:
                    await fleet.changed.wait()
                await fleet.link(held.worker_id).wait_connected(_HELD_WAIT_S)
        except TimeoutError:
            return None
        if held.worker_id not in fleet.view.seats or not fleet.link(held.worker_id).ready:
            return None
        request = journey.request
        journey.sent = replace(journey.call, hold_id=held.hold_id)
        session = request.session_key if request.sticky else ""
        return Granted(
            held.worker_id,
            held.version,
            Why.TURN,
            0.0,
            seat.slot,
            seat.tenure,
            not fleet.state.health.is_trusted(held.worker_id),
            model=request.model,
            prefix=request.prefix,
            session_key=session,
        )

    async def _wait(self, journey: Journey, refused: Refused, changed: asyncio.Event) -> None:
        """Return when it may be worth choosing again. Raises if waiting cannot help, or when time is up."""
        fleet, now_s = self._fleet, self._loop.time()
        links = [fleet.links[each] for each in journey.unconnected if each in fleet.links]
        connecting = [link for link in links if not link.load.draining]
        if not connecting and not self._may_come(journey, refused):
            raise journey.failure or self._refusal(journey, refused)
        if journey.give_up_s is None:
            self._metrics.waited()
            journey.give_up_s = now_s + self._patience_s(journey)
        deadline_s = journey.call.deadline_s
        until_s = journey.give_up_s if deadline_s is None else min(journey.give_up_s, deadline_s)
        if now_s >= until_s:
            raise self._too_late(journey, refused)
        journey.unconnected.clear()
        await _first(changed, connecting, until_s - now_s)

    def _too_late(self, journey: Journey, refused: Refused, seen: str = "") -> PenstockError:
        """`seen`: what the scheduler saw while the request waited there."""
        error, deadline_s = self._refusal(journey, refused), journey.call.deadline_s
        told = f"{error.message}; {seen}" if seen else error.message
        if deadline_s is not None and deadline_s <= self._loop.time():
            return DeadlineExceeded(f"no time is left: {told}")
        return journey.failure or type(error)(told, retry_after_s=error.retry_after_s)

    def _patience_s(self, journey: Journey) -> float:
        copies = self._fleet.copies(journey.request.model, journey.request.version)
        if copies and all(copy.state is CopyState.FAILED for _, copy in copies):
            return min(_FAILED_WAIT_S, self._settings.cold_wait_s)
        return self._settings.cold_wait_s


async def _first(changed: asyncio.Event, links: Iterable[Link], timeout_s: float) -> None:
    """Return when the view changed, one of the links connected, or the time ran out."""
    waits = [asyncio.create_task(changed.wait()), *(asyncio.create_task(_connected(link, timeout_s)) for link in links)]
    try:
        await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


async def _connected(link: Link, timeout_s: float) -> bool:
    return await link.wait_connected(timeout_s)
