"""The nouns of reserving: what is asked for, what is kept, and whom to ask to keep it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from placement.types import Worker
from runtime.errors import Code, PenstockError
from runtime.ids import ModelName, ModelVersion, Region, TenantId

DEFAULT_TTL_S = 60.0
MAX_TTL_S = 600.0


class NobodyTakesSealed(PenstockError, code=Code.FAILED_PRECONDITION, reason="NOBODY_TAKES_SEALED"):
    """The model is ready, but only on workers that have no port for clients with a reservation."""


class NoPlace(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="NO_PLACE"):
    """Every worker that was asked is full."""


class WorkerUnknown(PenstockError, code=Code.NOT_FOUND, reason="WORKER_UNKNOWN"):
    """No worker of that id is in the fleet."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A place that somebody wants kept."""

    model: ModelName
    version: ModelVersion
    """Empty: the newest that is ready."""
    region: Region
    tenant: TenantId
    ttl_s: float
    token_sha256: bytes
    session_key: str = ""


@dataclass(frozen=True, slots=True)
class Reservation:
    """A place that a worker keeps."""

    reservation_id: str
    worker: Worker
    version: ModelVersion
    record: bytes = field(repr=False)
    """The worker's presence as it signed it."""
    expires_wall_s: float


class Workers(Protocol):
    """Workers as a scheduler calls them: `scheduler.workers.WorkerPeers`. Each raises what the worker answers."""

    async def hold(
        self,
        worker: Worker,
        *,
        hold_id: str,
        model: ModelName,
        version: ModelVersion,
        tenant: TenantId,
        wait_s: float,
        ttl_s: float,
        token_sha256: bytes = b"",
    ) -> ModelVersion:
        """The version that the place is for."""
        ...

    async def release(self, worker: Worker, hold_id: str) -> None: ...

    async def drain(self, worker: Worker, grace_s: float) -> None: ...
