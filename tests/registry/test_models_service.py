"""Models over the wire: created, published by trusted signers only, found, never changed."""

from __future__ import annotations

import asyncio

import nacl.signing
import pytest
from penstock.registry.v1 import models_pb2

from registry.catalogue import VersionUnknown
from registry.ports import ModelExists, ModelUnknown, VersionExists
from registry.publishing import FilesMissing
from runtime.errors import InvalidArgument, PenstockError
from runtime.identity import Role, node_id_of
from runtime.manifests import ManifestRefused, digest_of, verify_manifest
from runtime.serving import RoleRequired
from tests.registry.mesh import PUBLISHER, Mesh, manifest_of, publication, refusal, sha256_of, upload

WEIGHTS = b"weights" * 1000
TOKENS = b"tokens"


@pytest.fixture
async def digits(mesh: Mesh) -> Mesh:
    """A registry with the model and its files, and no version yet."""
    await mesh.models().CreateModel(models_pb2.CreateModelRequest(model="digits", description="reads digits"))
    await upload(mesh.models(), WEIGHTS)
    await upload(mesh.models(), TOKENS)
    return mesh


async def test_a_published_version_is_found_by_number_digest_and_as_the_newest(digits: Mesh) -> None:
    request = publication(manifest_of(WEIGHTS, TOKENS))
    published = (await digits.models().PublishVersion(request)).version
    assert published.digest == digest_of(request.manifest)
    assert published.signer_id == node_id_of(bytes(PUBLISHER.verify_key))
    assert published.size_bytes == len(WEIGHTS) + len(TOKENS)
    worker = digits.models(Role.WORKER)
    for ask in (
        models_pb2.GetVersionRequest(model="digits", version="1"),
        models_pb2.GetVersionRequest(model="digits"),
        models_pb2.GetVersionRequest(digest=published.digest),
    ):
        found = await worker.GetVersion(ask)
        assert found.version == published
        assert found.manifest == request.manifest, "the signed bytes travel as they are"
        assert verify_manifest(found.manifest, {bytes(PUBLISHER.verify_key)}).digest == published.digest


async def test_the_newest_is_the_highest_number_not_the_last_published(digits: Mesh) -> None:
    for version in ("2", "10", "9"):
        await digits.models().PublishVersion(publication(manifest_of(WEIGHTS, version=version)))
    assert (await digits.models().GetVersion(models_pb2.GetVersionRequest(model="digits"))).version.version == "10"
    (listed,) = (await digits.models(Role.GATEWAY).ListModels(models_pb2.ListModelsRequest())).models
    assert (listed.model, listed.description) == ("digits", "reads digits")
    assert [version.version for version in listed.versions] == ["2", "9", "10"]


async def test_publishing_the_same_again_gives_the_first_answer(digits: Mesh) -> None:
    first = await digits.models().PublishVersion(publication(manifest_of(WEIGHTS)))
    digits.clock.now_s += 60
    assert await digits.models().PublishVersion(publication(manifest_of(WEIGHTS))) == first


async def test_a_version_never_changes(digits: Mesh) -> None:
    first = await digits.models().PublishVersion(publication(manifest_of(WEIGHTS)))
    refused = await refusal(digits.models().PublishVersion(publication(manifest_of(TOKENS))))
    assert isinstance(refused, VersionExists)
    assert first.version.digest in refused.message
    found = await digits.models().GetVersion(models_pb2.GetVersionRequest(model="digits", version="1"))
    assert found.version == first.version


async def test_of_concurrent_publishers_of_one_version_one_wins_and_all_agree(digits: Mesh) -> None:
    contents = [manifest_of(WEIGHTS, licence=f"licence {number}") for number in range(8)]
    calls = [digits.models().PublishVersion(publication(manifest)) for manifest in contents]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    (winner,) = [answer for answer in answers if isinstance(answer, models_pb2.PublishVersionResponse)]
    found = await digits.models().GetVersion(models_pb2.GetVersionRequest(model="digits", version="1"))
    assert found.version == winner.version
    again = [
        await refusal(digits.models().PublishVersion(publication(manifest)))
        for manifest in contents
        if digest_of(publication(manifest).manifest) != winner.version.digest
    ]
    assert len(again) == 7
    assert {type(error) for error in again} == {VersionExists}


async def test_concurrent_publishers_of_the_same_bytes_are_all_answered_alike(digits: Mesh) -> None:
    answers = await asyncio.gather(*[digits.models().PublishVersion(publication(manifest_of(WEIGHTS))) for _ in range(6)])
    assert len({answer.version.SerializeToString() for answer in answers}) == 1


async def test_an_untrusted_signer_is_refused_until_trusted(digits: Mesh) -> None:
    stranger = nacl.signing.SigningKey.generate()
    request = publication(manifest_of(WEIGHTS), stranger)
    refused = await refusal(digits.models().PublishVersion(request))
    assert isinstance(refused, ManifestRefused)
    assert node_id_of(bytes(stranger.verify_key)) in refused.message
    digits.trusted.add(bytes(stranger.verify_key))
    await digits.models().PublishVersion(request)


