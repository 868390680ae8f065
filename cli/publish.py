"""A model folder becomes a version in the registry: hash, upload what is missing, sign, publish, place.

Owns the publisher's side of the registry's contract. Says how far it is through a callback; prints nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import nacl.signing
from penstock.registry.v1 import models_pb2, models_pb2_grpc
from penstock.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc

from runtime.errors import AlreadyExists, InvalidArgument
from runtime.manifests import digest_of, sign_manifest
from runtime.model_folder import ModelFile, ModelFolder, complete_manifest, hash_file, read_model_folder
from runtime.status import error_of

_PART_BYTES = 512 * 1024
_ATTEMPTS = 5
_PAUSE_S = 0.5
_GO_ON = (grpc.StatusCode.ABORTED, grpc.StatusCode.UNAVAILABLE)
OnProgress = Callable[[str, int, int], None]
"""File path, bytes done, bytes in all."""


@dataclass(frozen=True, slots=True)
class Published:
    model: str
    version: str
    digest: str
    new: bool


def no_progress(_: str, __: int, ___: int) -> None:
    """For those who do not watch."""


async def publish_folder(
    registry: grpc.aio.Channel,
    key: nacl.signing.SigningKey,
    folder: Path,
    version: str = "",
    on_progress: OnProgress = no_progress,
) -> Published:
    """Publish a folder; without a version as the next one. A folder equal to the newest version is not published again."""
    if version and not (version.isascii() and version.isdigit() and int(version) > 0):
        raise InvalidArgument(f"version {version!r}: versions are positive whole numbers, as Triton has them")
    read = read_model_folder(folder)
    stub = models_pb2_grpc.ModelServiceStub(registry)
    digests = {file.path: hash_file(file.file) for file in read.files}
    newest = await _newest(stub, read.manifest.model)
    if newest is not None and not version and _same(newest, read, digests):
        manifest = models_pb2.Manifest.FromString(newest.manifest)
        return Published(manifest.model, manifest.version, digest_of(newest), new=False)
    if newest is None:
        await _create(stub, read.manifest)
    for file in read.files:
        await _upload(stub, file, digests[file.path], on_progress)
    signed = sign_manifest(key, complete_manifest(read, version or _next_version(newest), digests))
    answer = await stub.PublishVersion(models_pb2.PublishVersionRequest(manifest=signed))
    return Published(read.manifest.model, answer.version.version, answer.version.digest, new=True)


async def place(scheduler: grpc.aio.Channel, published: Published, copies: int) -> None:
    """Ask for that many copies; 0 unloads it."""
    placement = scheduler_pb2.Placement(
        model=published.model, version=published.version, digest=published.digest, copies=copies
    )
    await scheduler_pb2_grpc.FleetServiceStub(scheduler).PlaceModel(scheduler_pb2.PlaceModelRequest(placement=placement))


async def _newest(stub: models_pb2_grpc.ModelServiceStub, model: str) -> models_pb2.SignedManifest | None:
    try:
        return (await stub.GetVersion(models_pb2.GetVersionRequest(model=model))).manifest
    except grpc.aio.AioRpcError as failure:
        if failure.code() is grpc.StatusCode.NOT_FOUND:
            return None
        raise


async def _create(stub: models_pb2_grpc.ModelServiceStub, manifest: models_pb2.Manifest) -> None:
    try:
        await stub.CreateModel(models_pb2.CreateModelRequest(model=manifest.model, description=manifest.description))
    except grpc.aio.AioRpcError as failure:
        if not isinstance(error_of(failure), AlreadyExists):
            raise


def _same(newest: models_pb2.SignedManifest, read: ModelFolder, digests: dict[str, str]) -> bool:
    known = models_pb2.Manifest.FromString(newest.manifest)
    return known == complete_manifest(read, known.version, digests)


def _next_version(newest: models_pb2.SignedManifest | None) -> str:
    return "1" if newest is None else str(int(models_pb2.Manifest.FromString(newest.manifest).version) + 1)


async def _upload(stub: models_pb2_grpc.ModelServiceStub, file: ModelFile, sha256: str, on_progress: OnProgress) -> None:
    """Go on from what the registry holds already; again from there where it says that somebody else sent meanwhile."""
    for attempt in range(1, _ATTEMPTS + 1):
        stat = await stub.StatFile(models_pb2.StatFileRequest(sha256=sha256))
        if stat.complete:
            on_progress(file.path, file.size_bytes, file.size_bytes)
            return
        header = models_pb2.UploadFileHeader(sha256=sha256, size_bytes=file.size_bytes, offset_bytes=stat.received_bytes)
        try:
            await stub.UploadFile(_parts(header, file, on_progress))
            return
        except grpc.aio.AioRpcError as failure:
            if attempt == _ATTEMPTS or failure.code() not in _GO_ON:
                raise
            await asyncio.sleep(_PAUSE_S * attempt)


async def _parts(
    header: models_pb2.UploadFileHeader, file: ModelFile, on_progress: OnProgress
) -> AsyncIterator[models_pb2.UploadFileRequest]:
    yield models_pb2.UploadFileRequest(header=header)
    done = header.offset_bytes
    with file.file.open("rb") as stream:
        stream.seek(done)
        while data := stream.read(_PART_BYTES):
            yield models_pb2.UploadFileRequest(data=data)
            done += len(data)
            on_progress(file.path, done, file.size_bytes)
