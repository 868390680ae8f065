"""A worker that serves alone: folders instead of a registry, a plaintext port instead of a mesh."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager

from runtime.errors import FailedPrecondition
from worker.config import WorkerSettings
from worker.life.lifecycle import Holdings
from worker.life.repository import FolderFailure, FolderRepository, OpenModel
from worker.models import ModelTable


@asynccontextmanager
async def opened_table() -> AsyncIterator[ModelTable]:
    """The table of models, empty; what is in it when the context ends is closed."""
    table = ModelTable()
    try:
        yield table
    finally:
        for loaded in table:
            await table.remove(loaded.spec.model, loaded.spec.version, grace_s=0)


def check_alone(settings: WorkerSettings) -> None:
    """Raises FailedPrecondition where folders and being alone do not go together, or nothing would be served."""
    if (settings.model_folder or settings.model_repository) and not settings.standalone:
        raise FailedPrecondition(
            "--model-folder and --model-repository are for a worker that serves alone; pass --standalone too, or publish them"
        )
    if settings.standalone and settings.kserve_port is None and settings.identity_dir is None:
        raise FailedPrecondition("a standalone worker without a port serves nobody; pass --kserve-port, or --identity-dir")
    if settings.sealed_port is not None and settings.identity_dir is None:
        raise FailedPrecondition("--sealed-port needs --identity-dir: sealed calls are made to this node's own key")


@asynccontextmanager
async def opened_repository(
    settings: WorkerSettings, table: ModelTable, holdings: Holdings, open_model: OpenModel, stop: asyncio.Event
) -> AsyncIterator[FolderRepository | None]:
    """The folders' models, loaded as far as they could be before `stop` was set; None for a worker of a mesh.

    Raises what a --model-folder failed with, and the first failure where nothing was loaded.
    """
    if not settings.standalone:
        yield None
        return
    repository = FolderRepository(
        settings.model_folder,
        settings.model_repository,
        table,
        holdings,
        open_model,
        loads_at_once=settings.loads_at_once,
        drain_grace_s=settings.drain_grace_s,
    )
    async with repository.running():
        failures = await _unless(stop, repository.load_all())
        named = [failure for failure in failures if failure.folder in settings.model_folder]
        if named or (failures and not len(table)):
            raise (named or failures)[0].error
        yield repository


async def _unless(stop: asyncio.Event, loading: Coroutine[None, None, list[FolderFailure]]) -> list[FolderFailure]:
    """A worker that is told to end while it loads does not load on."""
    tasks = asyncio.ensure_future(loading), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return tasks[0].result() if tasks[0].done() else []
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
