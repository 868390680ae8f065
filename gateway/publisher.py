"""Publishes a version that the gateway made: files from memory, a manifest signed with the gateway's own key.

Owns the registry's contract as a publisher of small models sees it: one part after the other. The gateway's key is none that
consumers trust by itself: an operator endorses it for the models that may be loaded so. Decides nothing of what is published.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc.aio
from penstock.registry.v1 import files_pb2, models_pb2
from penstock.registry.v1.files_pb2_grpc import FileServiceStub
from penstock.registry.v1.models_pb2_grpc import ModelServiceStub

from gateway import codec
from gateway.types import PublishedVersion
from runtime.backoff import DEFAULT_BACKOFF
from runtime.clock import Clock
from runtime.errors import AlreadyExists, Code, DataLoss, FailedPrecondition, NotFound, PenstockError, Unavailable
from runtime.identity import NodeIdentity
from runtime.ids import DEFAULT_TENANT, ModelName, TenantId
from runtime.manifests import sign_manifest, verify_manifest
from runtime.notices import NoticeBoard
from runtime.status import DETAILS_KEY, error_of

ANSWER_TIMEOUT_S = 10.0
PART_TIMEOUT_S = 120.0
_MESSAGE_BYTES = 512 * 1024
_ATTEMPTS = 6
_PASSING = (Code.UNAVAILABLE, Code.ABORTED)
_ACCEPTED = "penstock-part"
Answer = TypeVar("Answer")
Roots = Callable[[], frozenset[bytes]]
"""Keys whose signatures are believed, as the operator's file has them now. Blocking."""


