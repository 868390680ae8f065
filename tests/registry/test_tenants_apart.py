"""What tenant acme has is not there for tenant globex: not to be seen, not to be changed, not to be guessed at.

Each call of globex's owner about a thing of acme's is compared with the same call about a thing that never was: code, reason,
sentence, and what the trail says of it afterwards. What has one name in the whole mesh (models, user names) tells that it is
taken to whoever wants it too; that cannot be helped, and is all it tells.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from penstock.registry.v1 import files_pb2, limits_pb2
from sqlalchemy import update

from registry.schema import models
from runtime.identity import NodeIdentity, Role
from tests.registry.callers import CONTENT, MODEL, Acme, Callers, begin, callers_of, signed_manifest
from tests.registry.front import PASSWORD, Answer, Front, Way, front_on, request_class

NOTHING = {
    MODEL: "none-model",
    "acme": "initech",
    "digest": "0" * 64,
    "upload_id": "1" * 32,
    "key_id": "2" * 16,
    "user_id": "3" * 16,
    "limit_id": "4" * 16,
}
"""For each thing of acme's one that never was."""


@pytest.fixture
async def callers(tmp_path: Path, identities: dict[Role, NodeIdentity]) -> AsyncIterator[Callers]:
    async with front_on(str(tmp_path / "registry.db"), tmp_path, identities) as front:
        yield await callers_of(front, tmp_path)


@pytest.fixture
async def callers_anywhere(
    database_address: str, tmp_path: Path, identities: dict[Role, NodeIdentity]
) -> AsyncIterator[Callers]:
    """On SQLite and on PostgreSQL."""
    async with front_on(database_address, tmp_path, identities) as front:
        yield await callers_of(front, tmp_path)


IDS = ("digest", "upload_id", "key_id", "user_id", "limit_id")


def names_of(acme: Acme) -> dict[str, str]:
    """Of acme's things, and what each is called where there is none."""
    ids = {getattr(acme, name): NOTHING[name] for name in IDS}
    return ids | {MODEL: NOTHING[MODEL], "acme": NOTHING["acme"]}


def attempts(
    model: str, tenant: str, digest: str, upload_id: str, key_id: str, user_id: str, limit_id: str
) -> list[tuple[str, dict[str, Any]]]:
    alias = {"model": model, "alias": "steady"}
    return [
        ("ModelService/ListModels", {"tenant": tenant}),
        ("ModelService/GetVersion", {"model": model, "version": "1"}),
        ("ModelService/GetVersion", {"model": model}),
        ("ModelService/GetVersion", {"model": model, "version": "steady"}),
        ("ModelService/GetVersion", {"digest": digest}),
        ("ModelService/GetVersion", {"model": model, "digest": digest}),
        ("ModelService/ListAliasMoves", {"model": model}),
        ("ModelService/ShareModel", {"model": model, "shared_with": ["globex"]}),
        ("ModelService/WithdrawVersion", {"model": model, "version": "1"}),
        ("ModelService/WithdrawVersion", {"model": model, "version": "9"}),
        ("ModelService/MoveAlias", alias | {"version": "2", "immediate": True}),
        ("ModelService/PromoteAlias", alias | {"immediate": True}),
        ("ModelService/RollBackAlias", alias),
        ("ModelService/RemoveAlias", alias),
        ("ModelService/PublishVersion", {"manifest": signed_manifest("7", model, "globex")}),
        ("ModelService/PublishVersion", {"manifest": signed_manifest("7", model, tenant)}),
        ("ModelService/CreateModel", {"model": "globex-model", "tenant": tenant}),
        ("ModelService/ListSigners", {"tenant": tenant}),
        ("FileService/BeginUpload", {"sha256": "a" * 64, "size_bytes": 1, "tenant": tenant}),
        ("FileService/UploadPart", {"upload_id": upload_id}),
        ("FileService/CompleteUpload", {"upload_id": upload_id}),
        ("FileService/AbortUpload", {"upload_id": upload_id}),
        ("FileService/GetStorage", {"tenant": tenant}),
        ("AccountService/CreateUser", {"tenant": tenant, "name": "eve", "role": "owner", "password": PASSWORD}),
        ("AccountService/ListUsers", {"tenant": tenant}),
        ("AccountService/UpdateUser", {"user_id": user_id, "role": "owner"}),
        ("AccountService/UpdateUser", {"user_id": user_id, "password": "another long password"}),
        ("AccountService/UpdateUser", {"user_id": user_id, "disabled": True}),
        ("AccountService/CreateKey", {"tenant": tenant, "role": "caller"}),
        ("AccountService/ListKeys", {"tenant": tenant}),
        ("AccountService/RotateKey", {"key_id": key_id}),
        ("AccountService/RevokeKey", {"key_id": key_id}),
        ("LimitService/SetLimit", {"limit": limits_pb2.Limit(tenant=tenant, requests_per_s=1)}),
        ("LimitService/SetLimit", {"limit": limits_pb2.Limit(key_id=key_id, requests_per_s=1)}),
        ("LimitService/SetLimit", {"limit": limits_pb2.Limit(key_id=key_id, tenant="globex", requests_per_s=1)}),
        ("LimitService/ListLimits", {"tenant": tenant}),
        ("LimitService/DeleteLimit", {"limit_id": limit_id}),
        ("AuditService/ListEntries", {"tenant": tenant}),
    ]


