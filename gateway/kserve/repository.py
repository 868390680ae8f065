"""What is in the repository and what of it is loaded, in Triton's terms: index, load, unload.

A load is a wish to the scheduler; the gateway then watches its own view until the fleet has done it, has failed to, or the
caller's time is up. One with a configuration or files is published as a version first (`overrides.py`). Never loads anything
itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import structlog
from inference import grpc_service_pb2 as kserve

from gateway.fleet import Fleet
from gateway.kserve.codec import model_index
from gateway.types import PublishedVersion
from placement.copies.assign import Placement
from placement.types import Copy, CopyState
from runtime.errors import Code, DeadlineExceeded, NotFound, PenstockError, Unimplemented
from runtime.ids import ModelName, ModelVersion, Region, TenantId
from runtime.load_overrides import LoadOverride

_RETRY_SEEN_S = 2.0
"""A copy that had failed before gets this long to show that it is being tried again."""

_NOBODY = TenantId("")
_GONE = (CopyState.UNAVAILABLE, CopyState.FAILED)
_log = structlog.get_logger("penstock.repository")


class LoadFailed(PenstockError, code=Code.FAILED_PRECONDITION, reason="LOAD_FAILED"):
    """The workers that were to load this model could not."""


class NotPublished(PenstockError, code=Code.NOT_FOUND, reason="MODEL_NOT_PUBLISHED"):
    """The registry has no such model."""


class Publications(Protocol):
    """Who knows what was published."""

    async def published(self) -> tuple[PublishedVersion, ...]: ...

    async def version(self, model: ModelName, version: ModelVersion) -> PublishedVersion: ...


class Wishes(Protocol):
    """Who makes copies come and go."""

    async def place(self, placement: Placement) -> Placement: ...


class Overriding(Protocol):
    """Who makes a version of what a load brings."""

    async def published(self, model: ModelName, override: LoadOverride, tenant: TenantId) -> PublishedVersion: ...


@dataclass(frozen=True, slots=True)
class RepositorySettings:
    region: Region
    load_copies: int = 2
    load_wait_s: float = 120.0


class Repository:
    """Belongs to one event loop."""

    def __init__(
        self,
        fleet: Fleet,
        publications: Publications,
        wishes: Wishes,
        settings: RepositorySettings,
        overriding: Overriding | None = None,
    ) -> None:
        self._fleet, self._publications, self._wishes, self._settings = fleet, publications, wishes, settings
        self._overriding = overriding
        self._loop = asyncio.get_running_loop()

    async def index(
        self, allowed: Callable[[str], bool], *, ready_only: bool
    ) -> Iterable[kserve.RepositoryIndexResponse.ModelIndex]:
        """What was published and what the fleet holds; only the latter while the registry is away."""
        try:
            published = await self._publications.published()
        except PenstockError as error:
            _log.warning("registry_unreachable", why=error.message)
            published = ()
        copies = [copy for worker in self._fleet.view.workers.values() for copy in worker.copies]
        entries = model_index(published, copies)
        return [entry for entry in entries if allowed(entry.name) and (not ready_only or entry.state == "READY")]

    async def load(
        self, model: str, deadline_s: float | None, override: LoadOverride | None = None, tenant: TenantId = _NOBODY
    ) -> None:
        """Return when a copy is ready, of what requests without a version mostly get, or of what the load brought.

        `tenant`: whose key asks; empty: no keys are asked for here. Raises NotPublished, LoadFailed, DeadlineExceeded, and what
        hinders the publication of an override.
        """
        newest = await self._newest(model) if override is None else await self._overridden(model, override, tenant, deadline_s)
        wanted = self._fleet.placements.get((newest.model, newest.version))
        if wanted is not None and wanted.copies > 0 and self._holds(newest):
            return  # versions never change: there is nothing to load anew
        copies = max(self._settings.load_copies, wanted.copies if wanted is not None else 0)
        before = {id(copy) for _, copy in self._fleet.copies(model, newest.version)}
        await self._wishes.place(self._wish(newest, wanted, copies))
        seen_s = self._loop.time() + _RETRY_SEEN_S

        def loaded() -> bool:
            copies = [copy for _, copy in self._fleet.copies(model, newest.version)]
            if self._holds(newest):
                return True
            if copies and all(copy.state is CopyState.FAILED for copy in copies):
                self._judge(model, copies, before, past=self._loop.time() >= seen_s)
            return False

        await self._until(loaded, deadline_s, f"failed to load '{model}'", _RETRY_SEEN_S)

    async def unload(self, model: str, deadline_s: float | None) -> None:
        """Return when no copy of any version is left. Raises NotPublished, DeadlineExceeded."""
        wishes = [wish for wish in self._fleet.placements.values() if wish.model == model]
        if not wishes and not self._fleet.copies(model):
            await self._newest(model, "unload")
        for wish in wishes:
            gone = Placement(wish.model, wish.version, wish.digest, wish.region, 0, generation=0)
            await self._wishes.place(gone)

        def unloaded() -> bool:
            return all(copy.state in _GONE for _, copy in self._fleet.copies(model))

        await self._until(unloaded, deadline_s, f"failed to unload '{model}'", self._settings.load_wait_s)

    def _wish(self, version: PublishedVersion, known: Placement | None, copies: int) -> Placement:
        """For so many at least; on which workers, and how many more there may be, stays as it was wished for."""
        if known is None or known.digest != version.digest:
            return Placement(version.model, version.version, version.digest, self._settings.region, copies, generation=0)
        return replace(known, copies=copies, max_copies=known.max_copies if known.max_copies > copies else 0, generation=0)

    def _holds(self, version: PublishedVersion) -> bool:
        ready = self._fleet.ready(version.model, version.version)
        return any(copy.digest == version.digest for worker, copy in ready if worker.region == self._settings.region)

    async def _overridden(
        self, model: str, override: LoadOverride, tenant: TenantId, deadline_s: float | None
    ) -> PublishedVersion:
        if self._overriding is None:
            raise Unimplemented("this gateway publishes nothing: load what was published, or publish it with `penstock models`")
        end_s = self._loop.time() + self._settings.load_wait_s if deadline_s is None else deadline_s
        try:
            async with asyncio.timeout_at(end_s):
                return await self._overriding.published(ModelName(model), override, tenant)
        except TimeoutError as error:
            raise DeadlineExceeded(f"failed to load '{model[:200]}' in time: what it brought was not published yet") from error

    async def _newest(self, model: str, doing: str = "load") -> PublishedVersion:
        try:
            return await self._publications.version(ModelName(model), ModelVersion(""))
        except NotFound as error:
            raise not_published(model, doing) from error

    def _judge(self, model: str, copies: list[Copy], before: set[int], *, past: bool) -> None:
        if past or not any(id(copy) in before for copy in copies):
            reasons = "; ".join(sorted({copy.reason or "no reason was given" for copy in copies}))
            raise LoadFailed(f"failed to load '{model}': {reasons}")

    async def _until(self, reached: Callable[[], bool], deadline_s: float | None, doing: str, look_again_s: float) -> None:
        end_s = self._loop.time() + self._settings.load_wait_s if deadline_s is None else deadline_s
        while True:
            changed = self._fleet.changed
            if reached():
                return
            left_s = end_s - self._loop.time()
            if left_s <= 0:
                raise DeadlineExceeded(f"{doing} in time; it goes on, and RepositoryIndex shows how far it is")
            try:
                async with asyncio.timeout(min(left_s, look_again_s)):
                    await changed.wait()
            except TimeoutError:
                continue


def not_published(model: str, doing: str) -> NotPublished:
    """What is also said of a model that another tenant has."""
    return NotPublished(
        f"failed to {doing} '{model[:200]}', no version of it is in the registry; `penstock models push` puts one there"
    )


def refuse_repository_name(name: str) -> None:
    """There is one repository. Triton refuses the field alike (grpc_server.cc, RepositoryIndex)."""
    if name:
        raise Unimplemented("'repository_name' specification is not supported")
