"""Everybody who may call a registry, what tenant acme has there, and one good request for each RPC, about what acme has."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.message import Message
from penstock.registry.v1 import files_pb2, limits_pb2, models_pb2

from runtime.identity import NodeIdentity, Role
from runtime.manifests import digest_of, sign_endorsement, sign_manifest
from tests.registry.front import PASSWORD, ROOT, Answer, Front, Way, request_class

MODEL = "acme-model"
CONTENT = b"acme's weights"
COLUMNS: Mapping[str, str] = {
    "op": "operator",
    "gw": "gateway",
    "sc": "scheduler",
    "wk": "worker",
    "rg": "registry",
    "ow": "owner of acme",
    "pb": "publisher of acme",
    "ca": "caller of acme",
    "au": "auditor of acme",
    "fw": "owner of acme whose key may only read models",
    "gl": "owner of globex",
    "en": "Envoy for itself",
    "no": "nobody",
    "rv": "a revoked worker",
}
_NODES = {"op": Role.OPERATOR, "gw": Role.GATEWAY, "sc": Role.SCHEDULER, "wk": Role.WORKER, "rg": Role.REGISTRY}
_ROLES = {"ow": "owner", "pb": "publisher", "ca": "caller", "au": "auditor"}


@dataclass(slots=True)
class Acme:
    """What acme's people made."""

    upload_id: str = ""
    """Of a file of ten bytes that nobody completes."""
    key_id: str = ""
    user_id: str = ""
    token_id: str = ""
    digest: str = ""
    signer_id: str = ""
    live_key: str = ""
    limit_id: str = ""
    """Of one that acme's owner set."""
    secrets: list[str] = field(default_factory=list)
    """All that were handed out."""


@dataclass(slots=True)
class Callers:
    """A registry, what acme has there, and the ways by which each column of callers comes."""

    front: Front
    acme: Acme
    fallen: NodeIdentity
    ways: dict[str, list[Way]] = field(default_factory=dict)

    def ways_for(self, column: str, method: str) -> list[Way]:
        """A node whose certificate Envoy saw may log in and enrol like anybody: nobody asks there who calls."""
        ways = self.ways[column]
        return ways[:1] if column == "rv" and method in ("AccountService/LogIn", "NodeService/Enrol") else ways

    async def ask(self, way: Way, method: str) -> Answer:
        if method == "LimitService/DeleteLimit":
            await self.limit()  # whoever may has deleted it before
        return await self.front.call(way, method, *self.requests(way, method))

    def requests(self, way: Way, method: str) -> list[Message]:
        made = REQUESTS[method]
        fields = made(self.acme, way) if callable(made) else made
        if method == "FileService/UploadPart":
            header = files_pb2.UploadPartHeader(upload_id=self.acme.upload_id, number=0)
            return [files_pb2.UploadPartRequest(header=header), files_pb2.UploadPartRequest(data=b"too long for it")]
        return [request_class(method)(**fields)]

    async def log_in(self) -> None:
        """People have sessions, and keys that come through Envoy and through a gateway."""
        envoy, gateway = self.front.through_envoy(None), self.front.node(Role.GATEWAY)
        for column, role in _ROLES.items():
            key = await self.key(role=role)
            session = await self.front.session(f"{role}@acme")
            self.ways[column] = [Way().bearing(session), envoy.bearing(key), gateway.bearing(key), Way().bearing(key)]
        fewer = await self.key(role="owner", scopes=["models:read"])
        self.ways["fw"] = [envoy.bearing(fewer)]
        self.ways["gl"] = [
            Way().bearing(await self.front.session("owner@globex")),
            envoy.bearing(await self.key(role="owner", tenant="globex")),
        ]

    async def limit(self) -> None:
        """Set by acme's owner, again where it is gone: its id is always the same."""
        request = limits_pb2.SetLimitRequest(limit=OWN_LIMIT)
        self.acme.limit_id = (
            await self.front.call(self.ways["ow"][0], "LimitService/SetLimit", request)
        ).message.limit.limit_id

    async def key(self, **fields: Any) -> str:
        made = await self.front.made("AccountService/CreateKey", **({"tenant": "acme"} | fields))
        self.acme.secrets.append(made.secret)
        return str(made.secret)

    async def _nodes(self) -> None:
        for column, role in _NODES.items():
            identity = self.front.identities[role]
            self.ways[column] = [self.front.node(role), self.front.through_envoy(identity)]
        self.ways["en"] = [self.front.through_envoy(None)]
        self.ways["rv"] = [Way(self.fallen), self.front.through_envoy(self.fallen)]
        await self.front.made("NodeService/RevokeNode", node_id=self.fallen.node_id)

    async def _nobodies(self) -> None:
        envoy, gateway = self.front.through_envoy(None), self.front.node(Role.GATEWAY)
        expired, revoked = await self.key(role="owner", lifetime_s=60), await self.key(role="owner")
        await self.front.made("AccountService/RevokeKey", key_id=revoked.split("-")[2])
        ended = Way().bearing(await self.front.session("owner@acme"))
        assert (await self.front.call(ended, "AccountService/LogOut")).error is None
        leaver = await self.front.user("leaver@acme", "owner", "acme")
        left = await self.front.session("leaver@acme")
        await self.front.made("AccountService/UpdateUser", user_id=leaver, disabled=True)
        self.front.clock.now_s += 61
        unknown = f"sk-pn-{'0' * 16}-{'0' * 64}"
        self.ways["no"] = [
            Way(),
            *(way.bearing(token) for way in (Way(), envoy, gateway) for token in (expired, revoked, left, unknown)),
            ended,
            Way().bearing("garbage"),
            Way(metadata=(("authorization", "Basic YTpi"),)),
            Way(metadata=(("x-forwarded-client-cert", f"URI=penstock://operator/{'a' * 20}"),)),
        ]


