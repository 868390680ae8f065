"""The trail over the wire: who sees what, pages, incidents, refusals, and entries that were altered."""

from __future__ import annotations

import asyncio

import pytest
from penstock.registry.v1 import accounts_pb2, audit_pb2

from registry.access.types import ActorKind, OtherTenant, ScopeRequired
from registry.audit.bounded import BURST, BoundedTrail
from registry.audit.sql import ALTERED
from registry.audit.types import AuditNote, AuditOutcome, IncidentsTooMany
from registry.schema import audit
from runtime.errors import InvalidArgument
from runtime.identity import Role
from runtime.ids import TenantId
from tests.registry.accounts.rig import Office, bearing
from tests.registry.harness import Ground, refusal

EVERYTHING = audit_pb2.ListEntriesRequest()


async def note(ground: Ground, action: str, subject: str, tenant: str = "", actor: str = "op", **more: str) -> None:
    await ground.trail.note(AuditNote(ActorKind.NODE, actor, action, subject, TenantId(tenant), **more))  # type: ignore[arg-type]


async def listed(office: Office, **asked: object) -> list[tuple[str, str]]:
    answer = await (await office.audit()).ListEntries(audit_pb2.ListEntriesRequest(**asked))  # type: ignore[arg-type]
    return [(entry.action, entry.subject) for entry in answer.entries]


async def test_an_entry_tells_all_there_is(office: Office) -> None:
    await (await office.accounts()).CreateTenant(
        accounts_pb2.CreateTenantRequest(tenant="initech"), metadata=(("x-request-id", "req-1"),)
    )
    (entry,) = (await (await office.audit()).ListEntries(EVERYTHING)).entries
    operator = office.identities[Role.OPERATOR].node_id
    assert (entry.actor_kind, entry.actor_id, entry.tenant) == ("node", operator, "initech")
    assert (entry.action, entry.subject, entry.outcome, entry.request_id) == ("tenant.create", "initech", "done", "req-1")
    assert entry.at_ms == int(office.ground.clock.now_s * 1000)


async def test_entries_are_found_by_what_is_asked(office: Office) -> None:
    ground = office.ground
    await note(ground, "key.create", "k1", "acme", "ann")
    await note(ground, "key.revoke", "k1", "globex", "bob")
    await note(ground, "keys%", "k2", "acme", "ann")
    await note(ground, "KEY.create", "k3")
    assert await listed(office) == [("KEY.create", "k3"), ("keys%", "k2"), ("key.revoke", "k1"), ("key.create", "k1")]
    assert await listed(office, action="key.") == [("key.revoke", "k1"), ("key.create", "k1")]
    assert await listed(office, action="key.create") == [("key.create", "k1")]
    assert await listed(office, action="%") == await listed(office, action="key_") == []
    assert await listed(office, actor_id="ann", tenant="acme") == [("keys%", "k2"), ("key.create", "k1")]
    assert await listed(office, subject="k1") == [("key.revoke", "k1"), ("key.create", "k1")]
    assert await listed(office, tenant="nobody") == []


async def test_pages_join_without_a_gap_or_a_repeat(office: Office) -> None:
    for number in range(25):
        await note(office.ground, "x", str(number))
    stub, found, before = await office.audit(), list[str](), 0
    while True:
        page = (await stub.ListEntries(audit_pb2.ListEntriesRequest(limit=10, before=before))).entries
        if not page:
            break
        found += [entry.subject for entry in page]
        before = page[-1].entry
        await note(office.ground, "x", "meanwhile")
    assert found == [str(number) for number in reversed(range(25))]


async def test_what_cannot_be_asked_is_refused(office: Office) -> None:
    asked = audit_pb2.ListEntriesRequest
    for request in (
        asked(limit=1001),
        asked(before=2**63),
        asked(action="a\0"),
        asked(subject="x" * 257),
        asked(tenant="\n"),
    ):
        assert isinstance(await refusal((await office.audit()).ListEntries(request)), InvalidArgument)


