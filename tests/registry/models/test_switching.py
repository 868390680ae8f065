"""Aliases as they are stored: moved, promoted, rolled back, settled; with their history, the mesh told, the trail written."""

from __future__ import annotations

from typing import Any

import pytest
from penstock.registry.v1 import models_pb2

from registry.access.types import ScopeRequired
from registry.models.sql import ModelTables
from registry.models.types import AliasChanged, AliasRefused, AliasState, AliasUnknown, ModelUnknown, VersionUnknown
from registry.seals import RowAltered
from runtime.errors import InvalidArgument, VersionWithdrawn
from runtime.identity import Role
from runtime.ids import ModelName
from tests.registry.models.rig import NOWHERE, Desk, node, person

Kind = models_pb2.AliasMoveKind


async def promote(desk: Desk, alias: str = "canary", **more: Any) -> models_pb2.Alias:
    request = models_pb2.PromoteAliasRequest(model="digits", alias=alias, **more)
    return (await desk.servicer.PromoteAlias(request, NOWHERE)).alias


async def roll_back(desk: Desk, alias: str = "stable", **more: Any) -> models_pb2.Alias:
    request = models_pb2.RollBackAliasRequest(model="digits", alias=alias, **({"immediate": True} | more))
    return (await desk.servicer.RollBackAlias(request, NOWHERE)).alias


async def remove(desk: Desk, alias: str, **more: Any) -> None:
    await desk.servicer.RemoveAlias(models_pb2.RemoveAliasRequest(model="digits", alias=alias, **more), NOWHERE)


async def settle(desk: Desk, alias: str, generation: int, because: str = "") -> models_pb2.SettleAliasResponse:
    request = models_pb2.SettleAliasRequest(model="digits", alias=alias, generation=generation, abandoned_because=because)
    with desk.called_by(node(Role.SCHEDULER)):
        return await desk.servicer.SettleAlias(request, NOWHERE)


async def withdraw(desk: Desk, version: int) -> None:
    request = models_pb2.WithdrawVersionRequest(model="digits", version=str(version), reason="it lies")
    await desk.servicer.WithdrawVersion(request, NOWHERE)


async def test_unversioned_requests_get_what_stable_points_at(sqlite_desk: Desk) -> None:
    (first, _) = await sqlite_desk.publish(1, 2)
    alias = await sqlite_desk.move("stable", 1)
    assert (alias.version, alias.digest, alias.weight) == ("1", first.digest, 0)
    assert await sqlite_desk.number() == "1"
    assert await sqlite_desk.number("stable") == "1"
    await remove(sqlite_desk, "stable")
    assert await sqlite_desk.number() == "2", "without stable it is the newest"


async def test_a_move_waits_until_the_scheduler_says(desk: Desk) -> None:
    (_, second) = await desk.publish(1, 2)
    await desk.move("stable", 1)
    alias = await desk.move("stable", 2, immediate=False)
    assert alias.version == "1"
    assert (alias.pending.version, alias.pending.digest) == ("2", second.digest)
    assert alias.pending.since_ms == int(desk.ground.clock.now_s * 1000)
    assert await desk.number() == "1"
    assert (await desk.aliases())["stable"] == alias
    settled = (await settle(desk, "stable", alias.generation)).alias
    assert (settled.version, settled.HasField("pending")) == ("2", False)
    assert settled.generation > alias.generation
    assert [move.by for move in await desk.history()] == ["op", "op"], "who asked, not who settled"
    assert ("alias.settle", "digits:stable", "done") in await desk.ground.actions()
    with pytest.raises(AliasChanged):
        await settle(desk, "stable", alias.generation)


async def test_an_alias_is_found_once_it_points_at_something(sqlite_desk: Desk) -> None:
    await sqlite_desk.publish(1)
    waiting = await sqlite_desk.move("canary", 1, 10, immediate=False)
    assert waiting.version == ""
    with pytest.raises(VersionUnknown, match="being warmed"):
        await sqlite_desk.get("canary")
    assert not (await settle(sqlite_desk, "canary", waiting.generation, "no room")).HasField("alias")
    assert not await sqlite_desk.aliases()
    (line,) = await sqlite_desk.history()
    assert (line.kind, line.reason, line.to_version, line.by) == (Kind.ALIAS_MOVE_KIND_ABANDONED, "no room", "1", "a-scheduler")


