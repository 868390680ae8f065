"""Models as they lie in folders, for a worker that serves alone: no registry, no signature, no etcd."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from runtime.errors import FailedPrecondition
from runtime.ids import Digest
from runtime.model_folder import complete_manifest, hash_file, read_model_folder
from worker.config import WorkerSettings
from worker.copies import open_model
from worker.lifecycle import Copy, Holdings, LifeEvent
from worker.models import ModelTable
from worker.spec import spec_of
from worker.threads import in_thread
from worker.types import ModelSpec

VERSION = "1"
_log = structlog.get_logger("penstock.worker")


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
    if settings.model_folder and not settings.standalone:
        raise FailedPrecondition(
            "--model-folder is for a worker that serves alone; pass --standalone too, or publish the model"
        )
    if settings.standalone and settings.kserve_port is None and settings.identity_dir is None:
        raise FailedPrecondition("a standalone worker without a port serves nobody; pass --kserve-port, or --identity-dir")


async def load_folders(folders: Iterable[Path], table: ModelTable, holdings: Holdings) -> None:
    """Put each folder's model into the table. Raises ModelFolderRefused, ModelRefused, EngineUnavailable, AlreadyExists."""
    for folder in folders:
        spec = await in_thread(read_spec, folder)
        copy = holdings.add(Copy(spec.model, spec.version, spec.digest, 0, task=spec.task, max_batch_size=spec.max_batch_size))
        holdings.move(copy, LifeEvent.LOAD_BEGUN)
        table.add(await open_model(spec, folder))
        holdings.move(copy, LifeEvent.LOADED)
        _log.info("model_ready", model=spec.model, version=spec.version, folder=str(folder))


def read_spec(folder: Path) -> ModelSpec:
    """The folder's model as version 1, with the digest that its manifest would have."""
    described = read_model_folder(folder)
    manifest = complete_manifest(described, VERSION, {file.path: hash_file(file.file) for file in described.files})
    digest = hashlib.sha256(manifest.SerializeToString(deterministic=True)).hexdigest()
    return spec_of(manifest, Digest(digest))
