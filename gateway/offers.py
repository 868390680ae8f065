"""What the models in the fleet offer to a request that leaves the choice to the gateway.

Owns what was read of the copies in the view, for as long as that is the view. Decides which models a key may have, which the
routing policy lists, and in which version each would be asked; `gateway.auto` decides which one is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from gateway.admission import KeyFacts
from gateway.auto import Offer
from gateway.fleet import Fleet
from gateway.routes import Routes
from placement.rules import named
from placement.types import Copy, CopyState, Worker, newest
from placement.view import FleetView
from runtime.errors import PenstockError
from runtime.ids import ModelVersion, WorkerId


class Targets(Protocol):
    """What names mean, and who may have that: gateway.targets.Targets."""

    def sees(self, key: KeyFacts, model: str) -> bool: ...

    def is_known(self, model: str) -> bool: ...

    def mostly(self, key: KeyFacts, model: str, wanted: str) -> ModelVersion: ...


@dataclass(frozen=True, slots=True)
class _Held:
    """What the copies of one version say, all together."""

    task: str = ""
    capabilities: frozenset[str] = frozenset()
    """Of every copy: any of them may be the one that is asked."""
    context_tokens: int = 0
    cost: float = 0.0
    ready_on: tuple[WorkerId, ...] = ()
    places: int = 0


class Offers:
    """Belongs to one event loop."""

    def __init__(self, targets: Targets, fleet: Fleet, routes: Routes) -> None:
        self._targets, self._fleet, self._routes = targets, fleet, routes
        self._view: FleetView | None = None
        self._held: dict[tuple[str, ModelVersion], _Held] = {}

    @property
    def synced(self) -> bool:
        return self._fleet.synced

    def is_published(self, key: KeyFacts, model: str) -> bool:
        """Whether there is a model of this name, which this key may have."""
        there = self._targets.is_known(model) or bool(self._fleet.copies(model)) or self._fleet.placed(model)
        return there and self._targets.sees(key, model)

    def to(self, key: KeyFacts, name: str) -> list[Offer]:
        """Of the models that this key may have, what those offer that the rules for the model `name` list."""
        fleet, targets = self._fleet, self._targets
        patterns = self._routes.at_home(key.tenant, name).auto_models
        known = {*fleet.view.models, *(wish.model for wish in fleet.wanted())}
        listed = sorted(each for each in known if named(patterns, each) and targets.sees(key, each))
        return [self._offer(key, each, patterns) for each in listed]

    def _offer(self, key: KeyFacts, model: str, patterns: tuple[str, ...]) -> Offer:
        preference = next((number for number, each in enumerate(patterns) if named((each,), model)), 0)
        try:
            version = self._targets.mostly(key, model, "")
        except PenstockError as error:
            return Offer(model, preference=preference, withheld=error.message)
        held, fleet = self._of(model, version), self._fleet
        loads = [fleet.state.load_of(fleet.view, each) for each in held.ready_on]
        in_flight = sum(load.in_flight + load.foreign_in_flight for load in loads)
        return Offer(model, held.task, held.capabilities, held.context_tokens, held.cost, in_flight, held.places, preference)

    def _of(self, model: str, version: ModelVersion) -> _Held:
        if self._view is not self._fleet.view:
            self._view = self._fleet.view
            self._held.clear()
        held = self._held.get((model, version))
        if held is None:
            held = self._held[model, version] = _held_of(self._fleet.copies(model, version))
        return held


def _held_of(pairs: Iterable[tuple[Worker, Copy]]) -> _Held:
    """Of the newest version that is ready, else of the newest of which there are copies; those that failed are none."""
    held = [pair for pair in pairs if pair[1].state is not CopyState.FAILED]
    ready = [pair for pair in held if pair[1].state is CopyState.READY]
    if not held:
        return _Held()
    version = newest(copy.version for _, copy in ready or held)
    copies = [copy for _, copy in held if copy.version == version]
    workers = [worker for worker, copy in ready if copy.version == version]
    return _Held(
        copies[0].task,
        frozenset.intersection(*(copy.capabilities for copy in copies)),
        min((copy.context_tokens for copy in copies if copy.context_tokens), default=0),
        max(copy.cost_per_million_tokens for copy in copies),
        tuple(worker.worker_id for worker in workers),
        sum(worker.max_in_flight for worker in workers),
    )
