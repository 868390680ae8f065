"""One load: from an ordered version to an open copy.

Fetches through `files/artifacts.py`, asks for memory once the files are here, opens when it was given. What fails of a cause
that may pass is tried again a few times; progress is worth a fresh start. Never decides whether there is room: the plan does,
and `Rooms.given` and `Rooms.refused` hand its word on.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from runtime.backoff import Backoff
from runtime.clock import Clock
from runtime.errors import Code, PenstockError
from runtime.ids import Digest
from worker.copies import LoadedModel
from worker.engine import ModelRefused
from worker.files.artifacts import Prepared, Progress
from worker.files.manifest import Description
from worker.life.lifecycle import Copy, CopyKey, Holdings, Room
from worker.life.memory import is_pinned, taken_bytes
from worker.types import ModelSpec

PASSING = (Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED, Code.ABORTED)
"""Of a cause that may pass by itself."""

_BACKOFF = Backoff(first_s=0.5, max_s=8.0)
_log = structlog.get_logger("penstock.reconcile")


class MemoryShort(PenstockError, code=Code.FAILED_PRECONDITION, reason="MEMORY_SHORT"):
    """There is no room for this copy beside those that may not be let go of."""


class ModelFiles(Protocol):
    """What a load needs of `worker.files.artifacts`."""

    async def describe(self, digest: Digest, key: CopyKey) -> Description: ...

    async def prepare(self, description: Description, progress: Progress) -> Prepared: ...

    async def check(self, prepared: Prepared) -> None: ...

    async def release(self, prepared: Prepared) -> None: ...


OpenModel = Callable[[ModelSpec, Path], Awaitable[LoadedModel]]


@dataclass(frozen=True, slots=True)
class LoadRules:
    """How loads and unloads are gone about."""

    at_once: int = 2
    attempts: int = 6
    """In a row without a byte of progress."""
    backoff: Backoff = _BACKOFF
    again_after_s: float = 60.0
    """When a load that failed of a passing cause is tried again."""
    leave_grace_s: float = 0.3
    """How long a copy that is to go still answers, so that those who send hear of it first."""
    drain_grace_s: float = 10.0


class Rooms:
    """Loads that wait to be told whether there is memory for them."""

    def __init__(self, holdings: Holdings) -> None:
        self._holdings = holdings
        self._waiting: dict[CopyKey, asyncio.Future[None]] = {}

    async def given_to(self, copy: Copy) -> None:
        """Ask, and return once the memory may be used. Raises MemoryShort."""
        answer = self._waiting[copy.key] = asyncio.get_running_loop().create_future()
        if copy.room is Room.UNASKED:
            copy.room = Room.WANTED
        self._holdings.tell()
        try:
            await answer
        finally:
            self._waiting.pop(copy.key, None)

    def promise(self, copy: Copy) -> None:
        copy.room = Room.PROMISED

    def give(self, copy: Copy) -> None:
        """It has to have asked: what was promised before that stays a promise."""
        if (answer := self._waiting.get(copy.key)) is not None and not answer.done():
            copy.room = Room.GIVEN
            answer.set_result(None)

    def refuse(self, copy: Copy, why: str) -> None:
        if (answer := self._waiting.get(copy.key)) is not None and not answer.done():
            answer.set_exception(MemoryShort(why))

    def give_back(self, copy: Copy) -> None:
        """What it was given or promised may be others' again."""
        copy.room = Room.UNASKED
        self._holdings.tell()


class Loader:
    """Opens copies, one call for each."""

    def __init__(
        self,
        files: ModelFiles,
        open_model: OpenModel,
        holdings: Holdings,
        clock: Clock,
        rng: random.Random,
        rules: LoadRules,
        resident_bytes: Callable[[], int],
        check: Callable[[Copy], None] = lambda _: None,
    ) -> None:
        """`check` raises where a copy, its signer being known now, may not be loaded."""
        self._files, self._open_model, self._holdings = files, open_model, holdings
        self._clock, self._rng, self._rules, self._resident_bytes = clock, rng, rules, resident_bytes
        self._check = check
        self.rooms = Rooms(holdings)
        self._begun = 0
        self._ended = 0

    async def opened_at_last(self, copy: Copy) -> tuple[LoadedModel, Prepared]:
        """Try until it is open, or the attempts are used up, or the cause will not pass. Progress is worth a fresh start."""
        failures = 0
        came_bytes = 0

        def progress(count: int) -> None:
            nonlocal came_bytes
            came_bytes += count

        while True:
            before_bytes = came_bytes
            try:
                return await self._opened(copy, progress)
            except PenstockError as error:
                failures = failures + 1 if came_bytes == before_bytes else 1
                if error.code not in PASSING or failures >= self._rules.attempts:
                    raise
                self.rooms.give_back(copy)
                delay_s = self._rules.backoff.delay_s(failures, self._rng)
                _log.warning(
                    "load_waiting", model=copy.model, version=copy.version, error=error.message, delay_s=round(delay_s, 2)
                )
                self._holdings.explain(copy, f"waiting to try again: {error.message}")
                await self._clock.sleep(delay_s)

    async def _opened(self, copy: Copy, progress: Progress) -> tuple[LoadedModel, Prepared]:
        description = await self._files.describe(copy.digest, copy.key)
        spec = description.spec
        if (spec.model, spec.version) != copy.key:
            raise ModelRefused(
                f"model {copy.model!r} version {copy.version} was ordered with digest {copy.digest}, which is that of"
                f" {spec.model!r} version {spec.version}"
            )
        copy.memory_bytes = taken_bytes(spec, sum(file.size_bytes for file in description.files))
        copy.pinned, copy.signer = is_pinned(spec), spec.signer
        self._check(copy)
        self._describe(copy, spec)
        prepared = await self._files.prepare(description, progress)
        try:
            await self.rooms.given_to(copy)
            loaded = await self._measured(copy, spec, prepared.folder)
            self._describe(copy, loaded.spec)
            try:
                await self._files.check(prepared)
            except BaseException:
                loaded.close()
                raise
        except BaseException:
            await self._files.release(prepared)
            raise
        return loaded, prepared

    def _describe(self, copy: Copy, spec: ModelSpec) -> None:
        self._holdings.describe(copy, task=spec.task, max_batch_size=spec.max_batch_size, traits=spec.traits)

    async def _measured(self, copy: Copy, spec: ModelSpec, folder: Path) -> LoadedModel:
        """Open, and note by how much the process grew, if nothing else was opened meanwhile."""
        alone, before_bytes = self._begun == self._ended, self._resident_bytes()
        self._begun += 1
        number = self._begun
        try:
            loaded = await self._open_model(spec, folder)
        finally:
            self._ended += 1
        copy.measured_bytes = max(0, self._resident_bytes() - before_bytes) if alone and number == self._begun else 0
        return loaded