@pytest.mark.parametrize("part", ["manifest", "signature"])
async def test_an_altered_manifest_is_refused(digits: Mesh, part: str) -> None:
    signed = publication(manifest_of(WEIGHTS)).manifest
    content = bytearray(getattr(signed, part))
    content[-1] ^= 1
    setattr(signed, part, bytes(content))
    refused = await refusal(digits.models().PublishVersion(models_pb2.PublishVersionRequest(manifest=signed)))
    assert isinstance(refused, ManifestRefused)


async def test_files_must_be_here_whole(digits: Mesh) -> None:
    refused = await refusal(digits.models().PublishVersion(publication(manifest_of(WEIGHTS, b"never uploaded"))))
    assert isinstance(refused, FilesMissing)
    assert sha256_of(b"never uploaded") in refused.message


async def test_sizes_must_be_those_of_the_files(digits: Mesh) -> None:
    manifest = manifest_of(WEIGHTS)
    manifest.files[0].size_bytes += 1
    refused = await refusal(digits.models().PublishVersion(publication(manifest)))
    assert isinstance(refused, InvalidArgument)
    assert str(len(WEIGHTS)) in refused.message


@pytest.mark.parametrize("path", ["../escape", "/etc/passwd", "a//b", "a/../b", ".", "", "a\\b", "C:x", "a\0b", "a/"])
async def test_a_path_must_stay_inside_the_models_folder(digits: Mesh, path: str) -> None:
    manifest = manifest_of(WEIGHTS)
    manifest.files[0].path = path
    assert isinstance(await refusal(digits.models().PublishVersion(publication(manifest))), InvalidArgument)


@pytest.mark.parametrize("version", ["", "0", "01", "-1", "1.0", "one", "9" * 19, "１"])
async def test_a_version_is_a_positive_decimal_number(digits: Mesh, version: str) -> None:
    refused = await refusal(digits.models().PublishVersion(publication(manifest_of(WEIGHTS, version=version))))
    assert isinstance(refused, InvalidArgument)


async def test_the_model_must_exist(digits: Mesh) -> None:
    refused = await refusal(digits.models().PublishVersion(publication(manifest_of(WEIGHTS, model="other"))))
    assert isinstance(refused, ModelUnknown)


async def test_a_model_is_created_once(digits: Mesh) -> None:
    assert isinstance(await refusal(digits.models().CreateModel(models_pb2.CreateModelRequest(model="digits"))), ModelExists)


@pytest.mark.parametrize("name", ["", "a/b", "../a", "a b", "-a", "a" * 129, "ä"])
async def test_a_models_name_fits_paths_and_keys(mesh: Mesh, name: str) -> None:
    assert isinstance(await refusal(mesh.models().CreateModel(models_pb2.CreateModelRequest(model=name))), InvalidArgument)


@pytest.mark.parametrize(
    ("ask", "expected"),
    [
        (models_pb2.GetVersionRequest(model="digits", version="7"), VersionUnknown),
        (models_pb2.GetVersionRequest(model="digits"), VersionUnknown),
        (models_pb2.GetVersionRequest(model="unknown"), VersionUnknown),
        (models_pb2.GetVersionRequest(digest="0" * 64), VersionUnknown),
        (models_pb2.GetVersionRequest(digest="short"), InvalidArgument),
        (models_pb2.GetVersionRequest(model="digits", version="latest"), InvalidArgument),
        (models_pb2.GetVersionRequest(), InvalidArgument),
    ],
)
async def test_what_is_not_there_is_said_so(
    digits: Mesh, ask: models_pb2.GetVersionRequest, expected: type[PenstockError]
) -> None:
    assert isinstance(await refusal(digits.models().GetVersion(ask)), expected)


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.OPERATOR])
async def test_only_operators_change_models(mesh: Mesh, role: Role) -> None:
    stub = mesh.models(role)
    for call in (
        stub.CreateModel(models_pb2.CreateModelRequest(model="x")),
        stub.PublishVersion(models_pb2.PublishVersionRequest()),
        stub.StatFile(models_pb2.StatFileRequest(sha256="0" * 64)),
    ):
        refused = await refusal(call)
        assert isinstance(refused, RoleRequired)
        assert role.value in refused.message
    assert not (await mesh.models().ListModels(models_pb2.ListModelsRequest())).models


@pytest.mark.parametrize("role", [Role.OPERATOR, Role.GATEWAY, Role.SCHEDULER, Role.WORKER])
async def test_inner_services_read_models(mesh: Mesh, role: Role) -> None:
    assert not (await mesh.models(role).ListModels(models_pb2.ListModelsRequest())).models
    refused = await refusal(mesh.models(role).GetVersion(models_pb2.GetVersionRequest(model="x")))
    assert isinstance(refused, VersionUnknown)


@pytest.mark.parametrize("role", [Role.ENVOY, Role.REGISTRY])
async def test_others_do_not_read_models(mesh: Mesh, role: Role) -> None:
    assert isinstance(await refusal(mesh.models(role).ListModels(models_pb2.ListModelsRequest())), RoleRequired)
