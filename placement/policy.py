"""Decides which worker takes a request, or why none does.

Pure: the fleet, what the caller knows of it, the request and the time go in, a decision comes out; nothing is changed. The
decision is its own delta: `RoutingState.reserve(granted)` in the same step, `RoutingState.release(granted, …)` when it has
ended.

In this order: the model, its version (an empty one means the newest that is ready), the region, then among the ready copies
there those that this request has not tried, that are neither inhibited nor draining, and that have room; of these the
strategy's best, the lowest id among equals. Inhibited and draining workers are passed over while anyone else has room, and
are tried when nobody has: a worker that may fail is better than certain failure. Every candidate is warm: a copy that is not
ready is none.
"""

from __future__ import annotations

from collections.abc import Collection

from placement import scoring
from placement.candidates import Candidates, Seat
from placement.scoring import Pick
from placement.state import RoutingState
from placement.types import (
    ANY_REGION,
    Copy,
    CopyState,
    Decision,
    Granted,
    Refusal,
    Refused,
    Request,
    Strategy,
    Weights,
    Why,
)
from placement.view import FleetView, ModelIndex
from runtime.ids import WorkerId

DEFAULT_WEIGHTS = Weights()
_NAMED_AT_MOST = 4
"""Copies that a refusal describes one by one."""


def choose(
    view: FleetView,
    state: RoutingState,
    request: Request,
    *,
    now_s: float,
    strategy: Strategy = Strategy.AFFINITY,
    weights: Weights = DEFAULT_WEIGHTS,
) -> Decision:
    """The worker that takes this request now. `now_s` is of the caller's monotonic clock, as everywhere in `state`.

    Raises ValueError where `state` has not adopted this view.
    """
    if state.tenures is not view.tenures:
        raise ValueError("the state knows another view; adopt this one before choosing from it")
    found = _candidates(view, request)
    if isinstance(found, Refused):
        return found
    tried = [index for worker_id in request.exclude if (index := found.index_of(worker_id)) >= 0]
    avoided = _avoided(found, state, now_s)
    pick = _pick(found, state, request, [*tried, *avoided] if avoided else tried, now_s, strategy, weights)
    if pick is not None:
        return _granted(found, state, pick, strategy)
    pick = _pick(found, state, request, tried, now_s, strategy, weights) if avoided else None
    if pick is not None:
        return _granted(found, state, pick, strategy, last_resort=True)
    return _nobody(found, len(tried))


def _candidates(view: FleetView, request: Request) -> Candidates | Refused:
    index = view.models.get(request.model)
    if index is None:
        return Refused(Refusal.UNKNOWN_MODEL, f"no worker holds a copy of model {request.model!r}")
    version = request.version or index.newest_ready.get(request.region)
    found = index.ready.get((version, request.region)) if version else None
    return found if found is not None else _not_ready(view, index, request)


def _avoided(candidates: Candidates, state: RoutingState, now_s: float) -> list[int]:
    """Where the workers are that are chosen only if nobody else has room."""
    if not state.inhibitions and not state.draining:
        return []
    inhibited: set[WorkerId] = {who for who, held in state.inhibitions.items() if held.blocks(now_s)}
    return [index for who in inhibited | state.draining if (index := candidates.index_of(who)) >= 0]


def _pick(
    candidates: Candidates,
    state: RoutingState,
    request: Request,
    blocked: Collection[int],
    now_s: float,
    strategy: Strategy,
    weights: Weights,
) -> Pick | None:
    if strategy is Strategy.ROUND_ROBIN:
        return scoring.next_in_turn(candidates, state, blocked)
    if strategy is Strategy.LEAST_LOADED:
        return scoring.least_loaded(candidates, state, blocked, now_s)
    return scoring.weighted(candidates, state, blocked, now_s, request.session_key, weights)


def _granted(
    candidates: Candidates, state: RoutingState, pick: Pick, strategy: Strategy, *, last_resort: bool = False
) -> Granted:
    seat: Seat = candidates.seats[pick.index]
    trial = seat.worker_id in state.inhibitions
    turn = candidates.key if strategy is Strategy.ROUND_ROBIN else None
    if last_resort:
        why = Why.LAST_RESORT
    elif trial:
        why = Why.PROBE
    elif turn is not None:
        why = Why.TURN
    else:
        why = Why.SESSION if pick.own else Why.SCORE
    return Granted(seat.worker_id, candidates.key.version, why, pick.score, seat.slot, seat.tenure, trial, turn)


def _nobody(candidates: Candidates, tried: int) -> Refused:
    key, count = candidates.key, len(candidates.seats)
    what = f"{_workers(count)} with model {key.model!r} version {key.version}"
    if tried == count:
        return Refused(Refusal.ALL_EXCLUDED, f"this request has failed on every one of {what}")
    full = f"every one of {_workers(count - tried)} left of {what} holds as many requests as it takes at once"
    return Refused(Refusal.ALL_FULL, full if tried else f"every one of {what} holds as many requests as it takes at once")


def _not_ready(view: FleetView, index: ModelIndex, request: Request) -> Refused:
    """Why there is no ready copy: said of the version if one was asked for, else of all."""
    wanted, named = request.version, f"model {request.model!r}"
    if wanted:
        named += f" version {wanted}"
        if wanted not in index.versions():
            known = ", ".join(sorted(index.versions()))
            return Refused(Refusal.UNKNOWN_VERSION, f"no worker holds a copy of {named}; held are: {known}")
    copies = [pair for pair in view.copies_of(request.model) if wanted in ("", pair[1].version)]
    here = [copy for worker, copy in copies if request.region in (ANY_REGION, worker.region)]
    if not here:
        regions = ", ".join(sorted({worker.region for worker, _ in copies}))
        return Refused(
            Refusal.NO_REGION, f"no worker in region {request.region!r} holds a copy of {named}; some do in: {regions}"
        )
    return Refused(Refusal.NOT_READY, f"no copy of {named} is ready: {_states(here)}")


def _states(copies: list[Copy]) -> str:
    """What the copies are doing instead, failures first: they need somebody."""
    ordered = sorted(copies, key=lambda copy: copy.state is not CopyState.FAILED)
    told = [f"{copy.state.value}{f' ({copy.reason})' if copy.reason else ''}" for copy in ordered[:_NAMED_AT_MOST]]
    more = len(copies) - len(told)
    return ", ".join(told) + (f" and {more} more" if more else "")


def _workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"