async def test_what_is_expected_is_compared(sqlite_desk: Desk) -> None:
    await sqlite_desk.publish(1, 2, 3)
    await sqlite_desk.move("stable", 1, expected_version="")
    with pytest.raises(AliasChanged, match="version 1 now"):
        await sqlite_desk.move("stable", 2, expected_version="")
    with pytest.raises(AliasChanged, match="version 1 now"):
        await sqlite_desk.move("stable", 2, expected_version="3")
    await sqlite_desk.move("stable", 2, expected_version="1")
    for attempt in (
        promote(sqlite_desk, "stable", to="blue", expected_version="9"),
        roll_back(sqlite_desk, expected_version="1"),
    ):
        with pytest.raises(AliasChanged):
            await attempt
    with pytest.raises(AliasChanged):
        await remove(sqlite_desk, "stable", expected_version="1")
    await remove(sqlite_desk, "stable", expected_version="2")


async def test_a_promotion_goes_to_stable_and_ends_the_canary(desk: Desk) -> None:
    await desk.publish(1, 2)
    await desk.move("stable", 1)
    await desk.move("canary", 2, 10)
    waiting = await promote(desk)
    assert (waiting.alias, waiting.version, waiting.pending.promotes) == ("stable", "1", "canary")
    assert set(await desk.aliases()) == {"stable", "canary"}
    assert (await settle(desk, "stable", waiting.generation)).alias.version == "2"
    assert set(await desk.aliases()) == {"stable"}
    assert [move.kind for move in await desk.history()][-2:] == [
        Kind.ALIAS_MOVE_KIND_PROMOTED,
        Kind.ALIAS_MOVE_KIND_REMOVED,
    ]
    assert (await roll_back(desk)).version == "1"


async def test_roll_backs_go_on_across_calls(desk: Desk) -> None:
    await desk.publish(1, 2, 3)
    for version in (1, 2, 3):
        await desk.move("stable", version)
    assert [(await roll_back(desk)).version for _ in range(2)] == ["2", "1"]
    with pytest.raises(AliasRefused, match="no target before"):
        await roll_back(desk)


async def test_nothing_points_at_what_was_withdrawn(desk: Desk) -> None:
    await desk.publish(1, 2, 3)
    for version in (1, 2, 3):
        await desk.move("stable", version)
    await desk.move("canary", 3, 10)
    await withdraw(desk, 2)
    told = await desk.told()
    await withdraw(desk, 3)
    assert await desk.told() == told + 1, "one change, one word"
    assert {name: alias.version for name, alias in (await desk.aliases()).items()} == {"stable": "1"}
    assert {move.kind for move in (await desk.history())[-2:]} == {Kind.ALIAS_MOVE_KIND_WITHDRAWN}
    with pytest.raises(VersionWithdrawn):
        await desk.move("stable", 2)
    await desk.publish(4)
    await desk.move("stable", 4)
    await withdraw(desk, 1)
    with pytest.raises(VersionWithdrawn, match="version 1"):
        await roll_back(desk)


async def test_a_move_to_what_is_withdrawn_meanwhile_is_given_up(sqlite_desk: Desk) -> None:
    await sqlite_desk.publish(1, 2)
    await sqlite_desk.move("stable", 1)
    waiting = await sqlite_desk.move("stable", 2, immediate=False)
    await withdraw(sqlite_desk, 2)
    assert not (await sqlite_desk.aliases())["stable"].HasField("pending")
    with pytest.raises(AliasChanged):
        await settle(sqlite_desk, "stable", waiting.generation)


async def test_an_alias_that_is_read_before_its_target_is_withdrawn_is_not_followed(sqlite_desk: Desk) -> None:
    """A reader may see the alias as it was and the version as it is."""
    await sqlite_desk.publish(1)
    await sqlite_desk.move("stable", 1)
    await withdraw(sqlite_desk, 1)
    tables = ModelTables(sqlite_desk.ground.database, sqlite_desk.ground.seals, sqlite_desk.ground.trail)
    async with tables.writing() as rows:
        await rows.put_aliases(ModelName("digits"), {"stable": AliasState("stable", 1, 0, 9, 0)})
    for name in ("", "stable"):
        with pytest.raises(VersionWithdrawn):
            await sqlite_desk.get(name)


