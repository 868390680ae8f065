"""Versions: published by those who may of files that are there, never changed, withdrawn for good."""

from __future__ import annotations

import nacl.signing
import pytest
from penstock.registry.v1 import models_pb2

from registry.access.types import AccountRole, OtherTenant, Principal, ScopeRequired
from registry.models.policy import MAX_MANIFEST_BYTES
from registry.models.types import FilesMissing, ModelUnknown, VersionExists, VersionUnknown
from registry.seals import RowAltered
from runtime.errors import InvalidArgument, VersionWithdrawn
from runtime.identity import Role
from runtime.manifests import ManifestRefused, digest_of, sign_manifest, verify_manifest
from tests.registry.models.rig import (
    NOWHERE,
    ROOT,
    TOKENS,
    WEIGHTS,
    Desk,
    endorse,
    endorsement,
    manifest,
    node,
    person,
    revoke,
    sha256_of,
)

KEY = nacl.signing.SigningKey(b"t" * 32)


async def withdraw(desk: Desk, version: int, reason: str = "it lies", model: str = "digits") -> models_pb2.VersionSummary:
    request = models_pb2.WithdrawVersionRequest(model=model, version=str(version), reason=reason)
    return (await desk.servicer.WithdrawVersion(request, NOWHERE)).version


async def test_a_published_version_is_found_as_it_was_signed(desk: Desk) -> None:
    signed = sign_manifest(ROOT, manifest(contents=(WEIGHTS, TOKENS)))
    published = await desk.publish_signed(signed)
    assert published.digest == digest_of(signed)
    assert published.size_bytes == len(WEIGHTS) + len(TOKENS)
    for found in (await desk.get("1"), await desk.get(), await desk.get(model="", digest=published.digest)):
        assert found.version == published
        assert found.manifest == signed
        assert not found.HasField("endorsement"), "a root needs none"
        assert verify_manifest(found.manifest, desk.roots).digest == published.digest
    assert await desk.ground.count("version_files") == 2
    assert ("version.publish", "digits/1", "done") in await desk.ground.actions()


async def test_a_file_named_twice_is_one_file(sqlite_desk: Desk) -> None:
    await sqlite_desk.publish_signed(sign_manifest(ROOT, manifest(contents=(WEIGHTS, WEIGHTS))))
    assert await sqlite_desk.ground.count("version_files") == 1


async def test_publishing_is_told_once(desk: Desk) -> None:
    before, generation = await desk.told(), (await desk.model()).generation
    await desk.publish(1)
    await desk.publish(1)
    assert await desk.told() == before + 1
    assert (await desk.model()).generation == generation + 1
    assert [action for action, _, _ in await desk.ground.actions()].count("version.publish") == 1


async def test_the_same_again_has_the_first_answer(sqlite_desk: Desk) -> None:
    (first,) = await sqlite_desk.publish(1)
    sqlite_desk.ground.clock.now_s += 60
    assert await sqlite_desk.publish(1) == [first]


async def test_a_version_never_changes(desk: Desk) -> None:
    (first,) = await desk.publish(1)
    with pytest.raises(VersionExists, match=first.digest):
        await desk.publish_signed(sign_manifest(ROOT, manifest(licence="another")))
    assert (await desk.get("1")).version == first


async def test_files_must_be_here_and_the_tenants_own(desk: Desk) -> None:
    await desk.store(b"theirs", "globex")
    for content in (b"never uploaded", b"theirs"):
        with desk.called_by(person("acme")), pytest.raises(FilesMissing, match=sha256_of(content)):
            await desk.publish_signed(sign_manifest(ROOT, manifest(contents=(WEIGHTS, content))))
    assert await desk.ground.count("versions") == 0
    await desk.publish_signed(sign_manifest(ROOT, manifest(contents=(WEIGHTS, b"theirs"))))


async def test_a_gateway_publishes_of_the_tenants_files_alone(sqlite_desk: Desk) -> None:
    await sqlite_desk.store(b"theirs", "globex")
    with sqlite_desk.called_by(node(Role.GATEWAY)), pytest.raises(FilesMissing):
        await sqlite_desk.publish_signed(sign_manifest(ROOT, manifest(contents=(b"theirs",))))


async def test_what_is_missing_is_listed_and_the_list_is_bounded(sqlite_desk: Desk) -> None:
    with pytest.raises(FilesMissing, match="and 5 more"):
        await sqlite_desk.publish_signed(sign_manifest(ROOT, manifest(contents=[b"%d" % each for each in range(15)])))


