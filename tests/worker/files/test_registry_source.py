"""The worker's side of the registry: a real server, over a connection that a test breaks."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path

import nacl.public
import nacl.signing
import pytest
from penstock.registry.v1 import files_pb2, models_pb2

from registry.files.data_keys import sealed_to_node
from runtime.channel import inner_channel
from runtime.errors import Code, PenstockError, Unavailable
from runtime.identity import NodeIdentity, Role
from runtime.ids import Digest
from runtime.manifests import digest_of, sign_manifest
from runtime.sealed_chunks import CHUNK_BYTES, ChunkAltered
from runtime.serving import RoleRequired
from tests.registry.harness import Served, enrol_all, served
from tests.support.forwarder import Forwarder, forwarder_to
from tests.worker.files.small_registry import SmallRegistry
from tests.worker.manifests import PUBLISHER, manifest_of, sha256_of
from worker.files.cache import open_cache
from worker.files.manifest import ManifestFile, vouched
from worker.files.registry_source import DataKeyRefused, RegistrySource

CONTENT = os.urandom(24 * CHUNK_BYTES + 5)
SHA256 = Digest(sha256_of(CONTENT))
WHOLE = ManifestFile("model.onnx", SHA256, len(CONTENT))
VERSION = Digest("e" * 64)


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> dict[Role, NodeIdentity]:
    return enrol_all(tmp_path_factory.mktemp("identities"))


@pytest.fixture
def registry() -> SmallRegistry:
    made = SmallRegistry()
    made.store(CONTENT)
    return made


@pytest.fixture
async def server(registry: SmallRegistry, identities: dict[Role, NodeIdentity]) -> AsyncIterator[Served]:
    async with served([registry.register], identities) as running:
        yield running


@pytest.fixture
async def source(server: Served, identities: dict[Role, NodeIdentity]) -> RegistrySource:
    return RegistrySource(await server.channel(Role.WORKER), identities[Role.WORKER])


@pytest.fixture
async def hop(server: Served) -> AsyncIterator[Forwarder]:
    async with forwarder_to(int(server.address.rpartition(":")[2])) as forwarder:
        yield forwarder


async def each_chunk(source: RegistrySource, offset_bytes: int, take: Callable[[bytes], Awaitable[None]]) -> None:
    async with aclosing(source.files_of(VERSION).fetch(SHA256, offset_bytes)) as chunks:
        async for chunk in chunks:
            await take(chunk)


async def fetched(source: RegistrySource, offset_bytes: int = 0) -> bytes:
    parts: list[bytes] = []

    async def take(chunk: bytes) -> None:
        parts.append(chunk)

    await each_chunk(source, offset_bytes, take)
    return b"".join(parts)


@pytest.mark.parametrize("offset_bytes", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, 3 * CHUNK_BYTES + 7, len(CONTENT) - 1])
async def test_a_file_comes_from_where_it_is_asked_and_no_chunk_before_that(
    source: RegistrySource, registry: SmallRegistry, identities: dict[Role, NodeIdentity], offset_bytes: int
) -> None:
    assert await fetched(source, offset_bytes) == CONTENT[offset_bytes:]
    (request,) = registry.asked
    assert (request.sha256, request.digest, request.first_chunk) == (SHA256, VERSION, offset_bytes // CHUNK_BYTES)
    assert request.ed25519_public_key == identities[Role.WORKER].ed25519_public_key


async def test_a_broken_transfer_is_told_as_passing_and_goes_on_from_what_came(
    tmp_path: Path, registry: SmallRegistry, hop: Forwarder, identities: dict[Role, NodeIdentity]
) -> None:
    async with inner_channel(hop.endpoint, identities[Role.WORKER], Role.REGISTRY) as channel:
        source = RegistrySource(channel, identities[Role.WORKER])
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


async def test_a_registry_that_falls_silent_is_given_up(hop: Forwarder, identities: dict[Role, NodeIdentity]) -> None:
    async with inner_channel(hop.endpoint, identities[Role.WORKER], Role.REGISTRY) as channel:
        source = RegistrySource(channel, identities[Role.WORKER], answer_s=0.3, silence_s=0.3)

        async def fall_silent(_: bytes) -> None:
            hop.silence()

        with pytest.raises(Unavailable, match="sent nothing"):
            await each_chunk(source, 0, fall_silent)


async def test_one_that_is_away_is_passing_too(hop: Forwarder, identities: dict[Role, NodeIdentity]) -> None:
    await hop.cut()
    async with inner_channel(hop.endpoint, identities[Role.WORKER], Role.REGISTRY) as channel:
        source = RegistrySource(channel, identities[Role.WORKER])
        with pytest.raises(Unavailable, match="does not answer"):
            await source.manifest(SHA256)
        with pytest.raises(Unavailable, match="does not answer"):
            await fetched(source)


async def test_what_the_registry_refuses_keeps_its_code(
    source: RegistrySource, registry: SmallRegistry, server: Served, identities: dict[Role, NodeIdentity]
) -> None:
    with pytest.raises(PenstockError, match="d" * 64) as unknown:
        await source.manifest(Digest("d" * 64))
    assert unknown.value.code is Code.NOT_FOUND
    registry.files.clear()
    with pytest.raises(PenstockError, match=SHA256) as unknown:
        await fetched(source)
    assert unknown.value.code is Code.NOT_FOUND
    with pytest.raises(RoleRequired, match="gateway"):
        await fetched(RegistrySource(await server.channel(Role.GATEWAY), identities[Role.GATEWAY]))


async def test_a_manifest_comes_as_it_was_signed_with_the_endorsement_and_nothing_else(
    source: RegistrySource, registry: SmallRegistry
) -> None:
    signed = sign_manifest(PUBLISHER, manifest_of({"model.onnx": CONTENT}))
    answer = models_pb2.GetVersionResponse(manifest=signed, version=models_pb2.VersionSummary(engine="told by nobody"))
    registry.versions[digest_of(signed)] = answer
    assert await source.manifest(digest_of(signed)) == vouched(models_pb2.GetVersionResponse(manifest=signed))
    answer.endorsement.signature = b"s"
    kept = models_pb2.GetVersionResponse.FromString(await source.manifest(digest_of(signed)))
    assert (kept.manifest, kept.endorsement.signature, kept.version.engine) == (signed, b"s", "")


def _other_node(header: files_pb2.FileHeader) -> None:
    header.sealed_data_key = sealed_to_node(b"d" * 32, bytes(nacl.signing.SigningKey.generate().verify_key))


def _short_key(header: files_pb2.FileHeader, identity: NodeIdentity) -> None:
    box = nacl.public.SealedBox(identity.signing_key.verify_key.to_curve25519_public_key())
    header.sealed_data_key = box.encrypt(b"short")


async def test_a_key_that_is_not_for_this_node_opens_nothing(
    source: RegistrySource, registry: SmallRegistry, identities: dict[Role, NodeIdentity]
) -> None:
    spoils: list[Callable[[files_pb2.FileHeader], None]] = [
        _other_node,
        lambda header: _short_key(header, identities[Role.WORKER]),
        lambda header: header.ClearField("sealed_data_key"),
        lambda header: setattr(header, "sealed_data_key", header.sealed_data_key[:-1] + b"\0"),
    ]
    for spoil in spoils:
        registry.spoil = spoil
        with pytest.raises(DataKeyRefused):
            await fetched(source)


async def test_another_nodes_key_or_another_layout_is_refused(source: RegistrySource, registry: SmallRegistry) -> None:
    spoils: list[Callable[[files_pb2.FileHeader], None]] = [
        lambda header: setattr(header, "chunk_bytes", 1),
        lambda header: setattr(header, "object_id", b"short"),
        lambda header: setattr(header, "size_bytes", header.size_bytes + 1),
        lambda header: setattr(header, "object_id", b"o" * 16),
    ]
    for spoil in spoils:
        registry.spoil = spoil
        with pytest.raises(ChunkAltered):
            await fetched(source)


async def test_chunks_in_another_order_left_out_or_too_many_do_not_open(
    source: RegistrySource, registry: SmallRegistry
) -> None:
    chunks = registry.files[SHA256].chunks
    for altered in (
        [chunks[1], chunks[0], *chunks[2:]],
        chunks[1:],
        [*chunks, chunks[-1]],
        [b"", *chunks[1:]],
        [chunks[0][:-1], *chunks[1:]],
    ):
        registry.files[SHA256].chunks = altered
        with pytest.raises(ChunkAltered):
            await fetched(source)
