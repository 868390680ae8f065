"""Each database with each object store: one life of a model, through the real clients of publisher and worker."""

from __future__ import annotations

import secrets
from contextlib import aclosing
from pathlib import Path

import pytest
from penstock.registry.v1 import files_pb2, models_pb2

from runtime.identity import NodeIdentity, Role
from runtime.ids import Digest
from runtime.model_folder import hash_file, read_model_folder
from runtime.sealed_chunks import CHUNK_BYTES
from tests.registry.mesh import Mesh, running_mesh
from tests.support.s3 import S3Server
from worker.files.registry_source import RegistrySource

_MODEL = 'name = "paired"\nengine = "python"\ntask = "tensor"\n'
_SIZE_BYTES = 9 * CHUNK_BYTES + 17
"""Two parts."""


@pytest.fixture(params=["folder", "bucket"])
def objects_address(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "folder":
        return str(tmp_path / "objects")
    server: S3Server = request.getfixturevalue("s3")
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    return f"{server.new_bucket(f'pairs-{secrets.token_hex(4)}')}/models"


async def test_a_model_is_published_fetched_renamed_and_withdrawn(
    tmp_path: Path, identities: dict[Role, NodeIdentity], database_address: str, objects_address: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.toml").write_text(_MODEL)
    content = secrets.token_bytes(_SIZE_BYTES)
    (folder / "model.py").write_bytes(content)
    async with running_mesh(tmp_path, identities, database=database_address, objects=objects_address) as mesh:
        first = await mesh.publish(read_model_folder(folder))
        assert await fetched(mesh, first, hash_file(folder / "model.py")) == content
        (folder / "more.bin").write_bytes(b"")
        second = await mesh.publish(read_model_folder(folder))
        assert second != first
        assert await fetched(mesh, second, hash_file(folder / "more.bin")) == b""
        for version in ("1", "2"):
            move = models_pb2.MoveAliasRequest(model="paired", alias="stable", version=version, immediate=True)
            await (await mesh.models()).MoveAlias(move)
        await mesh.withdraw("paired", "2")
        answer = await (await mesh.models()).GetVersion(models_pb2.GetVersionRequest(model="paired"))
        assert answer.version.digest == first
        assert await stored(mesh) == (_SIZE_BYTES, 2)
        collected = await (await mesh.files()).CollectGarbage(files_pb2.CollectGarbageRequest())
        assert (collected.files, collected.orphans) == (0, 0)
    async with running_mesh(tmp_path, identities, database=database_address, objects=objects_address) as mesh:
        assert await fetched(mesh, first, hash_file(folder / "model.py")) == content


async def fetched(mesh: Mesh, digest: str, sha256: str) -> bytes:
    """As a worker does it."""
    source = RegistrySource(await mesh.channel(Role.WORKER), mesh.identities[Role.WORKER])
    await source.manifest(Digest(digest))
    async with aclosing(source.files_of(Digest(digest)).fetch(Digest(sha256), 0)) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def stored(mesh: Mesh) -> tuple[int, int]:
    answer = await (await mesh.files()).GetStorage(files_pb2.GetStorageRequest(tenant="default"))
    return answer.tenants[0].used_bytes, answer.tenants[0].files
