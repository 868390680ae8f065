"""The worker's side of the registry: a real one, over a connection that a test breaks."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path

import pytest
from penstock.registry.v1 import models_pb2

from runtime.channel import inner_channel
from runtime.errors import Code, PenstockError, Unavailable
from runtime.identity import NodeIdentity, Role
from runtime.ids import Digest
from runtime.serving import RoleRequired
from tests.registry.mesh import Mesh, enrol_all, manifest_of, publication, running_mesh, sha256_of, upload
from tests.support.forwarder import Forwarder, forwarder_to
from worker.files.cache import open_cache
from worker.files.manifest import ManifestFile
from worker.files.registry_source import RegistrySource

CONTENT = os.urandom(24 * 1024 * 1024)
SHA256 = Digest(sha256_of(CONTENT))
WHOLE = ManifestFile("model.onnx", SHA256, len(CONTENT))


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> dict[Role, NodeIdentity]:
    return enrol_all(tmp_path_factory.mktemp("identities"))


@pytest.fixture
async def registry(tmp_path: Path, identities: dict[Role, NodeIdentity]) -> AsyncIterator[Mesh]:
    async with running_mesh(tmp_path, identities) as running:
        yield running


@pytest.fixture
async def hop(registry: Mesh) -> AsyncIterator[Forwarder]:
    async with forwarder_to(int(registry.address.rpartition(":")[2])) as forwarder:
        yield forwarder


async def each_chunk(source: RegistrySource, offset_bytes: int, take: Callable[[bytes], Awaitable[None]]) -> None:
    async with aclosing(source.fetch(SHA256, offset_bytes)) as chunks:
        async for chunk in chunks:
            await take(chunk)


async def test_a_broken_transfer_is_told_as_passing_and_goes_on_from_what_came(
    tmp_path: Path, registry: Mesh, hop: Forwarder, identities: dict[Role, NodeIdentity]
) -> None:
    await upload(registry.models(), CONTENT)
    async with inner_channel(hop.endpoint, identities[Role.WORKER], Role.REGISTRY) as channel:
        source = RegistrySource(channel)
        with open_cache(tmp_path / "cache", 10 * len(CONTENT)) as cache:
            reception = cache.resume(WHOLE)

            async def take_and_cut(chunk: bytes) -> None:
                reception.append(chunk)
                if reception.received_bytes == len(chunk):
                    await hop.cut()

            with pytest.raises(Unavailable, match="registry"):
                await each_chunk(source, 0, take_and_cut)
            reception.close()
            came_bytes = reception.received_bytes
            assert 0 < came_bytes < len(CONTENT)
            await hop.mend()
            reception = cache.resume(WHOLE)
            assert reception.received_bytes == came_bytes

            async def take(chunk: bytes) -> None:
                reception.append(chunk)

            await each_chunk(source, came_bytes, take)
            assert reception.finish()
            reception.close()
            assert cache.holds(WHOLE)


async def test_a_registry_that_falls_silent_is_given_up(
    registry: Mesh, hop: Forwarder, identities: dict[Role, NodeIdentity]
) -> None:
    await upload(registry.models(), CONTENT)
    async with inner_channel(hop.endpoint, identities[Role.WORKER], Role.REGISTRY) as channel:
        source = RegistrySource(channel, answer_s=0.3, silence_s=0.3)

        async def fall_silent(_: bytes) -> None:
            hop.silence()

        with pytest.raises(Unavailable, match="sent nothing"):
            await each_chunk(source, 0, fall_silent)


async def test_one_that_is_away_is_passing_too(hop: Forwarder, identities: dict[Role, NodeIdentity]) -> None:
    await hop.cut()
    async with inner_channel(hop.endpoint, identities[Role.WORKER], Role.REGISTRY) as channel:
        source = RegistrySource(channel)
        with pytest.raises(Unavailable, match="does not answer"):
            await source.manifest(SHA256)
        with pytest.raises(Unavailable, match="does not answer"):
            await anext(source.fetch(SHA256, 0))


async def test_what_the_registry_refuses_keeps_its_code(registry: Mesh, identities: dict[Role, NodeIdentity]) -> None:
    async with inner_channel(registry.address, identities[Role.WORKER], Role.REGISTRY) as channel:
        with pytest.raises(PenstockError, match="d" * 64) as unknown:
            await RegistrySource(channel).manifest(Digest("d" * 64))
        assert unknown.value.code is Code.NOT_FOUND
        with pytest.raises(PenstockError, match=SHA256) as unknown:
            await anext(RegistrySource(channel).fetch(SHA256, 0))
        assert unknown.value.code is Code.NOT_FOUND
    async with inner_channel(registry.address, identities[Role.GATEWAY], Role.REGISTRY) as channel:
        with pytest.raises(RoleRequired, match="gateway"):
            await anext(RegistrySource(channel).fetch(SHA256, 0))


async def test_a_manifest_comes_as_it_was_signed(registry: Mesh, identities: dict[Role, NodeIdentity]) -> None:
    await upload(registry.models(), b"weights")
    await registry.models().CreateModel(models_pb2.CreateModelRequest(model="digits"))
    request = publication(manifest_of(b"weights"))
    published = await registry.models().PublishVersion(request)
    async with inner_channel(registry.address, identities[Role.WORKER], Role.REGISTRY) as channel:
        raw = await RegistrySource(channel).manifest(Digest(published.version.digest))
    assert models_pb2.SignedManifest.FromString(raw) == request.manifest
