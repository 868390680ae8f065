"""ModelService on the wire: who calls, whose signature it is, messages to nouns and back. All else is decided further in.

Notes signatures that were refused; rights that were lacking and altered rows are noted for every service alike
(`registry/audit/audited.py`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc.aio
from penstock.registry.v1 import models_pb2, models_pb2_grpc

from registry.access.door import Context, Door
from registry.access.types import Principal, Scope
from registry.audit.bounded import BoundedTrail
from registry.audit.trail import AuditTrail
from registry.audit.types import AuditOutcome, note_of
from registry.models import codec
from registry.models.catalogue import Catalogue
from registry.models.policy import MAX_MANIFEST_BYTES, tenant_faults
from registry.models.publishing import Publication, Publishing
from registry.models.signing import Signing
from registry.models.sql import ModelTables
from registry.models.switching import Command, Switching
from registry.models.types import STABLE
from registry.seals import Seals
from registry.threads import in_thread
from runtime.clock import Clock
from runtime.database import Database
from runtime.errors import InvalidArgument
from runtime.identity import node_id_of
from runtime.ids import DEFAULT_TENANT, ModelName, NodeId, TenantId
from runtime.manifests import ManifestRefused, verify_endorsement, verify_manifest

SERVICE = "penstock.registry.v1.ModelService"
MAX_ENDORSEMENT_BYTES = 64 * 1024
Roots = Callable[[], frozenset[bytes]]
"""The Ed25519 public keys that consumers trust, as the operator's file has them now."""


_MOST_ALTERED = 10
"""Of one list, that go into the trail: the others go there when they are mended."""


