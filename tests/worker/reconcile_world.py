"""A worker's world for its reconciler: files, engine and table at once, a store in memory, a clock that stands still."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from penstock.scheduler.v1 import scheduler_pb2

from runtime.errors import DataLoss
from runtime.ids import Digest, ModelName, ModelVersion
from runtime.memory_store import MemoryStore
from runtime.notices import NoticeBoard
from tests.support.manual_clock import ManualClock, settle
from worker.copies import LoadedModel
from worker.engine import ModelRefused
from worker.files.artifacts import Prepared, Progress
from worker.files.manifest import Description
from worker.life.lifecycle import CopyKey, Holdings
from worker.life.loading import LoadRules
from worker.life.memory import Usage
from worker.life.reconcile import Reconciler
from worker.statistics import CopyStatistics
from worker.traits import Traits
from worker.types import CopyState, ModelSpec, Task

KEY = "/penstock/control/here/assignments/me"
RULES = LoadRules(attempts=3, again_after_s=60.0, leave_grace_s=0.3)
S = CopyState
SIGNER = b"s" * 32
SIZES = {"big": 60, "large": 60, "huge": 200}
"""Bytes that an open copy takes; others take one."""


def spec_of(digest: str) -> ModelSpec:
    """Digests here read model-version."""
    model, version = digest.split("-")[:2]
    size = SIZES.get(model, 1)
    return ModelSpec(
        ModelName(model),
        ModelVersion(version),
        Digest(digest),
        "onnx",
        Task.TENSOR,
        8,
        (),
        (),
        memory_bytes=size,
        signer=SIGNER,
    )


@dataclass(slots=True)
class World:
    """Files, engine and table at once; does what a test says and notes what it is asked."""

    store: MemoryStore
    clock: ManualClock
    holdings: Holdings = field(default_factory=Holdings)
    failures: dict[str, list[Exception]] = field(default_factory=dict)
    """By digest: what the next loads end with."""
    progress_bytes: int = 0
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    """By model: its load, or its drain as "drain <model>", waits for it."""
    answering: dict[tuple[str, str], LoadedModel] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)
    attempts: list[tuple[str, float]] = field(default_factory=list)
    folders: set[str] = field(default_factory=set)
    busy: set[str] = field(default_factory=set)
    """Models with a request in flight."""
    resident_bytes: int = 0
    closed: list[str] = field(default_factory=list)
    board: NoticeBoard = field(default_factory=NoticeBoard)

    async def describe(self, digest: Digest, key: CopyKey) -> Description:
        self.attempts.append((digest, self.clock.monotonic_s()))
        return Description(spec_of(digest), ())

    async def prepare(self, description: Description, progress: Progress) -> Prepared:
        digest = description.spec.digest
        progress(self.progress_bytes)
        if self.failures.get(digest):
            raise self.failures[digest].pop(0)
        self.folders.add(digest)
        return Prepared(description.spec, Path(digest))

    async def check(self, prepared: Prepared) -> None:
        if prepared.spec.model == "swapped":
            raise DataLoss("a file was changed")

    def usage(self) -> dict[CopyKey, Usage]:
        return {
            (loaded.spec.model, loaded.spec.version): Usage(loaded.spec.model in self.busy, 0.0)
            for loaded in self.answering.values()
        }

    async def release(self, prepared: Prepared) -> None:
        self.folders.discard(prepared.spec.digest)

    async def open_model(self, spec: ModelSpec, folder: Path) -> LoadedModel:
        if gate := self.gates.get(spec.model):
            await gate.wait()
        if spec.model == "refused":
            raise ModelRefused("an output is missing")
        self.resident_bytes += 1000
        if spec.model == "skilled":
            spec = replace(spec, traits=Traits(frozenset({"resume"}), context_tokens=64))
        return cast("LoadedModel", _Loaded(spec, self.closed))

    def add(self, loaded: LoadedModel) -> None:
        self.events.append(f"+{loaded.spec.model}:{loaded.spec.version}")
        self.answering[loaded.spec.model, loaded.spec.version] = loaded

    async def remove(self, model: ModelName, version: ModelVersion, *, grace_s: float | None = None) -> None:
        self.events.append(f"-{model}:{version}")
        del self.answering[model, version]
        if gate := self.gates.get(f"drain {model}"):
            await gate.wait()

    async def order(self, *digests: str, generation: int = 1) -> None:
        message = scheduler_pb2.Assignment(
            models=[
                scheduler_pb2.AssignedModel(
                    model=digest.split("-")[0], version=digest.split("-")[1], digest=digest, generation=generation
                )
                for digest in digests
            ]
        )
        await self.store.put(KEY, message.SerializeToString())
        await settle()

    @property
    def states(self) -> dict[str, CopyState]:
        return {f"{copy.model}:{copy.version}": copy.state for copy in self.holdings}

    def reason(self, model: str) -> str:
        return next(copy.reason for copy in self.holdings if copy.model == model)


@dataclass(frozen=True, slots=True)
class _Loaded:
    spec: ModelSpec
    closed: list[str]
    statistics: CopyStatistics = field(default_factory=CopyStatistics)

    def close(self) -> None:
        self.closed.append(self.spec.model)


@asynccontextmanager
async def opened_world() -> AsyncIterator[World]:
    clock = ManualClock()
    async with MemoryStore(clock=clock, rng=random.Random(1)) as store:
        yield World(store, clock)


@asynccontextmanager
async def running(world: World, rules: LoadRules = RULES, *, memory_bytes: int = 100) -> AsyncIterator[Reconciler]:
    reconciler = Reconciler(
        world.store,
        KEY,
        world,
        world,
        world.open_model,
        world.holdings,
        world.clock,
        random.Random(2),
        rules,
        memory_bytes=memory_bytes,
        resident_bytes=lambda: world.resident_bytes,
        board=world.board,
    )
    async with reconciler.running():
        await settle()
        yield reconciler
