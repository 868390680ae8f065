"""What the queue sees of the mesh, and what it makes of it for one line: who answers, what may be hoped for.

Remembers who answers until the model's copies change, and since when nothing but failures was seen. Never changes anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from placement.copies.wishes import Placement
from placement.rules import Route
from placement.types import CandidateKey
from placement.view import FleetView, ModelIndex
from runtime.clock import Clock
from runtime.errors import ModelLoadFailed, ModelNotPlaced, PenstockError
from runtime.ids import ModelName, ModelVersion, Region, TenantId, WorkerId
from scheduler.capacity.aim import ready_workers
from scheduler.capacity.hope import Hope, Prospect, prospect_of

_REMEMBERED = 1024
RouteOf = Callable[[TenantId, ModelName, Region], Route]
Missed = Callable[[ModelName, ModelVersion, Region], None]


@dataclass(frozen=True, slots=True)
class World:
    """What a scheduler sees, each as it is when it is asked, and whom it tells that a model answers nowhere."""

    view: Callable[[], FleetView]
    wishes: Callable[[], Iterable[Placement]]
    leads: Callable[[Region], bool]
    route_of: RouteOf
    on_missed: Missed = lambda model, version, region: None
    shortage: Callable[[CandidateKey], str] = lambda key: ""
    """Why fewer copies are placed than wished for; empty: they are not, or it is not known."""
    synced: Callable[[], bool] = lambda: True
    """Whether fleet and wishes were seen at all; before that nothing is missing."""


class Lookout:
    """For the lines of one queue."""

    def __init__(self, world: World, clock: Clock, failed_after_s: float) -> None:
        self._world, self._clock, self._failed_after_s = world, clock, failed_after_s
        self._answering: dict[tuple[CandidateKey, bool], tuple[ModelIndex | None, Mapping[WorkerId, ModelVersion]]] = {}
        self._failed_since_s: dict[CandidateKey, float] = {}

    def answering(self, key: CandidateKey, *, abroad: bool) -> Mapping[WorkerId, ModelVersion]:
        """Who answers for it, with which version."""
        view = self._world.view()
        index, known = view.models.get(key.model), self._answering.get((key, abroad))
        if known is not None and known[0] is index:
            return known[1]
        if len(self._answering) >= _REMEMBERED:
            self._answering.clear()
        found = ready_workers(view, key, abroad=abroad)
        self._answering[key, abroad] = (index, found)
        return found

    def hopeless(self, key: CandidateKey, *, abroad: bool) -> PenstockError | None:
        """Why there is nothing to wait for where nobody answers, or None; then whoever brings copies is told.

        That every copy failed counts once it has lasted, if another worker could still try.
        """
        if not self._world.synced():
            return None
        prospect = self.prospect(key, abroad=abroad)
        if prospect.hope is Hope.NOT_PLACED:
            return ModelNotPlaced(prospect.detail)
        if prospect.hope is Hope.COMING:
            self._failed_since_s.pop(key, None)
        else:
            now_s = self._clock.monotonic_s()
            failing_s = now_s - self._failed_since_s.setdefault(key, now_s)
            if prospect.hope is Hope.FAILED_EVERYWHERE or failing_s >= self._failed_after_s:
                return ModelLoadFailed(f"{prospect.detail}; wish for it again to have workers retry")
        self._world.on_missed(key.model, key.version, key.region)
        return None

    def prospect(self, key: CandidateKey, *, abroad: bool) -> Prospect:
        world = self._world
        return prospect_of(world.view(), world.wishes(), key, abroad=abroad, shortage=world.shortage(key))

    def forget(self, key: CandidateKey) -> None:
        """Nobody waits for it any more."""
        self._failed_since_s.pop(key, None)
