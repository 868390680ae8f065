"""One altered bit anywhere between a publisher and a worker: whoever consumes it refuses, it is written down, nothing loads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import pytest
from penstock.registry.v1 import files_pb2, models_pb2
from sqlalchemy import Column, select, update

from registry.files import codec as files_codec
from registry.models import codec as models_codec
from registry.schema import aliases, files, models, signers, versions
from runtime.errors import Code, PenstockError
from runtime.identity import NodeIdentity, Role
from runtime.sealed_chunks import CHUNK_BYTES, OVERHEAD_BYTES
from runtime.status import error_of
from tests.registry.harness import Ground
from tests.registry.tampering.world import CONTENT, MODEL, SHA256, SIGNER_ID, World, flipped, world_on

SEALED_CHUNK = CHUNK_BYTES + OVERHEAD_BYTES
Spoil = Callable[[World, pytest.MonkeyPatch], Awaitable[None]]


@dataclass(frozen=True)
class Case:
    what: str
    spoil: Spoil
    reason: str
    noted: str
    """The action under which the trail has it."""


@pytest.fixture
async def world(sqlite_ground: Ground, tmp_path: Path, identities: dict[Role, NodeIdentity]) -> AsyncIterator[World]:
    async with world_on(sqlite_ground, tmp_path, identities) as opened:
        yield opened


def row(column: Column[object], change: Callable[[object], object]) -> Spoil:
    async def spoil(world: World, _: pytest.MonkeyPatch) -> None:
        await world.rewrite(column, change)

    return spoil


def bit(column: Column[object], at: int = -1) -> Spoil:
    return row(column, lambda value: flipped(bytes(value), at))  # type: ignore[call-overload]


def stored(change: Callable[[bytes], bytes]) -> Spoil:
    async def spoil(world: World, _: pytest.MonkeyPatch) -> None:
        for part in world.parts():
            part.chmod(0o600)
            part.write_bytes(change(part.read_bytes()))

    return spoil


def version_on_the_wire(change: Callable[[models_pb2.GetVersionResponse], None]) -> Spoil:
    async def spoil(_: World, patch: pytest.MonkeyPatch) -> None:
        message = models_codec.version_message

        def altered(*arguments: object, **options: object) -> models_pb2.GetVersionResponse:
            answer = message(*arguments, **options)  # type: ignore[arg-type]
            change(answer)
            return answer

        patch.setattr(models_codec, "version_message", altered)

    return spoil


def header_on_the_wire(change: Callable[[files_pb2.FileHeader], None]) -> Spoil:
    async def spoil(_: World, patch: pytest.MonkeyPatch) -> None:
        message = files_codec.header_message

        def altered(*arguments: object) -> files_pb2.FetchFileResponse:
            answer = message(*arguments)  # type: ignore[arg-type]
            change(answer.header)
            return answer

        patch.setattr(files_codec, "header_message", altered)

    return spoil


async def chunk_on_the_wire(_: World, patch: pytest.MonkeyPatch) -> None:
    message = files_codec.chunk_message
    patch.setattr(files_codec, "chunk_message", lambda chunk: message(flipped(chunk)))


async def withdrawal_undone(world: World, _: pytest.MonkeyPatch) -> None:
    stub = await world.models()
    await stub.RemoveAlias(models_pb2.RemoveAliasRequest(model=MODEL, alias="stable"))
    await stub.WithdrawVersion(models_pb2.WithdrawVersionRequest(model=MODEL, version="1", reason="wrong"))
    await world.rewrite(versions.c.withdrawn_at_ms, lambda _: 0)
    world.version = "1"


async def revocation_undone(world: World, _: pytest.MonkeyPatch) -> None:
    stub = await world.models()
    await stub.RevokeSigner(models_pb2.RevokeSignerRequest(signer_id=SIGNER_ID, tenant="default"))
    await world.rewrite(signers.c.revoked_at_ms, lambda _: 0)


async def another_files_object(world: World, _: pytest.MonkeyPatch) -> None:
    """With its key, so that every chunk opens."""
    other = await world.upload(CONTENT[::-1])
    async with world.ground.database.writing() as connection:
        row = (await connection.execute(select(files).where(files.c.sha256 == other))).one()
        await connection.execute(update(files).where(files.c.sha256 == other).values(object_id=b"0" * 16))
        moved = {"object_id": row.object_id, "wrapped_key": row.wrapped_key}
        await connection.execute(update(files).where(files.c.sha256 == SHA256).values(moved))


ROW, INCIDENT = "tampering", "incident."
ALTERED = "ROW_ALTERED"
CHUNK, KEY, BOX, REFUSED = "CHUNK_ALTERED", "DATA_KEY_ALTERED", "DATA_KEY_REFUSED", "MANIFEST_REFUSED"
CASES = [
    Case("an object: its nonce", stored(lambda raw: flipped(raw, 0)), CHUNK, INCIDENT + CHUNK.lower()),
    Case("an object: the first byte", stored(lambda raw: flipped(raw, 24)), CHUNK, INCIDENT + CHUNK.lower()),
    Case("an object: a tag", stored(lambda raw: flipped(raw, SEALED_CHUNK - 1)), CHUNK, INCIDENT + CHUNK.lower()),
    Case("an object: its second chunk", stored(lambda raw: flipped(raw, -50)), CHUNK, INCIDENT + CHUNK.lower()),
    Case("an object cut short", stored(lambda raw: raw[:-1]), "OBJECT_MISSING", ROW),
    Case("files: the wrapped key", bit(files.c.wrapped_key), KEY, ROW),
    Case("files: the wrapped key's nonce", bit(files.c.wrapped_key, 0), KEY, ROW),
    Case("files: the master key's id", row(files.c.master_key_id, lambda _: "another"), KEY, ROW),
    Case("files: the object's id", bit(files.c.object_id), KEY, ROW),
    Case("files: the size", row(files.c.size_bytes, lambda _: len(CONTENT) - 1), CHUNK, INCIDENT + CHUNK.lower()),
    Case("files: another file's object", another_files_object, KEY, ROW),
    Case("versions: the manifest", bit(versions.c.manifest), ALTERED, ROW),
    Case("versions: the signature", bit(versions.c.signature), ALTERED, ROW),
    Case("versions: the signer's key", bit(versions.c.ed25519_public_key), ALTERED, ROW),
    Case("versions: the seal", bit(versions.c.seal), ALTERED, ROW),
    Case("versions: under another master key", bit(versions.c.seal, 0), ALTERED, ROW),
    Case("versions: a withdrawal undone", withdrawal_undone, ALTERED, ROW),
    Case("models: whom it is shared with", row(models.c.shared_with, lambda _: ["*"]), ALTERED, ROW),
    Case("models: whose it is", row(models.c.tenant, lambda _: "acme"), ALTERED, ROW),
    Case("aliases: where it points", row(aliases.c.number, lambda _: 7), ALTERED, ROW),
    Case("aliases: the weight", row(aliases.c.weight, lambda _: 50), ALTERED, ROW),
    Case("aliases: the seal", bit(aliases.c.seal), ALTERED, ROW),
    Case("signers: the endorsement", bit(signers.c.endorsement), ALTERED, ROW),
    Case("signers: when it ends", row(signers.c.expires_at_ms, lambda _: 1), ALTERED, ROW),
    Case("signers: a revocation undone", revocation_undone, ALTERED, ROW),
    Case(
        "on the wire: the manifest",
        version_on_the_wire(lambda answer: setattr(answer.manifest, "manifest", flipped(answer.manifest.manifest))),
        REFUSED,
        INCIDENT + REFUSED.lower(),
    ),
    Case(
        "on the wire: its signature",
        version_on_the_wire(lambda answer: setattr(answer.manifest, "signature", flipped(answer.manifest.signature))),
        REFUSED,
        INCIDENT + REFUSED.lower(),
    ),
    Case(
        "on the wire: the endorsement",
        version_on_the_wire(lambda answer: setattr(answer.endorsement, "endorsement", flipped(answer.endorsement.endorsement))),
        REFUSED,
        INCIDENT + REFUSED.lower(),
    ),
    Case(
        "on the wire: the endorsement's signature",
        version_on_the_wire(lambda answer: setattr(answer.endorsement, "signature", flipped(answer.endorsement.signature))),
        REFUSED,
        INCIDENT + REFUSED.lower(),
    ),
    Case(
        "on the wire: no endorsement",
        version_on_the_wire(lambda answer: answer.ClearField("endorsement")),
        REFUSED,
        INCIDENT + REFUSED.lower(),
    ),
    Case(
        "on the wire: the sealed box",
        header_on_the_wire(lambda header: setattr(header, "sealed_data_key", flipped(header.sealed_data_key))),
        BOX,
        INCIDENT + BOX.lower(),
    ),
    Case(
        "on the wire: the object's id",
        header_on_the_wire(lambda header: setattr(header, "object_id", flipped(header.object_id))),
        CHUNK,
        INCIDENT + CHUNK.lower(),
    ),
    Case("on the wire: a chunk", chunk_on_the_wire, CHUNK, INCIDENT + CHUNK.lower()),
]


async def refused(world: World) -> PenstockError:
    try:
        prepared = await world.load()
    except PenstockError as error:
        return error
    except grpc.aio.AioRpcError as failure:
        return error_of(failure)
    raise AssertionError(f"it was loaded, into {prepared.folder}")


async def test_untouched_it_loads(world: World) -> None:
    prepared = await world.load()
    assert (prepared.folder / "model.onnx").read_bytes() == CONTENT
    assert len(world.loaded_files()) == 2
    assert not [entry for entry in await world.ground.actions() if entry[2] != "done"]


@pytest.mark.parametrize("case", CASES, ids=[case.what for case in CASES])
async def test_what_was_altered_is_refused_written_down_and_not_loaded(
    world: World, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    await case.spoil(world, monkeypatch)
    error = await refused(world)
    assert error.reason == case.reason
    assert error.code in (Code.DATA_LOSS, Code.PERMISSION_DENIED)
    await world.noted(case.noted)
    assert world.loaded_files() == []
    assert (await refused(world)).reason == case.reason, "and again"


async def test_what_was_loaded_before_does_not_hide_it(world: World) -> None:
    """The worker's cache has the manifest and the file; a name that leads elsewhere is refused all the same."""
    prepared = await world.load()
    await world.artifacts.release(prepared)
    await world.rewrite(aliases.c.number, lambda _: 7)
    assert (await refused(world)).reason == ALTERED
    cached = world.worker_disk / "files" / SHA256
    cached.chmod(0o600)
    cached.write_bytes(flipped(CONTENT))
    await world.rewrite(aliases.c.number, lambda _: 1)
    prepared = await world.load()
    assert (prepared.folder / "model.onnx").read_bytes() == CONTENT, "it was fetched anew"
