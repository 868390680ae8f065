"""Limits over the wire, on both databases: set, replaced, listed, lifted; what keys are resolved with; what rotation keeps."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest
from penstock.registry.v1 import accounts_pb2, limits_pb2
from sqlalchemy import select, update

from registry.access.tokens import token_sha256
from registry.schema import limit_changes, limits, models, outbox
from registry.seals import insert_sealed
from runtime.errors import Code
from runtime.identity import Role
from tests.registry.accounts.rig import Metadata, Office, bearing
from tests.registry.harness import refusal


async def put(office: Office, *, metadata: Metadata = (), **fields: Any) -> limits_pb2.Limit:
    """By an operator, or by whoever bears that."""
    stub = await (office.public_limits() if metadata else office.limits())
    wanted = limits_pb2.Limit(**({"requests_per_s": 5} | fields))
    return (await stub.SetLimit(limits_pb2.SetLimitRequest(limit=wanted), metadata=metadata)).limit


async def listed(office: Office, tenant: str = "", metadata: Metadata = ()) -> list[limits_pb2.Limit]:
    stub = await (office.public_limits() if metadata else office.limits())
    return list((await stub.ListLimits(limits_pb2.ListLimitsRequest(tenant=tenant), metadata=metadata)).limits)


async def remove(office: Office, limit_id: str, metadata: Metadata = ()) -> None:
    stub = await (office.public_limits() if metadata else office.limits())
    await stub.DeleteLimit(limits_pb2.DeleteLimitRequest(limit_id=limit_id), metadata=metadata)


async def resolved(office: Office, secret: str) -> set[str]:
    """Ids of the limits that a gateway is told of."""
    request = accounts_pb2.ResolveKeyRequest(secret_sha256=token_sha256(secret))
    return {limit.limit_id for limit in (await (await office.accounts(Role.GATEWAY)).ResolveKey(request)).limits}


async def owner(office: Office, tenant: str = "acme", **fields: Any) -> Metadata:
    return bearing((await office.key(role="owner", tenant=tenant, **fields)).secret)


async def waiting(office: Office) -> list[str]:
    """Kinds of what the mesh is still to be told."""
    async with office.ground.database.reading() as connection:
        return [row.kind for row in await connection.execute(select(outbox).order_by(outbox.c.notice))]


async def test_a_limits_life(office: Office) -> None:
    made = await put(office, tenant="acme", model="sums", burst=9, tokens_per_day=5_000_000, when_unsure="WHEN_UNSURE_REFUSE")
    assert (made.requests_per_s, made.burst, made.tokens_per_day, made.by_operator) == (5, 9, 5_000_000, True)
    assert await listed(office) == [made]
    again = await put(office, tenant="acme", model="sums", concurrent_requests=3, requests_per_s=0)
    assert again.limit_id == made.limit_id, "the same subject"
    assert again.generation > made.generation
    assert (again.tokens_per_day, again.when_unsure) == (0, limits_pb2.WHEN_UNSURE_UNSPECIFIED), "replaced whole"
    assert await listed(office, "acme") == [again]
    await remove(office, made.limit_id)
    assert await listed(office) == []
    gone = await refusal(remove(office, made.limit_id))
    assert (gone.code, gone.reason) == (Code.NOT_FOUND, "LIMIT_UNKNOWN")
    actions = [entry for entry in await office.ground.actions() if entry[0].startswith("limit.")]
    assert actions == [
        ("limit.set", made.limit_id, "done"),
        ("limit.set", made.limit_id, "done"),
        ("limit.delete", made.limit_id, "done"),
    ]
    assert await waiting(office) == ["limit"] * 3


async def test_what_is_set_as_it_is_changes_nothing(sqlite_office: Office) -> None:
    first = await put(sqlite_office, tenant="acme")
    assert await put(sqlite_office, tenant="acme", limit_id=first.limit_id, generation=99) == first
    assert await waiting(sqlite_office) == ["limit"]


async def test_the_generation_grows_whatever_the_clock_does(office: Office) -> None:
    office.ground.clock.now_s += 1000
    first = await put(office, tenant="acme")
    office.ground.clock.now_s -= 1000
    second = await put(office, tenant="globex")
    office.ground.clock.now_s += 2000
    third = await put(office, tenant="default")
    await remove(office, third.limit_id)
    async with office.ground.database.reading() as connection:
        last = (await connection.execute(select(limit_changes.c.generation))).scalar_one()
    generations = [first.generation, second.generation, third.generation, last]
    assert generations == sorted(set(generations))


async def test_those_who_set_at_once_are_one_after_the_other(office: Office) -> None:
    """The first ones ever too: who was overtaken is told to try again."""

    async def tried(model: str) -> limits_pb2.Limit:
        for _ in range(20):
            try:
                return await put(office, tenant="acme", model=model)
            except grpc.aio.AioRpcError as failure:
                assert failure.code() is grpc.StatusCode.ABORTED, failure.details()
        raise AssertionError("never its turn")

    made = await asyncio.gather(*(tried(f"m{number}") for number in range(8)))
    assert len({limit.generation for limit in made}) == 8
    assert len(await listed(office)) == 8


async def test_a_key_is_resolved_with_all_it_may_fall_under_and_nothing_of_others(office: Office) -> None:
    mine, other = await office.key(), await office.key()
    foreign = await office.key(tenant="globex")
    subjects: list[dict[str, Any]] = [
        {},
        {"model": "sums"},
        {"scope": "LIMIT_SCOPE_EACH_TENANT"},
        {"scope": "LIMIT_SCOPE_EACH_KEY", "model": "sums"},
        {"tenant": "acme"},
        {"tenant": "acme", "scope": "LIMIT_SCOPE_EACH_KEY"},
        {"tenant": "acme", "model": "digits"},
        {"key_id": mine.key.key_id},
        {"key_id": mine.key.key_id, "model": "sums", "tenant": "acme"},
    ]
    on_mine = {(await put(office, **subject)).limit_id for subject in subjects}
    by_owner = (await put(office, metadata=await owner(office), tenant="acme")).limit_id
    assert by_owner not in on_mine, "an operator's and an owner's stand beside each other"
    on_mine.add(by_owner)
    on_other = (await put(office, key_id=other.key.key_id)).limit_id
    on_globex = (await put(office, tenant="globex")).limit_id
    assert await resolved(office, mine.secret) == on_mine
    assert on_other in await resolved(office, other.secret)
    assert on_globex in await resolved(office, foreign.secret)
    assert len(await resolved(office, foreign.secret)) == 5, "four on everybody and its own"


async def test_a_keys_tenant_is_the_registrys_to_know(office: Office) -> None:
    key = (await office.key()).key
    made = await put(office, key_id=key.key_id)
    assert made.tenant == "acme"
    assert (await put(office, key_id=key.key_id, tenant="acme", burst=7)).limit_id == made.limit_id
    wrong = await refusal(put(office, key_id=key.key_id, tenant="globex"))
    assert (wrong.code, "tenant acme's" in wrong.message) == (Code.INVALID_ARGUMENT, True)


@pytest.mark.parametrize(
    ("fields", "code", "says"),
    [
        ({"tenant": "initech"}, Code.NOT_FOUND, "no tenant initech"),
        ({"key_id": "0" * 16}, Code.NOT_FOUND, "no live key"),
        ({"tenant": "acme", "requests_per_s": 0}, Code.INVALID_ARGUMENT, "limits nothing"),
        ({"scope": 7}, Code.INVALID_ARGUMENT, "scope 7: one of LIMIT_SCOPE_UNSPECIFIED"),
        ({"when_unsure": 9}, Code.INVALID_ARGUMENT, "when_unsure 9: one of WHEN_UNSURE_UNSPECIFIED"),
        ({"tenant": "acme", "limit_id": "f" * 16}, Code.INVALID_ARGUMENT, "leave it empty"),
    ],
)
async def test_what_cannot_be_set_is_said(sqlite_office: Office, fields: dict[str, Any], code: Code, says: str) -> None:
    error = await refusal(put(sqlite_office, **fields))
    assert error.code is code
    assert says in error.message
    assert await listed(sqlite_office) == []


async def test_a_request_without_a_limit(sqlite_office: Office) -> None:
    error = await refusal((await sqlite_office.limits()).SetLimit(limits_pb2.SetLimitRequest()))
    assert (error.code, "has no limit" in error.message) == (Code.INVALID_ARGUMENT, True)


async def test_a_revoked_key_cannot_be_limited(sqlite_office: Office) -> None:
    key = (await sqlite_office.key()).key
    await (await sqlite_office.accounts()).RevokeKey(accounts_pb2.RevokeKeyRequest(key_id=key.key_id))
    assert (await refusal(put(sqlite_office, key_id=key.key_id))).reason == "LIMIT_SUBJECT_UNKNOWN"


async def test_an_owner_cannot_lift_what_an_operator_set(sqlite_office: Office) -> None:
    office, ann = sqlite_office, await owner(sqlite_office)
    operators = await put(office, tenant="acme", requests_per_s=1)
    everybodys = await put(office, requests_per_s=2)
    owners = await put(office, metadata=ann, tenant="acme", requests_per_s=100)
    assert (owners.by_operator, operators.by_operator) == (False, True)
    for limit in (operators, everybodys):
        assert (await refusal(remove(office, limit.limit_id, ann))).reason == "OPERATORS_ALONE"
    claimed = {"tenant": "acme", "limit_id": operators.limit_id, "by_operator": True}
    assert (await refusal(put(office, metadata=ann, **claimed))).code is Code.INVALID_ARGUMENT
    assert (await refusal(put(office, metadata=ann))).reason == "OPERATORS_ALONE", "on everybody"
    assert {limit.limit_id for limit in await listed(office, metadata=ann)} == {
        limit.limit_id for limit in (operators, everybodys, owners)
    }
    assert [limit.limit_id for limit in await listed(office) if limit.tenant == "acme" and limit.requests_per_s == 1]
    await remove(office, owners.limit_id, ann)
    refused = [entry for entry in await office.ground.actions() if entry[2] == "refused"]
    assert ("limit.delete", operators.limit_id, "refused") in refused
    assert ("limit.set", "", "refused") in refused


async def test_a_limit_on_everybody_names_no_model_that_is_not_there_for_a_tenant(office: Office) -> None:
    async with office.ground.database.writing() as connection:
        for model, shared_with in (("plans", []), ("sums", ["*"])):
            row = {"model": model, "tenant": "globex", "description": "", "shared_with": shared_with, "created_at_ms": 1}
            await insert_sealed(connection, office.ground.seals, models, row | {"generation": 1})
    hidden, shown = await put(office, model="plans"), await put(office, model="sums")
    ann = await owner(office)
    assert [limit.model for limit in await listed(office, metadata=ann)] == ["sums"]
    assert (await refusal(remove(office, hidden.limit_id, ann))).reason == "LIMIT_UNKNOWN"
    assert (await refusal(remove(office, shown.limit_id, ann))).reason == "OPERATORS_ALONE"
    assert [limit.model for limit in await listed(office, metadata=await owner(office, "globex"))] == ["plans", "sums"]
    async with office.ground.database.writing() as connection:
        await connection.execute(update(models).where(models.c.model == "plans").values(description="altered"))
    assert [limit.model for limit in await listed(office, metadata=ann)] == ["sums"], "an altered row is named to nobody"


async def test_an_owners_key_for_some_models_limits_those_alone(sqlite_office: Office) -> None:
    lesser = await owner(sqlite_office, allowed_models=["letters"])
    whole = await put(sqlite_office, metadata=await owner(sqlite_office), tenant="acme")
    for refused in (
        put(sqlite_office, metadata=lesser, tenant="acme"),
        put(sqlite_office, metadata=lesser, tenant="acme", model="digits"),
        remove(sqlite_office, whole.limit_id, lesser),
    ):
        assert (await refusal(refused)).reason == "MORE_THAN_OWN"
    assert (await put(sqlite_office, metadata=lesser, tenant="acme", model="letters")).model == "letters"


@pytest.mark.parametrize("overlap_s", [0, 600])
async def test_a_rotated_key_is_limited_as_the_old_one_was(office: Office, overlap_s: int) -> None:
    old = await office.key()
    await put(office, key_id=old.key.key_id, tokens_per_min=1000)
    await put(office, metadata=await owner(office), key_id=old.key.key_id, model="sums")
    request = accounts_pb2.RotateKeyRequest(key_id=old.key.key_id, overlap_s=overlap_s)
    new = await (await office.accounts()).RotateKey(request)
    assert (await waiting(office))[-1] == "limit"
    found = await listed(office, "acme")
    said = {(limit.model, limit.tokens_per_min, limit.by_operator) for limit in found if limit.key_id == new.key.key_id}
    assert said == {("", 1000, True), ("sums", 0, False)}
    assert len(await resolved(office, new.secret)) == 2
    assert len(found) == (4 if overlap_s else 2), "those on the old key go with it"
    office.ground.clock.now_s += 601
    await put(office, tenant="globex")
    assert len(await listed(office, "acme")) == 2, "once it has ended"


async def test_bounds_are_kept_for_each_hand_by_itself(sqlite_office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("registry.limits.policy.MAX_ON_TENANT", 2)
    ann = await owner(sqlite_office)
    for model in ("a", "b"):
        await put(sqlite_office, metadata=ann, tenant="acme", model=model)
    full = await refusal(put(sqlite_office, metadata=ann, tenant="acme", model="c"))
    assert (full.code, full.reason) == (Code.RESOURCE_EXHAUSTED, "LIMITS_FULL")
    await put(sqlite_office, metadata=ann, tenant="acme", model="b", burst=3)  # one that is there is replaced
    await put(sqlite_office, tenant="acme", model="c")
    assert [limit.model for limit in await listed(sqlite_office, "acme")] == ["a", "b", "c"]


async def test_an_altered_row_is_noticed_before_it_lifts_anything(office: Office) -> None:
    key = await office.key()
    limit = await put(office, tenant="acme")
    async with office.ground.database.writing() as connection:
        await connection.execute(update(limits).values(requests_per_s=1e9))
    request = accounts_pb2.ResolveKeyRequest(secret_sha256=token_sha256(key.secret))
    error = await refusal((await office.accounts(Role.GATEWAY)).ResolveKey(request))
    assert (error.code, error.reason) == (Code.DATA_LOSS, "ROW_ALTERED")
    assert limit.limit_id in error.message
