"""Why a request got no place, in the words that its caller reads.

Pure. Decides code and sentence by what the policy refused and what the fleet is to hold. Sentences of unknown models begin with
Triton's (model_repository_manager.cc, GetModel), because clients match on them.
"""

from __future__ import annotations

from typing import Protocol

from placement.types import ANY_REGION, Refusal, Refused, Request
from runtime.errors import Code, PenstockError
from runtime.ids import Region

_SHED_RETRY_S = 0.25
_COLD_RETRY_S = 1.0
_AUTO = "auto"
"""Names no model: `gateway.auto`. Tensors have no common shape, nor have the vectors of two models a common meaning."""

_ABSENT = (Refusal.UNKNOWN_MODEL, Refusal.UNKNOWN_VERSION, Refusal.NO_REGION)


class ModelUnknown(PenstockError, code=Code.NOT_FOUND, reason="MODEL_UNSERVED"):
    """No worker holds this model and nobody wants one to. The sentence is Triton's: clients match on it."""


class RegionUnserved(PenstockError, code=Code.NOT_FOUND, reason="REGION_UNSERVED"):
    """Other regions have this model, and requests stay in theirs."""


class ModelCold(PenstockError, code=Code.UNAVAILABLE, reason="MODEL_NOT_READY"):
    """Copies are wanted or being loaded, but none became ready in time."""


class FleetFull(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="FLEET_FULL"):
    """Every copy holds as many requests as it takes."""


class WorkersUnreachable(PenstockError, code=Code.UNAVAILABLE, reason="WORKERS_UNREACHABLE"):
    """Copies are ready, but no way leads to them now."""


class RouteDenied(PenstockError, code=Code.FAILED_PRECONDITION, reason="ROUTE_DENIED"):
    """Copies are ready, but the routing policy lets this request to none of them."""


class Fleet(Protocol):
    """What is wanted where: gateway.fleet.Fleet."""

    @property
    def synced(self) -> bool: ...

    def placed(self, model: str, version: str = "", region: Region = ANY_REGION) -> bool: ...

    def regions_with(self, model: str) -> list[Region]: ...

    def inhabited(self) -> frozenset[Region]: ...


def may_come(fleet: Fleet, request: Request, refused: Refused, *, crosses: bool = False) -> bool:
    """Whether a copy may become ready while one waits. `crosses`: one in another region will do."""
    if not fleet.synced or refused.reason is Refusal.NOT_READY:
        return True
    return refused.reason in _ABSENT and _is_placed(fleet, request, crosses=crosses)


def refusal_of(fleet: Fleet, request: Request, refused: Refused, *, crosses: bool = False) -> PenstockError:
    """What to answer where nothing changes any more. `crosses`: the request may leave its region."""
    if not fleet.synced:
        return ModelCold("this gateway has not heard from the scheduler yet; try again", retry_after_s=_COLD_RETRY_S)
    if refused.reason in _ABSENT:
        return _absent(fleet, request, refused, crosses=crosses)
    if refused.reason is Refusal.ALL_FULL:
        return FleetFull(refused.detail, retry_after_s=_SHED_RETRY_S)
    if refused.reason is Refusal.ALL_EXCLUDED:
        detail = f"no way leads to a worker with model {request.model!r} now; try again"
        return WorkersUnreachable(detail, retry_after_s=_COLD_RETRY_S)
    if refused.reason is Refusal.DENIED:
        return RouteDenied(f"{refused.detail}; an operator finds the rule by `penstock fleet explain {request.model}`")
    return ModelCold(refused.detail, retry_after_s=_COLD_RETRY_S)


def unknown_model(model: str, version: str = "") -> ModelUnknown:
    if model == _AUTO:
        return ModelUnknown(f"Request for unknown model: {model!r} is not found: a model is chosen for text alone; name one")
    if version:
        return ModelUnknown(f"Request for unknown model: '{model[:200]}' version {version[:40]} is not found")
    return ModelUnknown(f"Request for unknown model: '{model[:200]}' is not found")


def _absent(fleet: Fleet, request: Request, refused: Refused, *, crosses: bool) -> PenstockError:
    model, version = request.model, request.version
    regions = [each for each in fleet.regions_with(model) if each != request.region]
    if _is_placed(fleet, request, crosses=crosses):
        if not crosses and request.region not in (ANY_REGION, *fleet.inhabited()):
            return _deserted(request, regions)
        return ModelCold(f"{refused.detail}; it is to be loaded, but no worker has begun", retry_after_s=_COLD_RETRY_S)
    if not regions or refused.reason is Refusal.UNKNOWN_VERSION or crosses:
        return unknown_model(model, version)
    here = f"in region '{request.region}'" if request.region else "here"
    return RegionUnserved(
        f"Request for unknown model: '{model[:200]}' is not found {here}; it is in: {', '.join(regions[:8])}, and requests"
        " leave their region only where cross-region routing is on"
    )


def _deserted(request: Request, regions: list[Region]) -> ModelCold:
    elsewhere = f"; it is in: {', '.join(regions[:8])}, and cross-region routing is off" if regions else ""
    detail = f"no worker is in region '{request.region}' now to serve model '{request.model[:200]}'{elsewhere}; try again"
    return ModelCold(detail, retry_after_s=_COLD_RETRY_S)


def _is_placed(fleet: Fleet, request: Request, *, crosses: bool) -> bool:
    """Whether somebody wants copies where this request may go."""
    model, version = request.model, request.version
    regions = fleet.regions_with(model) if crosses else ()
    return fleet.placed(model, version, request.region) or any(fleet.placed(model, version, each) for each in regions)
