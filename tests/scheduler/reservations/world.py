"""A desk over a fleet in memory, and workers that keep as many places as they are told."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from penstock.worker.v1 import presence_pb2

from placement.rules import Route
from placement.types import Worker
from runtime.errors import PenstockError, ResourceExhausted
from runtime.ids import ModelName, ModelVersion, TenantId, WorkerId
from runtime.keyvalue import KeyValue
from runtime.notices import NoticeBoard
from runtime.sealing import reservation_parts
from scheduler.fleet import Fleet
from scheduler.outlook import Outlook
from scheduler.reservations.desk import Desk
from scheduler.reservations.types import Asked
from tests.scheduler.mesh import HERE, Mesh, model
from tests.support.manual_clock import ManualClock

DIGITS = ModelName("digits")


@dataclass(slots=True)
class Workers:
    """Keeps places; what a worker is to answer instead is in `answers`."""

    places: int = 1
    kept: dict[str, WorkerId] = field(default_factory=dict)
    asked: list[tuple[WorkerId, float]] = field(default_factory=list)
    answers: dict[WorkerId, PenstockError] = field(default_factory=dict)
    drained: list[tuple[WorkerId, float]] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    tenants: list[TenantId] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    late: bool = False
    """Keeps the place, and is then silent."""

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
        self.asked.append((worker.worker_id, wait_s))
        if (error := self.answers.get(worker.worker_id)) is not None:
            raise error
        if list(self.kept.values()).count(worker.worker_id) >= self.places:
            raise ResourceExhausted("no place came free", retry_after_s=0.1)
        self.kept[hold_id] = worker.worker_id
        self.tenants.append(tenant)
        self.digests.append(token_sha256)
        if self.late:
            await asyncio.Event().wait()
        return version

    async def release(self, worker: Worker, hold_id: str) -> None:
        self.released.append(hold_id)
        if self.kept.get(hold_id) == worker.worker_id:
            del self.kept[hold_id]

    async def drain(self, worker: Worker, grace_s: float) -> None:
        self.drained.append((worker.worker_id, grace_s))


class World:
    """One desk and its fleet."""

    def __init__(self, mesh: Mesh, clock: ManualClock, workers: Workers | None = None) -> None:
        self.mesh, self.clock, self.workers = mesh, clock, workers or Workers()
        self.fleet = Fleet(mesh.reader())
        self.outlook = Outlook(self.fleet, NoticeBoard(), clock, dict)
        self.route = Route()
        self.desk = Desk(
            self.outlook,
            lambda: self.fleet.members,
            self.workers,
            lambda *_: self.route,
            clock,
            synced=lambda: self.fleet.synced,
        )

    def show(self, **workers: Any) -> None:
        """These workers and no others: by name, what of their presence is not as usual."""
        delta = self.fleet.replace(
            [self._item(name, changes) for name, changes in workers.items()],
            now_s=self.clock.monotonic_s(),
            now_wall_s=self.clock.wall_s(),
        )
        self.outlook.follow(delta)

    def _item(self, name: str, changes: dict[str, Any]) -> KeyValue:
        presence = self.mesh.presence(name, *changes.pop("models", [model()]))
        told = {"sealed_address": f"{name}:7", "x25519_public_key": self.mesh.node(name).x25519_public_key, **changes}
        presence.MergeFrom(presence_pb2.Presence(**told))
        return KeyValue(self.mesh.key(name), self.mesh.signed(name, presence), 1, 1, 1)

    def id(self, name: str) -> WorkerId:
        return self.mesh.worker_id(name)

    def worker_of(self, reservation_id: str) -> str:
        """By name."""
        worker_id, _ = reservation_parts(reservation_id)
        return next(name for name in "abcde" if self.id(name) == worker_id)


def asked(**changes: Any) -> Asked:
    told: dict[str, Any] = {
        "model": DIGITS,
        "version": ModelVersion(""),
        "region": HERE,
        "tenant": TenantId("acme"),
        "ttl_s": 60.0,
        "token_sha256": b"d" * 32,
        **changes,
    }
    return Asked(**told)
