"""A registry to talk to: its services on real files and a real database, over mTLS, with a stub for every role."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio
import nacl.signing
from penstock.registry.v1 import accounts_pb2_grpc, models_pb2, models_pb2_grpc

from registry.changes import KeyChanges
from registry.database import open_database
from registry.local_objects import LocalObjects
from registry.servicer import MESSAGE_BYTES, SERVICES
from registry.services import account_service, model_service
from registry.sql_accounts import SqlAccountStore
from registry.sql_models import SqlModelStore
from registry.transfers import TransferLimits
from runtime.channel import inner_channel
from runtime.errors import PenstockError
from runtime.identity import Authority, NodeIdentity, Role
from runtime.manifests import sign_manifest
from runtime.serving import Listen, ServerLimits, serving
from runtime.status import error_of

PUBLISHER = nacl.signing.SigningKey(b"p" * 32)
CONTENT = bytes(range(256)) * 8_000  # 2 MB: several chunks each way


class ManualClock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now_s = 1_700_000_000.0

    def monotonic_s(self) -> float:
        return self.now_s

    def wall_s(self) -> float:
        return self.now_s

    async def sleep(self, delay_s: float) -> None:
        self.now_s += delay_s


@dataclass(slots=True)
class Mesh:
    """One running registry and those who call it."""

    folder: Path
    address: str
    clock: ManualClock
    changes: KeyChanges
    identities: dict[Role, NodeIdentity]
    trusted: set[bytes]
    channels: dict[Role, grpc.aio.Channel] = field(default_factory=dict)

    def channel(self, role: Role) -> grpc.aio.Channel:
        if role not in self.channels:
            self.channels[role] = inner_channel(self.address, self.identities[role], Role.REGISTRY)
        return self.channels[role]

    def models(self, role: Role = Role.OPERATOR) -> models_pb2_grpc.ModelServiceStub:
        return models_pb2_grpc.ModelServiceStub(self.channel(role))

    def accounts(self, role: Role = Role.OPERATOR) -> accounts_pb2_grpc.AccountServiceStub:
        return accounts_pb2_grpc.AccountServiceStub(self.channel(role))

    @property
    def visible_files(self) -> set[str]:
        return {file.name for file in (self.folder / "objects" / "objects").rglob("*") if file.is_file()}

    def object_file(self, sha256: str) -> Path:
        return self.folder / "objects" / "objects" / sha256[:2] / sha256


def enrol_all(folder: Path) -> dict[Role, NodeIdentity]:
    authority = Authority.open(folder / "authority")
    return {role: authority.enrol(folder / role.value, role) for role in Role}


@asynccontextmanager
async def running_mesh(
    folder: Path,
    identities: dict[Role, NodeIdentity],
    *,
    limits: TransferLimits | None = None,
    backlog: int = 1024,
    watches: int = 4,
) -> AsyncIterator[Mesh]:
    clock, changes = ManualClock(), KeyChanges(max_watches=watches, backlog=backlog)
    trusted = {bytes(PUBLISHER.verify_key)}
    objects = LocalObjects(folder / "objects")
    async with open_database(str(folder / "registry.db")) as database:
        registers = [
            model_service(SqlModelStore(database), objects, limits or TransferLimits(), lambda: frozenset(trusted), clock),
            account_service(SqlAccountStore(database), changes, clock),
        ]
        listen = Listen("127.0.0.1", 0, identities[Role.REGISTRY])
        server = serving([listen], registers, SERVICES, limits=ServerLimits(message_bytes=MESSAGE_BYTES), drain_grace_s=1.0)
        async with server as running:
            mesh = Mesh(folder, f"127.0.0.1:{running.ports[0]}", clock, changes, identities, trusted)
            try:
                with closing(changes):
                    yield mesh
            finally:
                for channel in mesh.channels.values():
                    await channel.close()


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def upload_messages(
    content: bytes, *, sha256: str = "", size_bytes: int = -1, offset_bytes: int = 0, chunk_bytes: int = 300_000
) -> Iterable[models_pb2.UploadFileRequest]:
    """Header and data; digest and size are the content's unless said otherwise."""
    header = models_pb2.UploadFileHeader(
        sha256=sha256 or sha256_of(content),
        size_bytes=len(content) if size_bytes < 0 else size_bytes,
        offset_bytes=offset_bytes,
    )
    yield models_pb2.UploadFileRequest(header=header)
    for start in range(offset_bytes, len(content), chunk_bytes):
        yield models_pb2.UploadFileRequest(data=content[start : start + chunk_bytes])


async def as_stream(
    messages: Iterable[models_pb2.UploadFileRequest],
) -> AsyncIterator[models_pb2.UploadFileRequest]:
    for message in messages:
        yield message


async def upload(stub: models_pb2_grpc.ModelServiceStub, content: bytes) -> models_pb2.UploadFileResponse:
    return await stub.UploadFile(as_stream(upload_messages(content)))


async def fetch(stub: models_pb2_grpc.ModelServiceStub, sha256: str, offset_bytes: int = 0) -> bytes:
    request = models_pb2.FetchFileRequest(sha256=sha256, offset_bytes=offset_bytes)
    return b"".join([message.data async for message in stub.FetchFile(request)])


def manifest_of(*contents: bytes, model: str = "digits", version: str = "1", licence: str = "") -> models_pb2.Manifest:
    return models_pb2.Manifest(
        model=model,
        version=version,
        engine="onnx",
        task="tensor",
        licence=licence,
        files=[
            models_pb2.ManifestFile(path=f"part{number}.onnx", sha256=sha256_of(content), size_bytes=len(content))
            for number, content in enumerate(contents)
        ],
    )


def publication(manifest: models_pb2.Manifest, key: nacl.signing.SigningKey = PUBLISHER) -> models_pb2.PublishVersionRequest:
    return models_pb2.PublishVersionRequest(manifest=sign_manifest(key, manifest))


async def refusal(call: Awaitable[object]) -> PenstockError:
    """The error that a call ends with, as our own class."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as failure:
        return error_of(failure)
    raise AssertionError(f"the call was not refused but answered {answer}")


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Ask again until it does: for what becomes true in the server, which cannot tell."""
    async with asyncio.timeout(30):
        while not await holds():
            await asyncio.sleep(0.01)
