"""The nouns of what gateways report."""

from __future__ import annotations

from dataclasses import dataclass

from placement.copies.demand import Asked
from runtime.ids import Region, WorkerId


@dataclass(frozen=True, slots=True)
class SeenWorker:
    """How busy one gateway finds one worker."""

    worker_id: WorkerId
    in_flight: int = 0
    """This gateway's requests there."""
    told_in_flight: int = 0
    """Everybody's, as the worker told it."""
    queued_rows: int = 0
    latency_ms: float = 0.0
    avoided: bool = False
    """It passes the worker over for now."""


@dataclass(frozen=True, slots=True)
class Report:
    """One message of one gateway."""

    region: Region
    interval_s: float
    asked: tuple[Asked, ...] = ()
    workers: tuple[SeenWorker, ...] = ()
