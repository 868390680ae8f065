"""The nouns that the scheduler's parts share."""

from __future__ import annotations

from dataclasses import dataclass, field

from placement.types import Worker
from runtime.ids import WorkerId


@dataclass(frozen=True, slots=True)
class Member:
    """A worker whose presence was believed."""

    worker: Worker
    key: str
    """Where in etcd it said so; only that key's end is this worker's."""
    payload: bytes = field(repr=False)
    """The serialised Presence that it signed, for those who watch the fleet."""
    shown: bytes = field(repr=False)
    """What of the payload is news when it differs: all but the heartbeat's own numbers."""
    record: bytes = field(repr=False)
    """The payload as it was signed, for clients that believe the mesh's authority alone."""

    @property
    def worker_id(self) -> WorkerId:
        return self.worker.worker_id


@dataclass(frozen=True, slots=True)
class FleetDelta:
    """Workers that show something else than before, and workers that left."""

    changed: tuple[WorkerId, ...] = ()
    removed: tuple[WorkerId, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.changed or self.removed)
