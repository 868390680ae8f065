"""What there is to tell is read from the tables of every room, on both databases, and not from rows that somebody edited."""

from __future__ import annotations

import pytest

from registry.notices.outbox import NoticeKind, tell
from registry.notices.sql import NoticeSource
from registry.notices.types import Subject, Truth
from registry.seals import RowAltered
from runtime.ids import Digest, ModelName, ModelVersion, NodeId, TenantId
from runtime.notices import AliasTarget, ModelNotice, NodeNotice, PendingTarget, model_payload, node_payload
from tests.registry.harness import Ground
from tests.registry.notices.world import LATER_MS, World, digest_of


@pytest.fixture
def world(ground: Ground) -> World:
    return World(ground)


@pytest.fixture
def source(ground: Ground) -> NoticeSource:
    return NoticeSource(ground.database, ground.seals)


async def test_everything_of_a_model(world: World, source: NoticeSource) -> None:
    await world.add_model("m", numbers=(1, 2, 3))
    await world.add_model("other", "globex")
    await world.share("m", "globex", "*")
    await world.withdraw("m", 1)
    await world.point("m", "stable", 2)
    await world.point("m", "canary", 3, 10, pending_number=2, pending_weight=50, pending_since_ms=7, pending_promotes="blue")
    await world.point("m", "first", 0, 0, pending_number=3, pending_since_ms=8)
    await world.revoke_signer("bad", "acme", "m")
    await world.revoke_signer("foreign", "globex", "other")
    two, three = digest_of("m", 2), digest_of("m", 3)
    expected = ModelNotice(
        ModelName("m"),
        TenantId("acme"),
        frozenset({"globex", "*"}),
        (
            AliasTarget("canary", ModelVersion("3"), three, 10, 1, PendingTarget(ModelVersion("2"), two, 50, 7, "blue")),
            AliasTarget("first", ModelVersion(""), Digest(""), 0, 1, PendingTarget(ModelVersion("3"), three, 0, 8)),
            AliasTarget("stable", ModelVersion("2"), two, 0, 1),
        ),
        frozenset({digest_of("m", 1)}),
        frozenset({ModelVersion("1")}),
        frozenset({"bad"}),
        7,
    )
    assert await source.model("m") == Truth(model_payload(expected), 7)
    assert await source.model("unheard-of") is None


async def test_pages_of_models(world: World, source: NoticeSource) -> None:
    names = ["A", "B-1", "a", "a.b", "a_b", "b", "z"]
    for name in names:
        await world.add_model(name)
    found: list[str] = []
    while page := await source.models(found[-1] if found else "", 2):
        found += page
    assert sorted(found) == sorted(names)
    assert len(found) == len(names)


@pytest.mark.parametrize(
    "edit",
    [
        "UPDATE versions SET withdrawn_at_ms = 0 WHERE number = 1",
        "UPDATE models SET shared_with = '[\"*\"]'",
        "UPDATE aliases SET number = 1",
        "UPDATE signers SET revoked_at_ms = 0",
        "UPDATE versions SET manifest = signature WHERE number = 2",
    ],
)
async def test_an_edited_row_is_no_truth(world: World, source: NoticeSource, edit: str) -> None:
    await world.add_model("m", numbers=(1, 2))
    await world.add_model("sound", "globex")
    await world.withdraw("m", 1)
    await world.point("m", "stable", 2)
    await world.revoke_signer("bad", "acme", "m")
    await world.ground.execute(edit)
    with pytest.raises(RowAltered):
        await source.model("m")
    page = await source.models("", 10)
    assert isinstance(page["m"], RowAltered)
    if "models" not in edit:
        assert isinstance(page["sound"], Truth)


async def test_revoked_nodes(world: World, source: NoticeSource) -> None:
    await world.add_node("out")
    await world.add_node("in")
    await world.revoke_node("out")
    truth = Truth(node_payload(NodeNotice(NodeId("out"), 5)), until_ms=LATER_MS)
    assert await source.node("out") == truth
    assert await source.node("in") is None
    assert await source.node("nobody") is None
    assert await source.revoked_nodes() == {"out": truth}
    await world.ground.execute("UPDATE nodes SET revoked_at_ms = 0")
    with pytest.raises(RowAltered):
        await source.node("out")
    assert isinstance((await source.revoked_nodes())["out"], RowAltered)


async def test_the_outbox_keeps_what_was_not_told(world: World, source: NoticeSource) -> None:
    await world.add_model("m")
    await world.add_key("k")
    await world.revoke_key("k")
    async with world.ground.database.writing() as connection:
        await tell(connection, NoticeKind.NODE, "n")
    await world.ground.execute("INSERT INTO outbox (kind, subject, at_ms) VALUES ('of tomorrow', 'x', 0)")
    first, second, *rest = await source.waiting(0, 10)
    assert first.subject == Subject(NoticeKind.MODEL, "m")
    assert second.subject == Subject(NoticeKind.KEY, "k")
    assert [each.subject for each in rest] == [Subject(NoticeKind.NODE, "n"), None]
    assert [each.notice for each in await source.waiting(first.notice, 1)] == [second.notice]
    await source.told([second.notice])
    assert [each.notice for each in await source.waiting(0, 10)] == [first.notice, *(each.notice for each in rest)]


async def test_what_was_rolled_back_is_not_told(world: World, source: NoticeSource) -> None:
    async def fail() -> None:
        async with world.ground.database.writing() as connection:
            await tell(connection, NoticeKind.MODEL, "m")
            raise RuntimeError("the change failed")

    with pytest.raises(RuntimeError):
        await fail()
    assert await source.waiting(0, 10) == []
