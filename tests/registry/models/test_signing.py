"""Signers: endorsed by a root for a tenant and its models, until they are revoked or their time is over."""

from __future__ import annotations

import nacl.signing
import pytest
from penstock.registry.v1 import models_pb2

from registry.access.types import AccountRole, OtherTenant, ScopeRequired
from registry.models.types import SignerChanged, SignerRefused, SignerUnknown
from registry.seals import RowAltered
from runtime.errors import InvalidArgument, NotFound
from runtime.identity import Role, node_id_of
from runtime.manifests import ManifestRefused, sign_manifest, verify_manifest
from tests.registry.models.rig import NOWHERE, ROOT, Desk, endorse, endorsement, manifest, node, person, revoke

KEY = nacl.signing.SigningKey(b"k" * 32)
KEY_ID = node_id_of(bytes(KEY.verify_key))


async def listed(desk: Desk, tenant: str = "") -> list[models_pb2.Signer]:
    return list((await desk.servicer.ListSigners(models_pb2.ListSignersRequest(tenant=tenant), NOWHERE)).signers)


async def test_an_endorsed_key_signs_and_consumers_believe_it(desk: Desk) -> None:
    given = endorsement(KEY, models=("dig*",))
    signer = await endorse(desk, given)
    assert (signer.signer_id, signer.tenant, list(signer.models)) == (KEY_ID, "acme", ["dig*"])
    assert signer.ed25519_public_key == bytes(KEY.verify_key)
    assert signer.endorsed_by == node_id_of(bytes(ROOT.verify_key))
    assert await listed(desk) == [signer]
    with desk.called_by(person("acme")):
        published = await desk.publish_signed(sign_manifest(KEY, manifest()))
    assert published.signer_id == KEY_ID
    with desk.called_by(node(Role.WORKER, "acme")):
        found = await desk.get("1")
    assert found.endorsement == given
    assert verify_manifest(found.manifest, desk.roots, found.endorsement, now_ms=1).digest == published.digest


async def test_a_key_signs_what_it_was_endorsed_for_alone(sqlite_desk: Desk) -> None:
    await endorse(sqlite_desk, endorsement(KEY, models=("letters*",)))
    await sqlite_desk.create("letters")
    await sqlite_desk.create("theirs", "globex")
    for model, tenant in (("digits", "acme"), ("theirs", "globex"), ("letters", "globex")):
        with pytest.raises(ManifestRefused):
            await sqlite_desk.publish_signed(sign_manifest(KEY, manifest(model, tenant)))
    await sqlite_desk.publish_signed(sign_manifest(KEY, manifest("letters")))


async def test_time_ends_an_endorsement(sqlite_desk: Desk) -> None:
    now_ms = int(sqlite_desk.ground.clock.now_s * 1000)
    await endorse(sqlite_desk, endorsement(KEY, expires_at_ms=now_ms + 1000))
    await sqlite_desk.publish_signed(sign_manifest(KEY, manifest()))
    sqlite_desk.ground.clock.now_s += 1
    with pytest.raises(ManifestRefused, match="expired"):
        await sqlite_desk.publish_signed(sign_manifest(KEY, manifest(version="2")))
    with pytest.raises(InvalidArgument, match="expired"):
        await endorse(sqlite_desk, endorsement(KEY, expires_at_ms=now_ms + 1000, at_ms=2))


async def test_a_revoked_key_signs_no_more_and_every_model_is_told(desk: Desk) -> None:
    await desk.create("letters")
    await desk.create("theirs", "globex")
    await endorse(desk, endorsement(KEY))
    await desk.publish_signed(sign_manifest(KEY, manifest()))
    generations = {model.model: model.generation for model in await desk.models()}
    told = await desk.told()
    revoked = await revoke(desk, KEY)
    assert revoked.revoked_at_ms == int(desk.ground.clock.now_s * 1000)
    assert await listed(desk) == [revoked]
    assert await desk.told() == told + 2
    grown = {model.model: model.generation - generations[model.model] for model in await desk.models()}
    assert grown == {"digits": 1, "letters": 1, "theirs": 0}
    with pytest.raises(ManifestRefused, match="revoked"):
        await desk.publish_signed(sign_manifest(KEY, manifest(version="2")))
    assert await desk.number("1") == "1", "what it signed stays"
    with desk.called_by(node(Role.WORKER)), pytest.raises(ManifestRefused, match="revoked"):
        await desk.get("1")
    assert await revoke(desk, KEY) == revoked
    assert await desk.told() == told + 2


async def test_what_was_taken_away_does_not_come_back(desk: Desk) -> None:
    wide, narrow = endorsement(KEY, at_ms=1), endorsement(KEY, models=("letters",), at_ms=2)
    await endorse(desk, wide)
    assert (await endorse(desk, wide)).endorsed_at_ms == 1, "the same again has the same answer"
    await endorse(desk, narrow)
    with pytest.raises(SignerRefused, match="newer"):
        await endorse(desk, wide)
    with pytest.raises(ManifestRefused):
        await desk.publish_signed(sign_manifest(KEY, manifest()))
    await revoke(desk, KEY)
    for again in (narrow, endorsement(KEY, at_ms=3)):
        with pytest.raises(SignerRefused, match="revoked"):
            await endorse(desk, again)