class SignerNotEndorsed(PenstockError, code=Code.PERMISSION_DENIED, reason="GATEWAY_NOT_ENDORSED"):
    """The gateway's key may not sign this model."""


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model as the registry lists it."""

    model: ModelName
    tenant: TenantId
    newest: int
    """The highest number that was ever used; 0 = none."""


class Publisher:
    """Belongs to one event loop. `roots` None: versions are not read, because nothing says whose signature to believe."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        identity: NodeIdentity,
        clock: Clock,
        roots: Roots | None = None,
        board: NoticeBoard | None = None,
    ) -> None:
        self._models: Any = ModelServiceStub(channel)
        self._files: Any = FileServiceStub(channel)
        self._identity, self._clock, self._roots, self._board = identity, clock, roots, board
        self._rng = random.Random()  # noqa: S311 (spreads retries)

    async def find(self, model: ModelName) -> KnownModel | None:
        """The model, if there is one."""
        answer = await _answered(self._models.ListModels(models_pb2.ListModelsRequest(), timeout=ANSWER_TIMEOUT_S))
        for each in answer.models:
            if each.model == model:
                newest = max((int(version.version) for version in each.versions), default=0)
                return KnownModel(model, TenantId(each.tenant) or DEFAULT_TENANT, newest)
        return None

    async def manifest(self, model: ModelName) -> models_pb2.Manifest:
        """Of what requests without a version mostly get, verified. Raises NotFound, ManifestRefused, FailedPrecondition."""
        if self._roots is None:
            raise FailedPrecondition(
                "this gateway does not know whose signatures to believe, so it signs nothing that others made: start it with"
                " --trusted-signers, or load with files"
            )
        request = models_pb2.GetVersionRequest(model=model)
        answer = await _answered(self._models.GetVersion(request, timeout=ANSWER_TIMEOUT_S))
        notice = self._board.model(model) if self._board is not None else None
        verified = verify_manifest(
            answer.manifest,
            await asyncio.to_thread(self._roots),
            answer.endorsement if answer.HasField("endorsement") else None,
            now_ms=int(self._clock.wall_s() * 1000),
            revoked_signers=notice.revoked_signers if notice is not None else (),
        )
        if verified.manifest.model != model:
            raise DataLoss(
                f"the registry gave the manifest of {verified.manifest.model!r} for model {model!r}; do not trust it"
            )
        if notice is not None and verified.digest in notice.withdrawn:
            raise NotFound(f"version {verified.manifest.version} of model {model!r} is withdrawn; publish another one")
        return verified.manifest

    async def create(self, model: ModelName, tenant: TenantId) -> None:
        """Make the model if there is none."""
        request = models_pb2.CreateModelRequest(model=model, tenant=tenant)
        try:
            await _answered(self._models.CreateModel(request, timeout=ANSWER_TIMEOUT_S))
        except PenstockError as error:
            if error.code is not Code.ALREADY_EXISTS:
                raise

    async def upload(self, content: bytes, tenant: TenantId) -> str:
        """The file's sha256, once the registry has it. Tries again what may pass."""
        sha256 = await asyncio.to_thread(lambda: hashlib.sha256(content).hexdigest())
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                await self._uploaded(content, sha256, tenant)
                return sha256
            except PenstockError as error:
                if not _may_pass(error) or attempt == _ATTEMPTS:
                    raise
                await self._clock.sleep(max(error.retry_after_s or 0.0, DEFAULT_BACKOFF.delay_s(attempt, self._rng)))
        raise AssertionError("the last attempt returns or raises")

    async def publish(self, manifest: models_pb2.Manifest) -> PublishedVersion:
        """Sign and publish. Raises SignerNotEndorsed; AlreadyExists where the number is taken."""
        signed = sign_manifest(self._identity.signing_key, manifest)
        request = models_pb2.PublishVersionRequest(manifest=signed)
        try:
            answer = await _answered(self._models.PublishVersion(request, timeout=ANSWER_TIMEOUT_S))
        except PenstockError as error:
            if error.code is Code.ALREADY_EXISTS:
                raise AlreadyExists(error.message) from error
            if error.reason == "MANIFEST_REFUSED":
                raise SignerNotEndorsed(self._not_endorsed(manifest, error.message)) from error
            raise
        return codec.version_of(manifest.model, answer.version)

    async def _uploaded(self, content: bytes, sha256: str, tenant: TenantId) -> None:
        begin = files_pb2.BeginUploadRequest(sha256=sha256, size_bytes=len(content), tenant=tenant)
        begun = await _answered(self._files.BeginUpload(begin, timeout=ANSWER_TIMEOUT_S))
        if begun.complete:
            return
        part_bytes, received = begun.part_bytes, set(begun.received_parts)
        for number in range(-(-len(content) // part_bytes) if part_bytes else 0):
            if number not in received:
                part = memoryview(content)[number * part_bytes : (number + 1) * part_bytes]
                await self._send(begun.upload_id, number, part)
        await self._completed(begun.upload_id)

    async def _send(self, upload_id: str, number: int, part: memoryview) -> None:
        call = self._files.UploadPart(timeout=PART_TIMEOUT_S)
        header = files_pb2.UploadPartHeader(upload_id=upload_id, number=number)
        try:
            await call.write(files_pb2.UploadPartRequest(header=header))
            # A registry that does not take the part says so before a byte of it was sent.
            if _ACCEPTED in dict(await call.initial_metadata() or ()):
                for start in range(0, len(part), _MESSAGE_BYTES):
                    await call.write(files_pb2.UploadPartRequest(data=bytes(part[start : start + _MESSAGE_BYTES])))
                await call.done_writing()
        except asyncio.InvalidStateError:
            pass  # it ended while this wrote; its status says why
        except grpc.aio.AioRpcError as failure:
            raise _error_of(failure) from failure
        except BaseException:
            call.cancel()
            raise
        await _answered(call)

    async def _completed(self, upload_id: str) -> None:
        call = self._files.CompleteUpload(files_pb2.CompleteUploadRequest(upload_id=upload_id), timeout=PART_TIMEOUT_S)
        try:
            async for progress in call:
                if progress.complete:
                    return
        except grpc.aio.AioRpcError as failure:
            raise _error_of(failure) from failure
        finally:
            call.cancel()
        raise DataLoss(f"the registry ended the check of upload {upload_id} without a word; load again")

    def _not_endorsed(self, manifest: models_pb2.Manifest, why: str) -> str:
        key = self._identity.ed25519_public_key.hex()
        return (
            f"failed to load '{manifest.model}': what a load brings is signed by this gateway, whose key is not endorsed for it"
            f" ({why}); an operator may change that: penstock signers add gateway --key {key} --tenant {manifest.tenant}"
            f" --models '{manifest.model}'"
        )


async def _answered(call: Awaitable[Answer]) -> Answer:
    try:
        return await call
    except grpc.aio.AioRpcError as failure:
        raise _error_of(failure) from failure


def _error_of(failure: grpc.aio.AioRpcError) -> PenstockError:
    """Ours. A write into a call that has ended fails as INTERNAL, by the client itself: the server's INTERNAL has details."""
    if failure.code() is grpc.StatusCode.INTERNAL and DETAILS_KEY not in dict(failure.trailing_metadata() or ()):
        return Unavailable(f"the call to the registry broke off: {failure.details() or 'no reason was given'}")
    return error_of(failure)


def _may_pass(error: PenstockError) -> bool:
    """Whether the same call may succeed in a while. A quota does not grow by waiting, and says no time to wait."""
    return error.code in _PASSING or (error.code is Code.RESOURCE_EXHAUSTED and error.retry_after_s is not None)


def number_after(known: KnownModel | None, wanted: Mapping[tuple[int, str], bytes]) -> int:
    """The number of a new version: the one that its files name if it is higher than all before, else the next."""
    newest = known.newest if known is not None else 0
    named = max((version for version, _ in wanted), default=0)
    return named if named > newest else newest + 1