async def test_each_change_is_told_and_written_down_and_what_is_no_change_is_not(sqlite_desk: Desk) -> None:
    await sqlite_desk.publish(1)
    before = (await sqlite_desk.told(), (await sqlite_desk.model()).generation, await sqlite_desk.ground.count("audit"))
    await sqlite_desk.move("canary", 1, 10)
    after = (before[0] + 1, before[1] + 1, before[2] + 1)
    for _ in range(2):
        assert (
            await sqlite_desk.told(),
            (await sqlite_desk.model()).generation,
            await sqlite_desk.ground.count("audit"),
        ) == after
        await sqlite_desk.move("canary", 1, 10)


async def test_the_history_is_newest_first_bounded_and_of_one_or_all(desk: Desk) -> None:
    await desk.publish(1)
    for weight in range(1, 6):
        await desk.move("canary", 1, weight)
    await desk.move("stable", 1)
    assert len(await desk.history()) == 6
    assert [move.weight for move in await desk.history("canary", 2)] == [4, 5]
    assert [move.alias for move in await desk.history("stable")] == ["stable"]
    assert len(await desk.history(limit=0)) == 6
    with pytest.raises(InvalidArgument, match="1001"):
        await desk.history(limit=1001)
    with pytest.raises(InvalidArgument):
        await desk.history("a\0")


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (models_pb2.MoveAliasRequest(model="digits", alias="latest", version="1"), "latest"),
        (models_pb2.MoveAliasRequest(model="digits", alias="Big", version="1"), "alias"),
        (models_pb2.MoveAliasRequest(model="digits", alias="1", version="1"), "alias"),
        (models_pb2.MoveAliasRequest(model="digits", alias="a" * 65, version="1"), "alias"),
        (models_pb2.MoveAliasRequest(model="digits", alias="canary", version="stable"), "version"),
        (models_pb2.MoveAliasRequest(model="digits", alias="canary", version="1", weight=101), "101"),
        (models_pb2.MoveAliasRequest(model="digits", alias="stable", version="1", weight=1), "what the other aliases leave"),
        (models_pb2.MoveAliasRequest(model="digits", alias="canary", version="1", expected_version="x"), "expected version"),
        (models_pb2.MoveAliasRequest(model="a\0", alias="canary", version="1"), "model name"),
    ],
)
async def test_a_command_that_makes_no_sense_is_refused(
    sqlite_desk: Desk, request_: models_pb2.MoveAliasRequest, words: str
) -> None:
    await sqlite_desk.publish(1)
    with pytest.raises(InvalidArgument, match=words):
        await sqlite_desk.servicer.MoveAlias(request_, NOWHERE)


async def test_what_is_not_there_cannot_be_moved(sqlite_desk: Desk) -> None:
    await sqlite_desk.publish(1)
    with pytest.raises(VersionUnknown):
        await sqlite_desk.move("stable", 2)
    for attempt in (promote(sqlite_desk), roll_back(sqlite_desk), remove(sqlite_desk, "canary")):
        with pytest.raises(AliasUnknown):
            await attempt
    with pytest.raises(ModelUnknown):
        await sqlite_desk.servicer.MoveAlias(models_pb2.MoveAliasRequest(model="letters", alias="canary", version="1"), NOWHERE)


async def test_who_may_not_move_aliases(sqlite_desk: Desk) -> None:
    await sqlite_desk.publish(1)
    await sqlite_desk.move("canary", 1)
    for who, error in ((person("globex"), ModelUnknown), (node(Role.SCHEDULER), ScopeRequired)):
        for attempt in (
            lambda: sqlite_desk.move("stable", 1),
            lambda: promote(sqlite_desk),
            lambda: roll_back(sqlite_desk),
            lambda: remove(sqlite_desk, "canary"),
        ):
            with sqlite_desk.called_by(who), pytest.raises(error):
                await attempt()
    request = models_pb2.SettleAliasRequest(model="digits", alias="canary", generation=1)
    with sqlite_desk.called_by(person("acme")), pytest.raises(ScopeRequired, match="aliases:settle"):
        await sqlite_desk.servicer.SettleAlias(request, NOWHERE)
    assert set(await sqlite_desk.aliases()) == {"canary"}


async def test_an_altered_alias_is_not_followed(desk: Desk) -> None:
    await desk.publish(1, 2)
    await desk.move("stable", 1)
    await desk.ground.execute("UPDATE aliases SET number = 2")
    for asking in (desk.get(), desk.get("stable"), desk.move("stable", 2), withdraw(desk, 1)):
        with pytest.raises(RowAltered, match="aliases"):
            await asking
    (model,) = await desk.models()
    assert not model.aliases
