"""The nouns of waiting for room: what is asked, the place that is given, and why there is none."""

from __future__ import annotations

from dataclasses import dataclass

from placement.types import ANY_VERSION
from runtime.ids import ModelName, ModelVersion, Region, TenantId, WorkerId


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that found no room."""

    model: ModelName
    region: Region
    tenant: TenantId
    version: ModelVersion = ANY_VERSION
    priority: int = 0
    timeout_s: float | None = None
    """None: as long as anybody may wait."""
    exclude: frozenset[WorkerId] = frozenset()


@dataclass(frozen=True, slots=True)
class Place:
    """A place at a worker, kept under its hold."""

    worker_id: WorkerId
    version: ModelVersion
    hold_id: str
    until_s: float
    """On this scheduler's clock; the worker ends the hold then."""


@dataclass(frozen=True, slots=True)
class CapacityRules:
    """How long things may take, and how many."""

    longest_wait_s: float = 60.0
    """For who gave no time."""
    most_wait_s: float = 600.0
    """For who gave one."""
    hold_wait_s: float = 20.0
    """How long one hold waits at a worker before it is asked anew."""
    hold_ttl_s: float = 2.0
    """From a place's grant to its use."""
    per_worker: int = 4
    """Holds that wait at one worker for one line of the queue."""
    spare: int = 8
    """Holds beyond one for each that waits, so that whichever worker has a place first gives it."""
    failed_after_s: float = 5.0
    """A model of which every copy failed is given up after so long without a better one."""
