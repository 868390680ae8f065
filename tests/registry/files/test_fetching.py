"""Files going out, over a real server: who may have them, and that only its node can open what it gets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import nacl.exceptions
import nacl.public
import pytest
from penstock.registry.v1 import files_pb2

from registry.access.door import Context
from registry.access.types import ActorKind, Principal, Scope, ScopeRequired
from registry.files.data_keys import DataKeyAltered
from registry.files.errors import FileForbidden, FileUnknown, ObjectMissing
from registry.files.types import part_key
from registry.schema import versions
from registry.seals import RowAltered, update_sealed
from runtime.errors import InvalidArgument, PenstockError, VersionWithdrawn
from runtime.identity import NodeIdentity, Role
from runtime.ids import Digest, TenantId
from runtime.sealed_chunks import CHUNK_BYTES, open_chunk
from tests.registry.files.rig import LIMITS, Rig, content_of, fetched, rig_on, served_rig, sha256_of, stub_of
from tests.registry.harness import Ground, Served, refusal

CONTENT = content_of()
Identities = dict[Role, NodeIdentity]


@pytest.fixture
async def server(rig: Rig, identities: Identities) -> AsyncIterator[Served]:
    async with served_rig(rig, identities) as running:
        yield running


def unsealed(header: files_pb2.FileHeader, chunks: list[bytes], identity: NodeIdentity, first_chunk: int = 0) -> bytes:
    """What the node makes of it."""
    box = nacl.public.SealedBox(identity.signing_key.to_curve25519_private_key())
    data_key = box.decrypt(header.sealed_data_key)
    return b"".join(
        open_chunk(data_key, header.object_id, first_chunk + index, header.size_bytes, chunk)
        for index, chunk in enumerate(chunks)
    )


@pytest.mark.parametrize("first_chunk", [0, 1, 2, 3, 4])
async def test_a_worker_gets_the_file_from_any_chunk_and_alone_can_open_it(
    rig: Rig, server: Served, identities: Identities, first_chunk: int
) -> None:
    await rig.upload(CONTENT)
    digest, worker = await rig.publish(CONTENT), identities[Role.WORKER]
    header, chunks = await fetched(await stub_of(server, Role.WORKER), worker, digest, CONTENT, first_chunk)
    assert (header.size_bytes, header.chunk_bytes, len(header.object_id)) == (len(CONTENT), CHUNK_BYTES, 16)
    assert unsealed(header, chunks, worker, first_chunk) == CONTENT[first_chunk * CHUNK_BYTES :]
    with pytest.raises(nacl.exceptions.CryptoError):
        unsealed(header, chunks, identities[Role.GATEWAY])


@pytest.mark.parametrize("size_bytes", [0, 1, CHUNK_BYTES, 5 * CHUNK_BYTES + 1])
async def test_files_of_other_sizes_and_parts(
    sqlite_ground: Ground, tmp_path: Path, identities: Identities, size_bytes: int
) -> None:
    rig, content = rig_on(sqlite_ground, tmp_path, replace(LIMITS, part_bytes=2 * CHUNK_BYTES)), content_of(size_bytes)
    await rig.upload(content)
    digest = await rig.publish(content)
    async with served_rig(rig, identities) as server:
        operator = identities[Role.OPERATOR]
        header, chunks = await fetched(await stub_of(server), operator, digest, content)
        assert unsealed(header, chunks, operator) == content


async def wish(server: Served, identities: Identities, version: str, **changed: object) -> PenstockError:
    """What a worker that asks so is refused with."""
    asked: dict[str, object] = {
        "sha256": sha256_of(CONTENT),
        "digest": version,
        "ed25519_public_key": identities[Role.WORKER].ed25519_public_key,
        **changed,
    }
    stub = await stub_of(server, Role.WORKER)
    return await refusal(stub.FetchFile(files_pb2.FetchFileRequest(**asked)).read())  # type: ignore[arg-type]


async def test_what_is_not_the_callers_to_have_is_refused(rig: Rig, server: Served, identities: Identities) -> None:
    other = content_of(100, 9)
    for content in (CONTENT, other):
        await rig.upload(content)
    digest = await rig.publish(CONTENT)
    ask: list[tuple[type[PenstockError], dict[str, object]]] = [
        (FileUnknown, {"sha256": sha256_of(other)}),
        (FileUnknown, {"digest": "0" * 64}),
        (InvalidArgument, {"sha256": "x"}),
        (InvalidArgument, {"digest": ""}),
        (InvalidArgument, {"first_chunk": 5}),
        (InvalidArgument, {"ed25519_public_key": b"x"}),
        (FileForbidden, {"ed25519_public_key": identities[Role.GATEWAY].ed25519_public_key}),
    ]
    for kind, changed in ask:
        assert isinstance(await wish(server, identities, digest, **changed), kind), changed
    for role in (Role.GATEWAY, Role.SCHEDULER, Role.ENVOY):
        stub = await stub_of(server, role)
        request = files_pb2.FetchFileRequest(sha256=sha256_of(CONTENT), digest=digest)
        assert isinstance(await refusal(stub.FetchFile(request).read()), ScopeRequired)
    assert ("file.fetch", sha256_of(CONTENT), "refused") in await rig.ground.actions()


async def test_a_file_that_another_table_gives_a_version_is_not_the_versions(
    rig: Rig, server: Served, identities: Identities
) -> None:
    """The signed manifest lists the files; a row somebody put beside it opens nothing."""
    secret = content_of(100, 9)
    await rig.upload(CONTENT)
    await rig.upload(secret, "globex")
    digest = await rig.publish(CONTENT)
    await rig.ground.execute(f"INSERT INTO version_files (digest, sha256) VALUES ('{digest}', '{sha256_of(secret)}')")
    assert isinstance(await wish(server, identities, digest, sha256=sha256_of(secret)), FileUnknown)


@pytest.mark.parametrize(
    ("serves", "tenant", "shared_with", "may"),
    [
        ((), "acme", (), True),
        (("acme",), "acme", (), True),
        (("globex",), "acme", (), False),
        (("globex",), "acme", ("globex",), True),
        (("globex",), "acme", ("*",), True),
        (("globex", "acme"), "acme", (), True),
    ],
)
async def test_a_worker_of_some_tenants_gets_their_models_alone(
    sqlite_ground: Ground,
    tmp_path: Path,
    identities: Identities,
    serves: tuple[str, ...],
    tenant: str,
    shared_with: tuple[str, ...],
    may: bool,
) -> None:
    rig, worker = rig_on(sqlite_ground, tmp_path), identities[Role.WORKER]

    class TenantsDoor:
        """As a certificate with tenants in it would have it."""

        async def enter(self, context: Context) -> Principal:
            node_tenants = frozenset(TenantId(name) for name in serves)
            scopes = frozenset({Scope.FILES_FETCH})
            return Principal(ActorKind.NODE, worker.node_id, scopes, node_id=worker.node_id, node_tenants=node_tenants)

    rig.files.servicer._door = TenantsDoor()
    await rig.upload(CONTENT, tenant)
    digest = await rig.publish(CONTENT, tenant=tenant, shared_with=shared_with)
    async with served_rig(rig, identities) as server:
        if may:
            _, chunks = await fetched(await stub_of(server, Role.WORKER), worker, digest, CONTENT)
            assert len(chunks) == 4
        else:
            assert isinstance(await wish(server, identities, digest), FileForbidden)


async def test_a_withdrawn_version_is_no_longer_handed_out(rig: Rig, server: Served, identities: Identities) -> None:
    await rig.upload(CONTENT)
    digest = await rig.publish(CONTENT)
    async with rig.ground.database.writing() as connection:
        await update_sealed(connection, rig.ground.seals, versions, {"withdrawn_at_ms": 5}, versions.c.digest == digest)
    assert isinstance(await wish(server, identities, digest), VersionWithdrawn)


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("UPDATE models SET shared_with = '[\"*\"]'", RowAltered),
        ("UPDATE versions SET withdrawn_at_ms = 0, signer_id = 'other'", RowAltered),
        ("UPDATE files SET master_key_id = 'k2'", DataKeyAltered),
    ],
)
async def test_altered_rows_hand_out_nothing(
    rig: Rig, server: Served, identities: Identities, statement: str, kind: type[PenstockError]
) -> None:
    await rig.upload(CONTENT)
    digest = await rig.publish(CONTENT)
    await rig.ground.execute(statement)
    assert isinstance(await wish(server, identities, digest), kind)


async def test_an_altered_data_key_is_noted_so_many_times_a_minute(sqlite_rig: Rig, identities: Identities) -> None:
    await sqlite_rig.upload(CONTENT)
    digest = await sqlite_rig.publish(CONTENT)
    await sqlite_rig.ground.execute("UPDATE files SET master_key_id = 'k2'")
    async with served_rig(sqlite_rig, identities) as server:
        for _ in range(70):
            await wish(server, identities, digest)
    assert (await sqlite_rig.ground.actions()).count(("tampering", sha256_of(CONTENT), "failed")) == 60


async def test_a_part_that_is_gone_is_told_in_the_middle(rig: Rig, server: Served, identities: Identities) -> None:
    await rig.upload(CONTENT)
    digest = await rig.publish(CONTENT)
    file = await rig.store.file(Digest(sha256_of(CONTENT)))
    assert file is not None
    await rig.objects.delete([part_key(file.object_id, 2)])
    request = files_pb2.FetchFileRequest(
        sha256=sha256_of(CONTENT), digest=digest, ed25519_public_key=identities[Role.WORKER].ed25519_public_key
    )
    call = (await stub_of(server, Role.WORKER)).FetchFile(request)
    for expected in ("header", "sealed_chunk", "sealed_chunk"):
        message = await call.read()
        assert isinstance(message, files_pb2.FetchFileResponse)
        assert message.WhichOneof("part") == expected
    assert isinstance(await refusal(call.read()), ObjectMissing)
    assert ("tampering", sha256_of(CONTENT), "failed") in await rig.ground.actions()


async def test_a_reader_that_takes_nothing_loses_its_place(
    sqlite_ground: Ground, tmp_path: Path, identities: Identities
) -> None:
    rig = rig_on(sqlite_ground, tmp_path, replace(LIMITS, fetches_at_once=1, silence_s=0.3))
    content = content_of(24 * CHUNK_BYTES)
    await rig.upload(content)
    digest, worker = await rig.publish(content), identities[Role.WORKER]
    async with served_rig(rig, identities) as server:
        request = files_pb2.FetchFileRequest(
            sha256=sha256_of(content), digest=digest, ed25519_public_key=worker.ed25519_public_key
        )
        stuck = (await stub_of(server, Role.WORKER)).FetchFile(request)
        await stuck.read()
        _, chunks = await fetched(await stub_of(server, Role.OPERATOR), identities[Role.OPERATOR], digest, content)
        assert len(chunks) == 24
        stuck.cancel()