async def test_a_tenant_sees_its_own_entries_alone(office: Office) -> None:
    auditor = bearing((await office.key(role="auditor")).secret)
    caller = bearing((await office.key()).secret)
    await note(office.ground, "theirs", "1", "globex")
    await note(office.ground, "the mesh's", "2")
    await note(office.ground, "ours", "3", "acme")
    stub = await office.public_audit()
    seen = (await stub.ListEntries(EVERYTHING, metadata=auditor)).entries
    assert {entry.tenant for entry in seen} == {"acme"}
    assert seen[0].action == "ours"
    theirs = audit_pb2.ListEntriesRequest(tenant="globex")
    assert isinstance(await refusal(stub.ListEntries(theirs, metadata=auditor)), OtherTenant)
    assert isinstance(await refusal(stub.ListEntries(EVERYTHING, metadata=caller)), ScopeRequired)
    assert isinstance(await refusal((await office.audit(Role.WORKER)).ListEntries(EVERYTHING)), ScopeRequired)


async def test_an_altered_entry_is_shown_as_such_and_the_others_as_they_are(office: Office) -> None:
    await note(office.ground, "before", "1")
    await note(office.ground, "key.revoke", "2", actor="mallory")
    await note(office.ground, "after", "3")
    await office.ground.execute("UPDATE audit SET actor_id = 'alice' WHERE subject = '2'")
    entries = (await (await office.audit()).ListEntries(EVERYTHING)).entries
    assert [(entry.action, entry.outcome, entry.detail) for entry in entries] == [
        ("after", "done", ""),
        ("key.revoke", "failed", ALTERED),
        ("before", "done", ""),
    ]
    (found,) = (await (await office.audit()).ListEntries(audit_pb2.ListEntriesRequest(action="tampering"))).entries
    assert (found.outcome, found.subject) == ("failed", f"row {entries[1].entry} of audit")


@pytest.mark.parametrize("column", [column.name for column in audit.columns if column.name not in ("entry", "seal")])
async def test_no_part_of_an_entry_can_be_altered_unnoticed(sqlite_office: Office, column: str) -> None:
    await note(sqlite_office.ground, "x", "1")
    await sqlite_office.ground.execute(f"UPDATE audit SET {column} = '7'")
    (entry,) = (await (await sqlite_office.audit()).ListEntries(EVERYTHING)).entries
    assert entry.detail == ALTERED


async def test_a_node_tells_what_it_was_given(office: Office) -> None:
    request = audit_pb2.ReportIncidentRequest(reason="MANIFEST_REFUSED", subject="digits/3", detail="bit\0" + "x" * 5000)
    await (await office.audit(Role.WORKER)).ReportIncident(request)
    (entry,) = (await (await office.audit()).ListEntries(EVERYTHING)).entries
    worker = office.identities[Role.WORKER].node_id
    assert (entry.actor_kind, entry.actor_id, entry.tenant) == ("node", worker, "")
    assert (entry.action, entry.subject, entry.outcome) == ("incident.manifest_refused", "digits/3", "failed")
    assert len(entry.detail) == 500
    assert entry.detail.startswith("bit\ufffdx")


@pytest.mark.parametrize("reason", ["", "lower", "A B", "X" * 65, "A\0"])
async def test_an_incident_has_a_reason(sqlite_office: Office, reason: str) -> None:
    request = audit_pb2.ReportIncidentRequest(reason=reason)
    assert isinstance(await refusal((await sqlite_office.audit(Role.WORKER)).ReportIncident(request)), InvalidArgument)


async def test_a_node_cannot_fill_the_trail(sqlite_office: Office) -> None:
    worker = await sqlite_office.audit(Role.WORKER)
    request = audit_pb2.ReportIncidentRequest(reason="X")
    for _ in range(20):
        await worker.ReportIncident(request)
    refused = await refusal(worker.ReportIncident(request))
    assert isinstance(refused, IncidentsTooMany)
    assert refused.retry_after_s == pytest.approx(10)
    await (await sqlite_office.audit(Role.SCHEDULER)).ReportIncident(request)
    sqlite_office.ground.clock.now_s += 10
    await worker.ReportIncident(request)
    assert await sqlite_office.ground.count("audit") == 22


