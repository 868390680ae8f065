"""The registry on the wire: who may call what, and messages to nouns and back. All else is decided further in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from typing import Any

import grpc.aio
from penstock.registry.v1 import accounts_pb2, accounts_pb2_grpc, models_pb2, models_pb2_grpc

from registry import codec
from registry.accounts import Accounts
from registry.catalogue import Catalogue
from registry.changes import KeyChanges
from registry.publishing import Publishing
from registry.transfers import Transfers, UploadSilent, UploadStart
from runtime.errors import InvalidArgument, PenstockError
from runtime.identity import Role
from runtime.ids import Digest, KeyId, ModelName, ModelVersion, TenantId
from runtime.manifests import verify_manifest
from runtime.serving import inner_peer

SERVICES = ("penstock.registry.v1.ModelService", "penstock.registry.v1.AccountService")
MESSAGE_BYTES = 16 * 1024 * 1024
"""What a server of these services takes in one message: room for any chunk that makes sense."""

READ_OFF_BYTES, READ_OFF_S = 64 * 1024 * 1024, 2.0
MAX_MANIFEST_BYTES = 4 * 1024 * 1024

_OPERATOR = (Role.OPERATOR,)
_KEY_READERS = (Role.OPERATOR, Role.GATEWAY)
_MODEL_READERS = (Role.OPERATOR, Role.GATEWAY, Role.SCHEDULER, Role.WORKER)
_FILE_READERS = (Role.OPERATOR, Role.WORKER)

Context = grpc.aio.ServicerContext[Any, Any]


class ModelServicer(models_pb2_grpc.ModelServiceServicer):
    """penstock.registry.v1.ModelService."""

    def __init__(
        self,
        catalogue: Catalogue,
        publishing: Publishing,
        transfers: Transfers,
        trusted_signers: Callable[[], frozenset[bytes]],
    ) -> None:
        self._catalogue, self._publishing, self._transfers = catalogue, publishing, transfers
        self._trusted_signers = trusted_signers

    async def CreateModel(self, request: models_pb2.CreateModelRequest, context: Context) -> models_pb2.CreateModelResponse:
        inner_peer(context, *_OPERATOR)
        model = await self._catalogue.create(ModelName(request.model), request.description)
        return models_pb2.CreateModelResponse(model=codec.new_model_message(model))

    async def ListModels(self, request: models_pb2.ListModelsRequest, context: Context) -> models_pb2.ListModelsResponse:
        inner_peer(context, *_MODEL_READERS)
        entries = await self._catalogue.models()
        return models_pb2.ListModelsResponse(models=[codec.model_message(entry) for entry in entries])

    async def GetVersion(self, request: models_pb2.GetVersionRequest, context: Context) -> models_pb2.GetVersionResponse:
        inner_peer(context, *_MODEL_READERS)
        if request.digest:
            return codec.version_message(await self._catalogue.by_digest(Digest(request.digest)))
        found = await self._catalogue.by_number(ModelName(request.model), ModelVersion(request.version))
        return codec.version_message(found)

    async def PublishVersion(
        self, request: models_pb2.PublishVersionRequest, context: Context
    ) -> models_pb2.PublishVersionResponse:
        inner_peer(context, *_OPERATOR)
        signed = request.manifest
        if len(signed.manifest) > MAX_MANIFEST_BYTES:
            raise InvalidArgument(f"a manifest of {len(signed.manifest)} bytes; up to {MAX_MANIFEST_BYTES} are taken")
        verified = verify_manifest(signed, self._trusted_signers())
        summary = await self._publishing.publish(
            codec.facts_of(verified.manifest), verified.digest, verified.signer_id, codec.signed_bytes_of(signed)
        )
        return models_pb2.PublishVersionResponse(version=codec.summary_message(summary))

    async def StatFile(self, request: models_pb2.StatFileRequest, context: Context) -> models_pb2.StatFileResponse:
        inner_peer(context, *_OPERATOR)
        return codec.stat_message(await self._transfers.stat(Digest(request.sha256)))

    async def UploadFile(
        self, request_iterator: AsyncIterator[models_pb2.UploadFileRequest], context: Context
    ) -> models_pb2.UploadFileResponse:
        inner_peer(context, *_OPERATOR)
        start = _start(await self._transfers.heard(request_iterator))

        async def accept() -> None:
            await context.send_initial_metadata(())

        try:
            status = await self._transfers.receive(start, _data(request_iterator), accept)
        except UploadSilent:
            raise
        except PenstockError:
            await _read_off(request_iterator)
            raise
        await _read_off(request_iterator)
        return codec.upload_message(status)

    async def FetchFile(self, request: models_pb2.FetchFileRequest, context: Context) -> None:  # type: ignore[override]
        inner_peer(context, *_FILE_READERS)
        async with aclosing(self._transfers.send(Digest(request.sha256), request.offset_bytes)) as chunks:
            async for chunk in chunks:
                await context.write(models_pb2.FetchFileResponse(data=chunk))


class AccountServicer(accounts_pb2_grpc.AccountServiceServicer):
    """penstock.registry.v1.AccountService."""

    def __init__(self, accounts: Accounts, changes: KeyChanges) -> None:
        self._accounts, self._changes = accounts, changes

    async def CreateTenant(
        self, request: accounts_pb2.CreateTenantRequest, context: Context
    ) -> accounts_pb2.CreateTenantResponse:
        inner_peer(context, *_OPERATOR)
        tenant = await self._accounts.create_tenant(TenantId(request.tenant))
        return accounts_pb2.CreateTenantResponse(tenant=codec.tenant_message(tenant))

    async def CreateKey(self, request: accounts_pb2.CreateKeyRequest, context: Context) -> accounts_pb2.CreateKeyResponse:
        inner_peer(context, *_OPERATOR)
        key, minted = await self._accounts.create_key(codec.wish_of(request))
        return accounts_pb2.CreateKeyResponse(key=codec.key_message(key), secret=minted.secret)

    async def ListKeys(self, request: accounts_pb2.ListKeysRequest, context: Context) -> accounts_pb2.ListKeysResponse:
        inner_peer(context, *_OPERATOR)
        keys = await self._accounts.keys(TenantId(request.tenant) if request.tenant else None)
        return accounts_pb2.ListKeysResponse(keys=[codec.key_message(key) for key in keys])

    async def RevokeKey(self, request: accounts_pb2.RevokeKeyRequest, context: Context) -> accounts_pb2.RevokeKeyResponse:
        inner_peer(context, *_OPERATOR)
        return accounts_pb2.RevokeKeyResponse(key=codec.key_message(await self._accounts.revoke(KeyId(request.key_id))))

    async def ResolveKey(self, request: accounts_pb2.ResolveKeyRequest, context: Context) -> accounts_pb2.ResolveKeyResponse:
        inner_peer(context, *_KEY_READERS)
        return accounts_pb2.ResolveKeyResponse(key=codec.key_message(await self._accounts.resolve(request.secret_sha256)))

    async def WatchKeys(self, request: accounts_pb2.WatchKeysRequest, context: Context) -> None:  # type: ignore[override]
        inner_peer(context, *_KEY_READERS)
        with self._changes.watch() as watch:
            await context.write(accounts_pb2.WatchKeysResponse())
            while True:
                await context.write(accounts_pb2.WatchKeysResponse(key_ids=await watch.changed()))


def _start(first: models_pb2.UploadFileRequest | None) -> UploadStart:
    if first is None or first.WhichOneof("part") != "header":
        raise InvalidArgument("the first message of an upload must be its header")
    return UploadStart(Digest(first.header.sha256), first.header.size_bytes, first.header.offset_bytes)


async def _data(messages: AsyncIterator[models_pb2.UploadFileRequest]) -> AsyncIterator[bytes]:
    async for message in messages:
        if message.WhichOneof("part") != "data":
            raise InvalidArgument("an upload has one header; data must follow it")
        yield message.data


async def _read_off(messages: AsyncIterator[models_pb2.UploadFileRequest]) -> None:
    """Let a sender finish that was answered early, within bounds.

    A grpc.aio client whose write fails because the call ended reports INTERNAL, and not what the server answered.
    """
    rest_bytes = READ_OFF_BYTES
    with suppress(TimeoutError):
        async with asyncio.timeout(READ_OFF_S):
            async for message in messages:
                rest_bytes -= len(message.data)
                if rest_bytes < 0:
                    return
