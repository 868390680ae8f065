"""Why nobody takes a request: a reason for the code, and a sentence for the person.

Told of what was seen: how many workers, which versions, which regions, what the copies are doing instead. Decides nothing.
"""

from __future__ import annotations

import numpy as np

from placement.routing.contest import Contest
from placement.types import ANY_REGION, Copy, CopyState, Refusal, Refused, Request
from placement.view import FleetView, ModelIndex
from runtime.ids import Region, WorkerId

_NAMED_AT_MOST = 4
"""Copies that a refusal describes one by one."""


def unknown_model(request: Request) -> Refused:
    return Refused(Refusal.UNKNOWN_MODEL, f"no worker holds a copy of model {request.model!r}")


def not_ready(view: FleetView, index: ModelIndex, request: Request, region: Region) -> Refused:
    """Why there is no ready copy: said of the version if one was asked for, else of all."""
    wanted, named = request.version, f"model {request.model!r}"
    if wanted:
        named += f" version {wanted}"
        if wanted not in index.versions():
            known = ", ".join(sorted(index.versions()))
            return Refused(Refusal.UNKNOWN_VERSION, f"no worker holds a copy of {named}; held are: {known}")
    copies = [pair for pair in view.copies_of(request.model) if wanted in ("", pair[1].version)]
    here = [copy for worker, copy in copies if region in (ANY_REGION, worker.region)]
    if not here:
        regions = ", ".join(sorted({worker.region for worker, _ in copies}))
        return Refused(Refusal.NO_REGION, f"no worker in region {region!r} holds a copy of {named}; some do in: {regions}")
    return Refused(Refusal.NOT_READY, f"no copy of {named} is ready: {_states(here)}")


def nobody(contest: Contest) -> Refused:
    """Why none of the candidates takes it."""
    key, count = contest.candidates.key, len(contest.candidates.seats)
    what = f"{_workers(count)} with model {key.model!r} version {key.version}"
    allowed = contest.selection.allowed
    let_in = count if allowed is None else int(np.count_nonzero(allowed))
    if not let_in:
        return Refused(Refusal.DENIED, f"the routing policy's rules ({_rules(contest)}) let this request to none of {what}")
    tried = sum(allowed is None or bool(allowed[index]) for index in contest.tried)
    if let_in < count:
        what = f"the {_workers(let_in)} that the routing policy lets this request to, of {what}"
    if tried == let_in:
        return Refused(Refusal.ALL_EXCLUDED, f"this request has failed on every one of {what}")
    full = f"every one of {_workers(let_in - tried)} left of {what}" if tried else f"every one of {what}"
    return Refused(Refusal.ALL_FULL, f"{full} holds as many requests as it takes at once")


def full_home(contest: Contest, worker_id: WorkerId) -> Refused:
    """The session's own worker has no room."""
    model = contest.candidates.key.model
    return Refused(
        Refusal.ALL_FULL,
        f"worker {worker_id}, where this session of model {model!r} has its state, holds as many requests as it takes at once",
    )


def _states(copies: list[Copy]) -> str:
    """What the copies are doing instead, failures first: they need somebody."""
    ordered = sorted(copies, key=lambda copy: copy.state is not CopyState.FAILED)
    told = [f"{copy.state.value}{f' ({copy.reason})' if copy.reason else ''}" for copy in ordered[:_NAMED_AT_MOST]]
    more = len(copies) - len(told)
    return ", ".join(told) + (f" and {more} more" if more else "")


def _rules(contest: Contest) -> str:
    return ", ".join(contest.route.rules) or "unnamed"


def _workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"