async def attempted(callers: Callers, way: Way, **names: str) -> tuple[list[Answer], list[Any]]:
    """The answers, and what of it globex reads in its trail."""
    front, answers = callers.front, []
    for method, fields in attempts(**names):
        front.clock.now_s += 60  # the trail takes so many refusals a minute
        if method == "FileService/UploadPart":
            header = files_pb2.UploadPartHeader(**fields, number=0)
            parts = [files_pb2.UploadPartRequest(header=header), files_pb2.UploadPartRequest(data=b"ten bytes.")]
            answers.append(await front.call(way, method, *parts))
        else:
            answers.append(await front.call(way, method, request_class(method)(**fields)))
    who = (await front.call(way, "AccountService/WhoAmI")).message
    wanted = request_class("AuditService/ListEntries")(actor_id=who.id, limit=1000)
    entries = (await front.call(way, "AuditService/ListEntries", wanted)).message.entries
    return answers, [(entry.action, entry.subject, entry.outcome, entry.detail.replace(who.id, "who")) for entry in entries]


def told(answer: Answer, names: Mapping[str, str]) -> tuple[object, ...]:
    """All that an answer tells, with the names of nothing in the place of acme's."""
    error = answer.error
    said = "" if error is None else without(error.message, names)
    return answer.code, error and error.reason, said, answer.messages


def without(text: str, names: Mapping[str, str]) -> str:
    for name, nothing in names.items():
        text = text.replace(name, nothing)
    return text


async def what_acme_has(front: Front) -> list[Any]:
    return [
        await front.made("ModelService/ListModels", tenant="acme"),
        await front.made("ModelService/ListAliasMoves", model=MODEL),
        await front.made("ModelService/ListSigners", tenant="acme"),
        await front.made("AccountService/ListUsers", tenant="acme"),
        await front.made("FileService/GetStorage", tenant="acme"),
        await front.made("LimitService/ListLimits", tenant="acme"),
        await begin(front, b"ten bytes."),
        [(key.key_id, key.revoked_at_ms) for key in (await front.made("AccountService/ListKeys", tenant="acme")).keys],
    ]


async def test_it_is_as_if_acme_had_nothing(callers_anywhere: Callers) -> None:
    callers = callers_anywhere
    front, acme = callers.front, callers.acme
    names, before = names_of(acme), await what_acme_has(front)
    one, other = [Way().bearing(await callers.key(role="owner", tenant="globex")) for _ in range(2)]
    ids = {name: getattr(acme, name) for name in IDS}
    theirs, their_trail = await attempted(callers, one, model=MODEL, tenant="acme", **ids)
    nothings, empty_trail = await attempted(
        callers, other, model=NOTHING[MODEL], tenant=NOTHING["acme"], **{name: NOTHING[name] for name in ids}
    )
    methods = [f"{method} {fields}" for method, fields in attempts(MODEL, "acme", **ids)]
    whos = [(await front.call(way, "AccountService/WhoAmI")).message.id for way in (one, other)]
    differing = {
        method: (seen, unseen)
        for method, theirs_, nothing_ in zip(methods, theirs, nothings, strict=True)
        if (seen := told(theirs_, names | {whos[0]: "who"})) != (unseen := told(nothing_, {whos[1]: "who"}))
    }
    assert differing == {}
    assert [tuple(without(text, names) for text in entry) for entry in their_trail] == empty_trail
    assert await what_acme_has(front) == before
    assert all(answer.code.name in ("NOT_FOUND", "PERMISSION_DENIED", "OK") for answer in theirs)


async def test_globexs_lists_hold_nothing_of_acmes(callers: Callers) -> None:
    owner, acme = callers.ways["gl"][0], callers.acme
    lists = ["ModelService/ListModels", "ModelService/ListSigners", "FileService/GetStorage"]
    lists += [f"AccountService/List{what}" for what in ("Tenants", "Users", "Keys")]
    lists += ["LimitService/ListLimits", "AuditService/ListEntries"]
    for method in lists:
        shown = str((await callers.front.call(owner, method)).message)
        for word in ("acme", "spare", acme.signer_id, "default", *(getattr(acme, name) for name in IDS)):
            assert word not in shown, f"{method} tells of {word}"