async def test_a_key_is_endorsed_for_each_tenant_by_itself(desk: Desk) -> None:
    await endorse(desk, endorsement(KEY, "acme"))
    await endorse(desk, endorsement(KEY, "globex"))
    await revoke(desk, KEY, "globex")
    await desk.publish_signed(sign_manifest(KEY, manifest()))
    assert [(signer.tenant, bool(signer.revoked_at_ms)) for signer in await listed(desk)] == [
        ("acme", False),
        ("globex", True),
    ]
    with desk.called_by(person("acme", AccountRole.OWNER)):
        assert [signer.tenant for signer in await listed(desk)] == ["acme"]
        with pytest.raises(OtherTenant):
            await listed(desk, "globex")


async def test_a_root_that_was_revoked_as_a_signer_publishes_no_more(sqlite_desk: Desk) -> None:
    await endorse(sqlite_desk, endorsement(ROOT))
    await revoke(sqlite_desk, ROOT)
    with pytest.raises(ManifestRefused, match="revoked"):
        await sqlite_desk.publish(1)


async def test_only_roots_endorse(sqlite_desk: Desk) -> None:
    stranger = nacl.signing.SigningKey.generate()
    with pytest.raises(ManifestRefused, match="not trusted"):
        await endorse(sqlite_desk, endorsement(KEY, by=stranger))
    altered = endorsement(KEY)
    altered.endorsement += b"\x00"
    with pytest.raises(ManifestRefused, match="altered"):
        await endorse(sqlite_desk, altered)
    assert [action for action in await sqlite_desk.ground.actions() if action[2] == "refused"] == [
        ("signer.endorse", node_id_of(bytes(stranger.verify_key)), "refused"),
        ("signer.endorse", node_id_of(bytes(ROOT.verify_key)), "refused"),
    ]
    assert await listed(sqlite_desk) == []


async def test_an_endorsement_that_makes_no_sense_is_refused(sqlite_desk: Desk) -> None:
    for wrong in (
        endorsement(KEY, models=()),
        endorsement(KEY, models=[f"m{n}" for n in range(101)]),
        endorsement(KEY, models=["x" * 129]),
        endorsement(KEY, tenant=""),
        endorsement(KEY, models=["x" * 70_000]),
    ):
        with pytest.raises(InvalidArgument):
            await endorse(sqlite_desk, wrong)
    with pytest.raises(NotFound, match="initech"):
        await endorse(sqlite_desk, endorsement(KEY, tenant="initech"))


async def test_what_is_not_there_is_not_revoked(sqlite_desk: Desk) -> None:
    with pytest.raises(SignerUnknown):
        await revoke(sqlite_desk, KEY)
    for request in (
        models_pb2.RevokeSignerRequest(signer_id="x\0", tenant="acme"),
        models_pb2.RevokeSignerRequest(signer_id=KEY_ID, tenant="a\0"),
    ):
        with pytest.raises(InvalidArgument):
            await sqlite_desk.servicer.RevokeSigner(request, NOWHERE)


async def test_only_operators_say_who_signs(sqlite_desk: Desk) -> None:
    for who in (person("acme", AccountRole.OWNER), node(Role.GATEWAY), node(Role.WORKER)):
        with sqlite_desk.called_by(who):
            for attempt in (endorse(sqlite_desk, endorsement(KEY)), revoke(sqlite_desk, KEY)):
                with pytest.raises(ScopeRequired, match="signers:write"):
                    await attempt


@pytest.mark.parametrize("change", ["revoked_at_ms = 0", "tenant = 'globex'", "expires_at_ms = 9"])
async def test_an_altered_signer_is_not_believed(sqlite_desk: Desk, change: str) -> None:
    await endorse(sqlite_desk, endorsement(KEY))
    await sqlite_desk.publish_signed(sign_manifest(KEY, manifest()))
    await revoke(sqlite_desk, KEY)
    await sqlite_desk.ground.execute(f"UPDATE signers SET {change}")
    with pytest.raises(RowAltered, match="signers"):
        await listed(sqlite_desk)
    if "tenant" not in change:
        with pytest.raises(RowAltered, match="signers"):
            await sqlite_desk.publish_signed(sign_manifest(KEY, manifest(version="2")))
        with pytest.raises(RowAltered, match="signers"):
            await sqlite_desk.get("1")


@pytest.mark.parametrize("change", ["revoked", "endorsed anew", "a root revoked"])
async def test_a_signer_that_changes_while_it_publishes_is_refused(sqlite_desk: Desk, change: str) -> None:
    """Between the signature's check and the version's row."""
    key = ROOT if change == "a root revoked" else KEY
    await endorse(sqlite_desk, endorsement(key))
    believed = await sqlite_desk.servicer._verified(sqlite_desk.door.principal, sign_manifest(key, manifest()))
    if change == "endorsed anew":
        await endorse(sqlite_desk, endorsement(KEY, models=("letters",), at_ms=2))
    else:
        await revoke(sqlite_desk, key)
    with pytest.raises(SignerChanged):
        await sqlite_desk.servicer._publishing.publish(sqlite_desk.door.principal, believed)
    assert await sqlite_desk.ground.count("versions") == 0