async def test_people_report_no_incidents(sqlite_office: Office) -> None:
    owner = await sqlite_office.key(role="owner")
    stub = await sqlite_office.public_audit()
    request = audit_pb2.ReportIncidentRequest(reason="X")
    assert isinstance(await refusal(stub.ReportIncident(request, metadata=bearing(owner.secret))), ScopeRequired)


async def test_rights_that_were_lacking_are_written_down_before_the_caller_is_told(office: Office) -> None:
    caller, public = await office.key(), await office.public()
    theirs = (await office.key(tenant="globex")).key.key_id
    owner = await office.key(role="owner")
    before = len(await office.ground.actions())
    as_caller, as_owner = bearing(caller.secret), bearing(owner.secret)
    for call in (
        public.CreateKey(accounts_pb2.CreateKeyRequest(name="x", role="owner"), metadata=as_caller),
        public.RevokeKey(accounts_pb2.RevokeKeyRequest(key_id=theirs), metadata=as_owner),
        public.CreateTenant(accounts_pb2.CreateTenantRequest(tenant="x"), metadata=as_owner),
        public.ListKeys(accounts_pb2.ListKeysRequest(), metadata=as_caller),
    ):
        await refusal(call)
    entries = (await office.ground.actions())[before:]
    refused = [("key.create", "x", "refused"), ("key.revoke", theirs, "refused"), ("tenant.create", "x", "refused")]
    assert sorted(entries) == refused, "and that of listing is not: it would have changed nothing"
    (revoke,) = (
        await (await office.audit()).ListEntries(audit_pb2.ListEntriesRequest(subject=theirs, action="key.revoke"))
    ).entries
    assert (revoke.actor_kind, revoke.actor_id) == ("key", owner.key.key_id)
    assert revoke.tenant == "", "acme was told that there is no such key; globex's is for operators to read of"
    assert revoke.detail.startswith("OTHER_TENANT: ")


async def test_nobody_fills_the_trail_with_refusals(sqlite_office: Office) -> None:
    caller, public = await sqlite_office.key(), await sqlite_office.public()
    request = accounts_pb2.CreateKeyRequest(name="x", role="owner")
    before = await sqlite_office.ground.count("audit")
    for _ in range(BURST + 5):
        assert isinstance(await refusal(public.CreateKey(request, metadata=bearing(caller.secret))), ScopeRequired)
    assert await sqlite_office.ground.count("audit") == before + BURST
    other = await sqlite_office.accounts(Role.WORKER)
    await refusal(other.CreateKey(request))
    assert await sqlite_office.ground.count("audit") == before + BURST + 1, "each actor has its own share"
    sqlite_office.ground.clock.now_s += 30
    await refusal(public.CreateKey(request, metadata=bearing(caller.secret)))
    (last,) = (await (await sqlite_office.audit()).ListEntries(audit_pb2.ListEntriesRequest(limit=1))).entries
    assert last.detail.startswith("5 more before this one were not written down; SCOPE_REQUIRED: ")


async def test_a_note_that_cannot_be_written_fails_nothing(sqlite_ground: Ground) -> None:
    bounded = BoundedTrail(sqlite_ground.trail, sqlite_ground.clock)
    await sqlite_ground.execute("DROP TABLE audit")
    await bounded.note(AuditNote(ActorKind.NOBODY, "", "login", "", outcome=AuditOutcome.REFUSED))


async def test_entries_written_at_once_are_all_there(ground: Ground) -> None:
    await asyncio.gather(*(note(ground, "x", str(number)) for number in range(20)))
    assert sorted(int(subject) for _, subject, _ in await ground.actions()) == list(range(20))
