"""The nouns that the gateway's parts share."""

from __future__ import annotations

from dataclasses import dataclass

from placement.assign import Placement
from placement.types import Worker
from runtime.ids import Digest, ModelName, ModelVersion, WorkerId


@dataclass(frozen=True, slots=True)
class FleetNews:
    """What the scheduler says of the fleet: everything (`snapshot`), or what changed."""

    snapshot: bool
    workers: tuple[Worker, ...] = ()
    removed: tuple[WorkerId, ...] = ()
    stale: bool = False
    """The scheduler itself tells from memory."""
    placements: tuple[Placement, ...] | None = None
    """All wishes, or None where none changed."""


@dataclass(frozen=True, slots=True)
class PublishedVersion:
    """A model version as the registry lists it."""

    model: ModelName
    version: ModelVersion
    digest: Digest
    task: str
    published_at_s: int