async def test_sizes_must_be_those_of_the_files(sqlite_desk: Desk) -> None:
    said = manifest()
    said.files[0].size_bytes += 1
    with pytest.raises(InvalidArgument, match=str(len(WEIGHTS))):
        await sqlite_desk.publish_signed(sign_manifest(ROOT, said))


@pytest.mark.parametrize("version", ["", "0", "01", "-1", "1.0", "one", "9" * 19, "１"])
async def test_a_version_is_a_positive_decimal_number(sqlite_desk: Desk, version: str) -> None:
    with pytest.raises(InvalidArgument, match="version"):
        await sqlite_desk.publish_signed(sign_manifest(ROOT, manifest(version=version)))


async def test_a_manifest_is_bounded_and_must_be_one(sqlite_desk: Desk) -> None:
    with pytest.raises(InvalidArgument, match=str(MAX_MANIFEST_BYTES)):
        await sqlite_desk.publish_signed(sign_manifest(ROOT, manifest(licence="x" * MAX_MANIFEST_BYTES)))
    with pytest.raises(InvalidArgument, match="no serialised"):
        await sqlite_desk.publish_signed(models_pb2.SignedManifest(manifest=b"\xff", ed25519_public_key=b"k" * 32))
    with pytest.raises(InvalidArgument, match="tenant"):
        await sqlite_desk.publish_signed(sign_manifest(ROOT, manifest(tenant="a\0b")))


async def test_the_model_must_exist_and_be_the_manifests_tenants(sqlite_desk: Desk) -> None:
    with pytest.raises(ModelUnknown):
        await sqlite_desk.publish(1, model="other")
    with pytest.raises(InvalidArgument, match="globex"):
        await sqlite_desk.publish(1, tenant="globex")
    assert await sqlite_desk.ground.count("versions") == 0


@pytest.mark.parametrize(
    ("who", "error"),
    [
        (person("acme", AccountRole.CALLER), ScopeRequired),
        (person("acme", AccountRole.AUDITOR), ScopeRequired),
        (person("acme", AccountRole.PUBLISHER, "letters"), ScopeRequired),
        (node(Role.WORKER), ScopeRequired),
        (node(Role.SCHEDULER), ScopeRequired),
    ],
    ids=["caller", "auditor", "key for another model", "worker", "scheduler"],
)
async def test_who_may_not_publish(sqlite_desk: Desk, who: Principal, error: type[Exception]) -> None:
    await sqlite_desk.publish(1)
    with sqlite_desk.called_by(who):
        with pytest.raises(error):
            await sqlite_desk.publish(2)
        with pytest.raises(error):
            await withdraw(sqlite_desk, 1)
    assert [version.version for version in (await sqlite_desk.model()).versions] == ["1"]
    assert not (await sqlite_desk.get("1")).version.withdrawn_at_ms


async def test_another_tenants_model_is_not_there(sqlite_desk: Desk) -> None:
    await sqlite_desk.publish(1)
    with sqlite_desk.called_by(person("globex")):
        with pytest.raises(OtherTenant):
            await sqlite_desk.publish(2)
        with pytest.raises(ModelUnknown) as hidden:
            await withdraw(sqlite_desk, 1)
        with pytest.raises(ModelUnknown) as unknown:
            await withdraw(sqlite_desk, 1, model="none")
    assert hidden.value.message.replace("digits", "none") == unknown.value.message
    assert not (await sqlite_desk.get("1")).version.withdrawn_at_ms


async def test_of_another_tenants_signers_nothing_is_told(sqlite_desk: Desk) -> None:
    """Not even that one was revoked, to whom has its public key."""
    await endorse(sqlite_desk, endorsement(KEY))
    await revoke(sqlite_desk, KEY)
    forged = sign_manifest(ROOT, manifest())
    forged.ed25519_public_key = bytes(KEY.verify_key)
    with sqlite_desk.called_by(person("globex")), pytest.raises(OtherTenant):
        await sqlite_desk.publish_signed(forged)


async def test_of_another_tenants_model_nothing_is_published_under_ones_own_name(sqlite_desk: Desk) -> None:
    await sqlite_desk.store(b"mine", "globex")
    with sqlite_desk.called_by(person("globex")), pytest.raises(ModelUnknown):
        await sqlite_desk.publish_signed(sign_manifest(ROOT, manifest(tenant="globex", contents=(b"mine",))))


async def test_those_who_may_publish_do(sqlite_desk: Desk) -> None:
    for number, who in enumerate((person("acme", AccountRole.OWNER), person("acme", AccountRole.PUBLISHER, "digits")), 1):
        with sqlite_desk.called_by(who):
            await sqlite_desk.publish(number)
    assert [version.version for version in (await sqlite_desk.model()).versions] == ["1", "2"]