class ModelServicer(models_pb2_grpc.ModelServiceServicer):
    """penstock.registry.v1.ModelService."""

    def __init__(
        self,
        *,
        door: Door,
        database: Database,
        seals: Seals,
        trail: AuditTrail,
        bounded: BoundedTrail,
        roots: Roots,
        clock: Clock,
    ) -> None:
        self._door, self._bounded, self._roots, self._clock = door, bounded, roots, clock
        tables = ModelTables(database, seals, trail)
        self._catalogue, self._publishing = Catalogue(tables, clock), Publishing(tables, clock)
        self._switching, self._signing = Switching(tables, clock), Signing(tables, clock)

    def register(self, server: grpc.aio.Server) -> None:
        models_pb2_grpc.add_ModelServiceServicer_to_server(self, server)

    async def CreateModel(self, request: models_pb2.CreateModelRequest, context: Context) -> models_pb2.CreateModelResponse:
        principal = await self._enter(context, Scope.MODELS_PUBLISH)
        entry = await self._catalogue.create(
            principal, ModelName(request.model), request.description, request.tenant, frozenset(request.shared_with)
        )
        return models_pb2.CreateModelResponse(model=codec.model_message(entry))

    async def ListModels(self, request: models_pb2.ListModelsRequest, context: Context) -> models_pb2.ListModelsResponse:
        principal = await self._enter(context, Scope.MODELS_READ)
        entries, altered = await self._catalogue.models(principal, _named(request.tenant))
        for error in altered[:_MOST_ALTERED]:
            await self._bounded.altered(principal, error)
        return models_pb2.ListModelsResponse(models=[codec.model_message(entry) for entry in entries])

    async def ShareModel(self, request: models_pb2.ShareModelRequest, context: Context) -> models_pb2.ShareModelResponse:
        principal = await self._enter(context, Scope.MODELS_PUBLISH)
        entry = await self._catalogue.share(principal, ModelName(request.model), frozenset(request.shared_with))
        return models_pb2.ShareModelResponse(model=codec.model_message(entry))

    async def PublishVersion(
        self, request: models_pb2.PublishVersionRequest, context: Context
    ) -> models_pb2.PublishVersionResponse:
        principal = await self._enter(context, Scope.MODELS_PUBLISH)
        async with self._doubted(principal, "version.publish", request.manifest.ed25519_public_key):
            publication = await self._verified(principal, request.manifest)
        summary = await self._publishing.publish(principal, publication)
        return models_pb2.PublishVersionResponse(version=codec.summary_message(summary))

    async def GetVersion(self, request: models_pb2.GetVersionRequest, context: Context) -> models_pb2.GetVersionResponse:
        principal = await self._enter(context, Scope.MODELS_READ)
        found = await self._catalogue.find(principal, codec.wanted_of(request))
        is_root = found.version.signed.ed25519_public_key in await in_thread(self._roots)
        return codec.version_message(found, endorsed=not is_root)

    async def WithdrawVersion(
        self, request: models_pb2.WithdrawVersionRequest, context: Context
    ) -> models_pb2.WithdrawVersionResponse:
        principal = await self._enter(context, Scope.MODELS_PUBLISH)
        summary = await self._publishing.withdraw(principal, ModelName(request.model), request.version, request.reason)
        return models_pb2.WithdrawVersionResponse(version=codec.summary_message(summary))

    async def MoveAlias(self, request: models_pb2.MoveAliasRequest, context: Context) -> models_pb2.MoveAliasResponse:
        principal = await self._enter(context, Scope.MODELS_PUBLISH)
        command = _command(request)
        view = await self._switching.move(principal, command, request.version, request.weight)
        return models_pb2.MoveAliasResponse(alias=codec.alias_message(view))

    async def PromoteAlias(self, request: models_pb2.PromoteAliasRequest, context: Context) -> models_pb2.PromoteAliasResponse:
        principal = await self._enter(context, Scope.MODELS_PUBLISH)
        command = _command(request)
        view = await self._switching.promote(principal, command, request.to or STABLE)
        return models_pb2.PromoteAliasResponse(alias=codec.alias_message(view))

    async def RollBackAlias(
        self, request: models_pb2.RollBackAliasRequest, context: Context
    ) -> models_pb2.RollBackAliasResponse:
        principal = await self._enter(context, Scope.MODELS_PUBLISH)
        command = _command(request)
        view = await self._switching.roll_back(principal, command)
        return models_pb2.RollBackAliasResponse(alias=codec.alias_message(view))

    async def RemoveAlias(self, request: models_pb2.RemoveAliasRequest, context: Context) -> models_pb2.RemoveAliasResponse:
        principal = await self._enter(context, Scope.MODELS_PUBLISH)
        expected = request.expected_version if request.HasField("expected_version") else None
        command = Command(ModelName(request.model), request.alias, expected)
        await self._switching.remove(principal, command)
        return models_pb2.RemoveAliasResponse()

    async def ListAliasMoves(
        self, request: models_pb2.ListAliasMovesRequest, context: Context
    ) -> models_pb2.ListAliasMovesResponse:
        principal = await self._enter(context, Scope.MODELS_READ)
        moves = await self._switching.moves(principal, ModelName(request.model), request.alias, request.limit)
        return models_pb2.ListAliasMovesResponse(moves=[codec.move_message(move) for move in moves])

    async def SettleAlias(self, request: models_pb2.SettleAliasRequest, context: Context) -> models_pb2.SettleAliasResponse:
        principal = await self._enter(context, Scope.ALIASES_SETTLE)
        command = Command(ModelName(request.model), request.alias)
        view = await self._switching.settle(principal, command, request.generation, request.abandoned_because)
        return models_pb2.SettleAliasResponse(alias=codec.alias_message(view) if view else None)

    async def EndorseSigner(
        self, request: models_pb2.EndorseSignerRequest, context: Context
    ) -> models_pb2.EndorseSignerResponse:
        signed = request.endorsement
        principal = await self._enter(context, Scope.SIGNERS_WRITE)
        if signed.ByteSize() > MAX_ENDORSEMENT_BYTES:
            raise InvalidArgument(f"an endorsement of {signed.ByteSize()} bytes; up to {MAX_ENDORSEMENT_BYTES} are taken")
        async with self._doubted(principal, "signer.endorse", signed.ed25519_public_key):
            verified = await in_thread(lambda: verify_endorsement(signed, self._roots()))
        signer = await self._signing.endorse(principal, codec.endorsed_key_of(signed, verified))
        return models_pb2.EndorseSignerResponse(signer=codec.signer_message(signer))

    async def ListSigners(self, request: models_pb2.ListSignersRequest, context: Context) -> models_pb2.ListSignersResponse:
        principal = await self._enter(context, Scope.MODELS_READ)
        signers = await self._signing.signers(principal, _named(request.tenant))
        return models_pb2.ListSignersResponse(signers=[codec.signer_message(signer) for signer in signers])

    async def RevokeSigner(self, request: models_pb2.RevokeSignerRequest, context: Context) -> models_pb2.RevokeSignerResponse:
        principal = await self._enter(context, Scope.SIGNERS_WRITE)
        tenant = principal.tenant_or(_named(request.tenant) or "")
        signer = await self._signing.revoke(principal, NodeId(request.signer_id), tenant)
        return models_pb2.RevokeSignerResponse(signer=codec.signer_message(signer))

    async def _verified(self, principal: Principal, signed: models_pb2.SignedManifest) -> Publication:
        """Raises InvalidArgument, ManifestRefused; OtherTenant, before another tenant's signers are looked at."""
        if len(signed.manifest) > MAX_MANIFEST_BYTES:
            raise InvalidArgument(f"a manifest of {len(signed.manifest)} bytes; up to {MAX_MANIFEST_BYTES} are taken")
        tenant = _named(await in_thread(codec.claims_of, signed)) or DEFAULT_TENANT
        principal.require(Scope.MODELS_PUBLISH, tenant)
        signer_id = node_id_of(signed.ed25519_public_key)
        signer = await self._signing.endorsed(signer_id, tenant)
        now_ms = int(self._clock.wall_s() * 1000)

        def verified() -> Publication:
            roots = self._roots()
            believed = signer if signer is not None and signed.ed25519_public_key not in roots else None
            revoked = {signer_id} if signer is not None and signer.revoked_at_ms else ()
            endorsement = codec.endorsement_of(believed) if believed else None
            answer = verify_manifest(signed, roots, endorsement, now_ms=now_ms, revoked_signers=revoked)
            return codec.publication_of(signed, answer, believed)

        return await in_thread(verified)

    async def _enter(self, context: Context, scope: Scope) -> Principal:
        """The caller, who has the right at all; whose tenant it is about, is asked once that is known."""
        principal = await self._door.enter(context)
        principal.require(scope)
        return principal

    @asynccontextmanager
    async def _doubted(self, principal: Principal, action: str, signer: bytes) -> AsyncIterator[None]:
        """Notes a signature that does not fit, or that its signer might not make."""
        try:
            yield
        except ManifestRefused as error:
            subject = node_id_of(signer)
            await self._bounded.note(note_of(principal, action, subject, outcome=AuditOutcome.REFUSED, detail=error.message))
            raise


def _named(tenant: str) -> TenantId | None:
    """The tenant that a request is about, if it names one. Raises InvalidArgument."""
    if tenant and (faults := tenant_faults(tenant)):
        raise InvalidArgument("; ".join(faults))
    return TenantId(tenant) if tenant else None


def _command(
    request: models_pb2.MoveAliasRequest | models_pb2.PromoteAliasRequest | models_pb2.RollBackAliasRequest,
) -> Command:
    expected = request.expected_version if request.HasField("expected_version") else None
    return Command(ModelName(request.model), request.alias, expected, request.immediate)