async def callers_of(front: Front, folder: Path) -> Callers:
    """Everybody, once acme has a model of three versions, an upload, people, keys and a signer."""
    callers = Callers(front, Acme(), front.authority.enrol(folder / "fallen", Role.WORKER))
    for column, role in _ROLES.items():
        assert column
        await front.user(f"{role}@acme", role, "acme")
    await front.user("owner@globex", "owner", "globex")
    await front.user("login@acme", "auditor", "acme")
    callers.acme.user_id = await front.user("spare@acme", "caller", "acme")
    callers.acme.key_id = (await callers.key(role="caller")).split("-")[2]
    callers.acme.live_key = await callers.key(role="caller")
    callers.acme.token_id = (await front.made("NodeService/CreateJoinToken", role="worker")).token.token_id
    callers.acme.upload_id = (await begin(front, b"ten bytes.")).upload_id
    await publish(front, callers.acme)
    await callers._nodes()
    await callers.log_in()
    await callers.limit()
    await callers._nobodies()
    return callers


async def begin(front: Front, content: bytes, tenant: str = "acme") -> files_pb2.BeginUploadResponse:
    wanted = {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content), "tenant": tenant}
    begun: files_pb2.BeginUploadResponse = await front.made("FileService/BeginUpload", **wanted)
    return begun


async def upload(front: Front, content: bytes, tenant: str = "acme") -> None:
    begun = await begin(front, content, tenant)
    header = files_pb2.UploadPartHeader(upload_id=begun.upload_id, number=0)
    parts = [files_pb2.UploadPartRequest(header=header), files_pb2.UploadPartRequest(data=content)]
    assert (await front.call(front.node(), "FileService/UploadPart", *parts)).error is None
    request = files_pb2.CompleteUploadRequest(upload_id=begun.upload_id)
    assert (await front.call(front.node(), "FileService/CompleteUpload", request)).error is None


async def publish(front: Front, acme: Acme) -> None:
    """Versions 1 to 3 of acme's model, the third withdrawn; the alias `steady` at 1; an endorsed signer."""
    await upload(front, CONTENT)
    await front.made("ModelService/CreateModel", model=MODEL, tenant="acme", description="acme's secret plans")
    for version in ("1", "2", "3"):
        await front.made("ModelService/PublishVersion", manifest=signed_manifest(version))
    await front.made("ModelService/WithdrawVersion", model=MODEL, version="3")
    await front.made("ModelService/MoveAlias", model=MODEL, alias="steady", version="1", immediate=True)
    acme.digest = digest_of(signed_manifest("1"))
    acme.signer_id = (await front.made("ModelService/EndorseSigner", endorsement=_endorsement())).signer.signer_id


def signed_manifest(version: str, model: str = MODEL, tenant: str = "acme") -> models_pb2.SignedManifest:
    said = models_pb2.Manifest(model=model, tenant=tenant, version=version, engine="onnx", task="tensor")
    said.files.add(path="weights.bin", sha256=hashlib.sha256(CONTENT).hexdigest(), size_bytes=len(CONTENT))
    return sign_manifest(ROOT, said)