@pytest.mark.parametrize("part", ["manifest", "signature", "ed25519_public_key"])
async def test_an_altered_manifest_is_refused_and_noted(sqlite_desk: Desk, part: str) -> None:
    signed = sign_manifest(ROOT, manifest())
    content = bytearray(getattr(signed, part))
    content[-1] ^= 1
    setattr(signed, part, bytes(content))
    with pytest.raises(ManifestRefused):
        await sqlite_desk.publish_signed(signed)
    assert ("version.publish", "refused") in [(action, outcome) for action, _, outcome in await sqlite_desk.ground.actions()]
    assert await sqlite_desk.ground.count("versions") == 0


async def test_a_stranger_is_refused_until_trusted(sqlite_desk: Desk) -> None:
    stranger = nacl.signing.SigningKey.generate()
    signed = sign_manifest(stranger, manifest())
    with pytest.raises(ManifestRefused, match="not trusted"):
        await sqlite_desk.publish_signed(signed)
    sqlite_desk.roots.add(bytes(stranger.verify_key))
    await sqlite_desk.publish_signed(signed)


async def test_a_withdrawn_version_is_for_its_owner_to_look_at_alone(desk: Desk) -> None:
    (first, second) = await desk.publish(1, 2)
    withdrawn = await withdraw(desk, 2)
    assert (withdrawn.digest, withdrawn.withdrawn_because) == (second.digest, "it lies")
    assert withdrawn.withdrawn_at_ms == int(desk.ground.clock.now_s * 1000)
    assert await desk.number() == "1", "the newest that is left"
    assert (await desk.get("2")).version == withdrawn
    with desk.called_by(node(Role.WORKER)):
        for asked in ({"version": "2"}, {"digest": second.digest, "model": ""}):
            with pytest.raises(VersionWithdrawn, match="it lies"):
                await desk.get(**asked)
        assert (await desk.get("1")).version == first
    await withdraw(desk, 1)
    with pytest.raises(VersionWithdrawn, match="every version"):
        await desk.get()


async def test_withdrawing_again_changes_nothing(sqlite_desk: Desk) -> None:
    await sqlite_desk.publish(1)
    first = await withdraw(sqlite_desk, 1)
    before = (await sqlite_desk.told(), await sqlite_desk.ground.count("audit"))
    sqlite_desk.ground.clock.now_s += 60
    assert await withdraw(sqlite_desk, 1, "again") == first
    assert (await sqlite_desk.told(), await sqlite_desk.ground.count("audit")) == before


async def test_a_withdrawn_number_stays_taken(sqlite_desk: Desk) -> None:
    await sqlite_desk.publish(1)
    await withdraw(sqlite_desk, 1)
    assert (await sqlite_desk.publish(1))[0].withdrawn_at_ms, "the same has the same answer"
    with pytest.raises(VersionExists):
        await sqlite_desk.publish_signed(sign_manifest(ROOT, manifest(licence="another")))


async def test_only_what_there_is_is_withdrawn(sqlite_desk: Desk) -> None:
    with pytest.raises(VersionUnknown):
        await withdraw(sqlite_desk, 7)
    for request in (
        models_pb2.WithdrawVersionRequest(model="digits", version="stable"),
        models_pb2.WithdrawVersionRequest(model="digits", version="1", reason="x" * 501),
        models_pb2.WithdrawVersionRequest(model="digits", version="1", reason="a\0b"),
    ):
        with pytest.raises(InvalidArgument):
            await sqlite_desk.servicer.WithdrawVersion(request, NOWHERE)


async def test_a_row_that_was_altered_is_not_handed_out(desk: Desk) -> None:
    (published,) = await desk.publish(1)
    await withdraw(desk, 1)
    await desk.ground.execute("UPDATE versions SET withdrawn_at_ms = 0")
    for asking in (desk.get("1"), desk.get(), desk.get(model="", digest=published.digest), desk.publish(1)):
        with pytest.raises(RowAltered):
            await asking
    (model,) = await desk.models()
    assert not model.versions


async def test_of_many_files_all_are_checked(sqlite_desk: Desk) -> None:
    contents = [b"%d" % number for number in range(1_100)]
    await sqlite_desk.store_all(contents, "acme")
    signed = sign_manifest(ROOT, manifest(contents=contents))
    await sqlite_desk.publish_signed(signed)
    assert await sqlite_desk.ground.count("version_files") == 1_100
