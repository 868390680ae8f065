"""A model folder becomes a version in the registry: hash, upload what is missing, sign, publish, place.

Owns the publisher's side of the registry's contract. Says how far it is through a callback; prints nothing. What a folder says
is `runtime.model_folder`'s question, how a file's bytes travel `cli.upload`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc.aio
import nacl.signing
from penstock.registry.v1 import files_pb2_grpc, models_pb2, models_pb2_grpc
from penstock.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from penstock.worker.v1 import presence_pb2

from cli.upload import upload_file
from runtime.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from runtime.identity import node_id_of
from runtime.ids import DEFAULT_TENANT
from runtime.manifests import digest_of, sign_manifest, tenant_of
from runtime.model_folder import ModelFile, ModelFolder, complete_manifest, hash_file, read_model_folder
from runtime.status import error_of
from worker.threads import check_wanted, in_thread

FILES_AT_ONCE = 2
"""Each is uploaded in several parts side by side."""

_NUMBER_ATTEMPTS = 5
"""Of one who asks for the next number while others do too."""

OnProgress = Callable[[str, int, int], None]
"""What is under way (`hashing model.onnx`, `model.onnx` as it is sent, `verifying model.onnx` at the registry), bytes done,
bytes in all. Called on the event loop."""


@dataclass(frozen=True, slots=True)
class Published:
    model: str
    version: str
    digest: str
    new: bool
    tenant: str = ""
    new_model: bool = False
    """Whether there was no model of that name before."""


@dataclass(frozen=True, slots=True)
class Spread:
    """On which workers copies may be, and how many more there may be where they are asked for."""

    max_copies: int = 0
    """0: no more than are asked for here."""
    tier: str = ""
    labels: tuple[str, ...] = ()
    memory_bytes: int = 0
    """What a copy is thought to take; 0 = nobody knows."""

    def admits(self, worker: presence_pb2.Presence) -> bool:
        return (not self.tier or self.tier in worker.tiers) and set(self.labels) <= set(worker.labels)


ANYWHERE = Spread()


def no_progress(_: str, __: int, ___: int) -> None:
    """For those who do not watch."""


async def publish_folder(
    registry: grpc.aio.Channel,
    key: nacl.signing.SigningKey,
    folder: Path,
    version: str = "",
    on_progress: OnProgress = no_progress,
    *,
    tenant: str = "",
    shared_with: Sequence[str] = (),
) -> Published:
    """Publish a folder with a `model.toml`, as `publish_model` does. Raises ModelFolderRefused too."""
    read = await in_thread(read_model_folder, folder)
    return await publish_model(registry, key, read, version, tenant, on_progress, shared_with=shared_with)


async def publish_model(
    registry: grpc.aio.Channel,
    key: nacl.signing.SigningKey,
    folder: ModelFolder,
    version: str = "",
    tenant: str = "",
    on_progress: OnProgress = no_progress,
    *,
    shared_with: Sequence[str] = (),
) -> Published:
    """Publish a model; without a version as the next one, unless it equals the newest version that is in use.

    `tenant`: whose it is; empty: that of the model if it is there, else "default". A model that was not there yet is shared
    with `shared_with`; one that was keeps its sharing. Raises InvalidArgument, FailedPrecondition, what the registry answers.
    """
    check_version(version)
    models = models_pb2_grpc.ModelServiceStub(registry)
    name = folder.manifest.model
    known = await find_model(models, name)
    owner = _owner(known, name, tenant or folder.manifest.tenant)
    folder = _owned(folder, owner)
    digests = await _hashed(folder.files, on_progress)
    if known is not None and not version and (same := await _same(models, known, folder, digests, key)) is not None:
        return same
    if known is None:
        await _create(models, folder.manifest, owner, shared_with)
    await _upload_all(files_pb2_grpc.FileServiceStub(registry), folder.files, digests, owner, on_progress)
    return await _published(models, key, folder, version, digests, known)


async def place(scheduler: grpc.aio.Channel, published: Published, copies: int, spread: Spread = ANYWHERE) -> str:
    """Ask for that many copies; 0 unloads it, unless the spread lets it come back. The region where they are to be."""
    placement = scheduler_pb2.Placement(
        model=published.model,
        version=published.version,
        digest=published.digest,
        copies=copies,
        max_copies=spread.max_copies,
        tier=spread.tier,
        labels=spread.labels,
        memory_bytes=spread.memory_bytes,
    )
    request = scheduler_pb2.PlaceModelRequest(placement=placement)
    return (await scheduler_pb2_grpc.FleetServiceStub(scheduler).PlaceModel(request)).placement.region


async def find_model(models: models_pb2_grpc.ModelServiceStub, name: str) -> models_pb2.Model | None:
    """The model with its versions and aliases, if the caller may see it."""
    answer = await models.ListModels(models_pb2.ListModelsRequest())
    return next((model for model in answer.models if model.model == name), None)


def check_version(version: str) -> None:
    """Empty, or a number. Raises InvalidArgument."""
    if version and not (version.isascii() and version.isdigit() and int(version) > 0):
        raise InvalidArgument(f"version {version!r}: versions are positive whole numbers, as Triton has them")


def _owner(known: models_pb2.Model | None, name: str, wanted: str) -> str:
    if known is None:
        return wanted or DEFAULT_TENANT
    owner = known.tenant or DEFAULT_TENANT
    if wanted and wanted != owner:
        raise FailedPrecondition(f"model {name!r} belongs to tenant {owner!r}, not to {wanted!r}; give this one another name")
    return owner


def _owned(folder: ModelFolder, tenant: str) -> ModelFolder:
    manifest = models_pb2.Manifest()
    manifest.CopyFrom(folder.manifest)
    manifest.tenant = tenant
    return ModelFolder(manifest, folder.files)


async def _hashed(files: Sequence[ModelFile], on_progress: OnProgress) -> dict[str, str]:
    """sha256 by path; the disk is read by one at a time."""
    loop = asyncio.get_running_loop()

    def hashed(file: ModelFile) -> str:
        done = 0

        def progress(count: int) -> None:
            nonlocal done
            check_wanted()
            done += count
            loop.call_soon_threadsafe(on_progress, f"hashing {file.path}", done, file.size_bytes)

        return hash_file(file.file, progress)

    return {file.path: await in_thread(hashed, file) for file in files}


async def _same(
    models: models_pb2_grpc.ModelServiceStub,
    known: models_pb2.Model,
    folder: ModelFolder,
    digests: dict[str, str],
    key: nacl.signing.SigningKey,
) -> Published | None:
    """The newest version in use, if it is this very model and its signature still counts."""
    in_use = [version for version in known.versions if not version.withdrawn_at_ms]
    if not in_use:
        return None
    newest = max(in_use, key=_number)
    request = models_pb2.GetVersionRequest(model=known.model, version=newest.version)
    signed = (await models.GetVersion(request)).manifest
    manifest = models_pb2.Manifest.FromString(signed.manifest)
    manifest.tenant = tenant_of(manifest)
    if manifest != complete_manifest(folder, manifest.version, digests):
        return None
    if newest.signer_id != node_id_of(bytes(key.verify_key)) and await _is_revoked(models, known.tenant, newest.signer_id):
        return None
    return Published(manifest.model, manifest.version, digest_of(signed), new=False, tenant=manifest.tenant)


async def _is_revoked(models: models_pb2_grpc.ModelServiceStub, tenant: str, signer_id: str) -> bool:
    signers = (await models.ListSigners(models_pb2.ListSignersRequest(tenant=tenant))).signers
    return any(signer.signer_id == signer_id and signer.revoked_at_ms for signer in signers)


async def _create(
    models: models_pb2_grpc.ModelServiceStub, manifest: models_pb2.Manifest, tenant: str, shared_with: Sequence[str]
) -> None:
    request = models_pb2.CreateModelRequest(
        model=manifest.model, description=manifest.description, tenant=tenant, shared_with=shared_with
    )
    try:
        await models.CreateModel(request)
    except grpc.aio.AioRpcError as failure:
        if not isinstance(error_of(failure), AlreadyExists) and failure.code() is not grpc.StatusCode.ALREADY_EXISTS:
            raise


async def _upload_all(
    stub: files_pb2_grpc.FileServiceStub,
    files: Sequence[ModelFile],
    digests: dict[str, str],
    tenant: str,
    on_progress: OnProgress,
) -> None:
    """Some files at a time; equal ones once."""
    places = asyncio.Semaphore(FILES_AT_ONCE)

    async def upload(file: ModelFile) -> None:
        async with places:
            await upload_file(
                stub,
                file.file,
                digests[file.path],
                tenant,
                partial(on_progress, file.path),
                on_verified=partial(on_progress, f"verifying {file.path}"),
            )

    try:
        async with asyncio.TaskGroup() as group:
            for file in {digests[file.path]: file for file in files}.values():
                group.create_task(upload(file), name=f"upload {file.path}")
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None  # the others were broken off, or say the same


async def _published(
    models: models_pb2_grpc.ModelServiceStub,
    key: nacl.signing.SigningKey,
    folder: ModelFolder,
    version: str,
    digests: dict[str, str],
    known: models_pb2.Model | None,
) -> Published:
    """Sign and publish; who asked for the next number gets the one after if somebody else was quicker."""
    is_new = known is None
    for attempt in range(1, _NUMBER_ATTEMPTS + 1):
        number = version or _next_version(known)
        taken = {each.version for each in known.versions} if known is not None else set()
        manifest = complete_manifest(folder, number, digests)
        try:
            answer = await models.PublishVersion(models_pb2.PublishVersionRequest(manifest=sign_manifest(key, manifest)))
        except grpc.aio.AioRpcError as failure:
            if version or failure.code() is not grpc.StatusCode.ALREADY_EXISTS or attempt == _NUMBER_ATTEMPTS:
                raise
            known = await find_model(models, manifest.model)
            continue
        made = answer.version
        return Published(manifest.model, made.version, made.digest, number not in taken, manifest.tenant, is_new)
    raise AssertionError("the last attempt answers or raises")


def _next_version(known: models_pb2.Model | None) -> str:
    return str(1 + max((_number(version) for version in known.versions), default=0)) if known is not None else "1"


def _number(version: models_pb2.VersionSummary) -> int:
    return int(version.version)