def _endorsement() -> models_pb2.SignedEndorsement:
    said = models_pb2.Endorsement(tenant="acme", ed25519_public_key=b"k" * 32, models=["acme-*"], endorsed_at_ms=1)
    return sign_endorsement(ROOT, said)


def _fetch(acme: Acme, way: Way) -> Mapping[str, Any]:
    node = way.seen or way.identity
    key = b"k" * 32 if node is None else node.ed25519_public_key
    return {"sha256": hashlib.sha256(CONTENT).hexdigest(), "digest": acme.digest, "ed25519_public_key": key}


OWN_LIMIT = limits_pb2.Limit(tenant="acme", requests_per_s=50, burst=100)

STEADY = {"model": MODEL, "alias": "steady", "expected_version": "9"}
"""Changes nothing: the alias does not point there."""

REQUESTS: Mapping[str, Mapping[str, Any] | Callable[[Acme, Way], Mapping[str, Any]]] = {
    "ModelService/CreateModel": {"model": MODEL, "tenant": "acme"},
    "ModelService/ListModels": {"tenant": "acme"},
    "ModelService/ShareModel": {"model": MODEL},
    "ModelService/PublishVersion": {"manifest": signed_manifest("1")},
    "ModelService/GetVersion": {"model": MODEL, "version": "1"},
    "ModelService/WithdrawVersion": {"model": MODEL, "version": "3"},
    "ModelService/MoveAlias": STEADY | {"version": "1"},
    "ModelService/PromoteAlias": {"model": MODEL, "alias": "steady", "to": "steady"},
    "ModelService/RollBackAlias": STEADY,
    "ModelService/RemoveAlias": STEADY,
    "ModelService/ListAliasMoves": {"model": MODEL},
    "ModelService/SettleAlias": {"model": MODEL, "alias": "steady", "generation": 99},
    "ModelService/EndorseSigner": {"endorsement": _endorsement()},
    "ModelService/ListSigners": {"tenant": "acme"},
    "ModelService/RevokeSigner": lambda acme, _: {"signer_id": acme.signer_id, "tenant": "acme"},
    "FileService/BeginUpload": {"sha256": "a" * 64, "size_bytes": 1, "tenant": "acme"},
    "FileService/UploadPart": {},
    "FileService/CompleteUpload": lambda acme, _: {"upload_id": acme.upload_id},
    "FileService/AbortUpload": {"upload_id": "nothing"},
    "FileService/FetchFile": _fetch,
    "FileService/CollectGarbage": {"dry_run": True},
    "FileService/GetStorage": {"tenant": "acme"},
    "FileService/SetQuota": {"tenant": "acme"},
    "FileService/RotateMasterKey": {},
    "AccountService/CreateTenant": {"tenant": "acme"},
    "AccountService/ListTenants": {},
    "AccountService/CreateUser": {"tenant": "acme", "name": "x@acme", "role": "owner", "password": "short"},
    "AccountService/ListUsers": {"tenant": "acme"},
    "AccountService/UpdateUser": lambda acme, _: {"user_id": acme.user_id, "role": "caller"},
    "AccountService/LogIn": {"name": "login@acme", "password": PASSWORD},
    "AccountService/LogOut": {},
    "AccountService/WhoAmI": {},
    "AccountService/CreateKey": {"tenant": "acme", "role": "caller"},
    "AccountService/ListKeys": {"tenant": "acme"},
    "AccountService/RotateKey": lambda acme, _: {"key_id": acme.key_id},
    "AccountService/RevokeKey": lambda acme, _: {"key_id": acme.key_id},
    "AccountService/ResolveKey": lambda acme, _: {"secret_sha256": hashlib.sha256(acme.live_key.encode()).digest()},
    "LimitService/SetLimit": {"limit": OWN_LIMIT},
    "LimitService/ListLimits": {"tenant": "acme"},
    "LimitService/DeleteLimit": lambda acme, _: {"limit_id": acme.limit_id},
    "NodeService/CreateJoinToken": {"role": "worker"},
    "NodeService/ListJoinTokens": {},
    "NodeService/RevokeJoinToken": lambda acme, _: {"token_id": acme.token_id},
    "NodeService/Enrol": {"token_id": "none", "token_secret": b"none"},
    "NodeService/RenewCertificate": {"certificate_request": b"none"},
    "NodeService/ListNodes": {},
    "NodeService/RevokeNode": {"node_id": "0" * 20},
    "AuditService/ListEntries": {"tenant": "acme"},
    "AuditService/ReportIncident": {"reason": "A_TEST", "subject": "nothing"},
}