async def test_operators_read_of_refusals_that_globex_was_not_told_of(callers: Callers) -> None:
    owner = callers.ways["gl"][0]
    request = request_class("ModelService/WithdrawVersion")(model=MODEL, version="1")
    assert (await callers.front.call(owner, "ModelService/WithdrawVersion", request)).code.name == "NOT_FOUND"
    entries = (await callers.front.made("AuditService/ListEntries", action="version.withdraw")).entries
    assert (entries[0].outcome, entries[0].tenant, entries[0].subject) == ("refused", "", MODEL)
    assert "acme" in entries[0].detail


async def test_an_altered_row_of_acmes_is_not_named_to_globex(callers: Callers) -> None:
    """Neither in an answer nor in the trail that globex reads."""
    front, owner = callers.front, callers.ways["gl"][0]
    async with front.database.writing() as connection:
        await connection.execute(update(models).values(description="altered"))
    listed = await front.call(owner, "ModelService/ListModels")
    assert MODEL not in str(listed)
    entries = (await front.call(owner, "AuditService/ListEntries")).message.entries
    assert not [entry for entry in entries if MODEL in str(entry)]
    tampering = (await front.made("AuditService/ListEntries", action="tampering")).entries
    assert [entry.subject for entry in tampering] == [f"row {MODEL} of models"]


@pytest.mark.parametrize("content", [CONTENT, b"ten bytes."], ids=["a file of acme's", "an upload of acme's under way"])
async def test_an_upload_of_the_same_content_tells_nothing(callers: Callers, content: bytes) -> None:
    front, owner = callers.front, callers.ways["gl"][0]
    sha256 = hashlib.sha256(content).hexdigest()
    wanted = files_pb2.BeginUploadRequest(sha256=sha256, size_bytes=len(content))
    begun = (await front.call(owner, "FileService/BeginUpload", wanted)).message
    assert (begun.complete, list(begun.received_parts)) == (False, [])
    assert begun.upload_id != callers.acme.upload_id
    other_size = files_pb2.BeginUploadRequest(sha256=sha256, size_bytes=99, tenant="default")
    assert (await front.call(front.node(), "FileService/BeginUpload", other_size)).error is None
    header = files_pb2.UploadPartHeader(upload_id=begun.upload_id)
    parts = [files_pb2.UploadPartRequest(header=header), files_pb2.UploadPartRequest(data=content)]
    assert (await front.call(owner, "FileService/UploadPart", *parts)).error is None
    request = files_pb2.CompleteUploadRequest(upload_id=begun.upload_id)
    steps = (await front.call(owner, "FileService/CompleteUpload", request)).messages
    assert [(step.verified_bytes, step.complete) for step in steps] == [(len(content), False), (len(content), True)]
    (used,) = (await front.call(owner, "FileService/GetStorage")).message.tenants
    assert (used.used_bytes, used.files, used.uploads) == (len(content), 1, 0)


async def test_a_version_of_acmes_files_lacks_them_as_if_they_were_nowhere(callers: Callers) -> None:
    front, owner = callers.front, callers.ways["gl"][0]
    assert (await front.call(owner, "ModelService/CreateModel", request_class("ModelService/CreateModel")(model="g"))).message
    request = request_class("ModelService/PublishVersion")(manifest=signed_manifest("1", "g", "globex"))
    answer = await front.call(owner, "ModelService/PublishVersion", request)
    assert answer.error is not None
    assert answer.error.reason == "FILES_MISSING"
    assert "acme" not in answer.error.message


@pytest.mark.parametrize(
    ("method", "fields", "reason"),
    [
        ("ModelService/CreateModel", {"model": MODEL}, "MODEL_EXISTS"),
        (
            "AccountService/CreateUser",
            {"name": "owner@acme.example", "role": "owner", "password": PASSWORD},
            "USER_EXISTS",
        ),
    ],
)
async def test_a_taken_name_tells_that_it_is_taken_and_no_more(
    callers: Callers, method: str, fields: dict[str, str], reason: str
) -> None:
    await callers.front.user("owner@acme.example", "owner", "acme")
    answer = await callers.front.call(callers.ways["gl"][0], method, request_class(method)(**fields))
    assert answer.error is not None
    assert answer.error.reason == reason
    wanted = fields.get("model") or fields["name"]
    assert "acme" not in answer.error.message.replace(wanted, "")
