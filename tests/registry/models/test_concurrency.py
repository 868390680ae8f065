"""Two replicas on one database, everybody at once: one winner each, and a history without a gap."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import asyncpg
import pytest
from penstock.registry.v1 import models_pb2
from sqlalchemy import text

from registry.models.servicer import ModelServicer
from registry.models.types import AliasChanged, FilesMissing, VersionExists
from runtime.manifests import sign_manifest
from tests.registry.harness import Ground, ground_on
from tests.registry.models.rig import NOWHERE, ROOT, Desk, furnished, manifest
from tests.support.postgres import Postgres

AT_ONCE = 50


@pytest.fixture
async def replicas(desk: Desk) -> AsyncIterator[list[ModelServicer]]:
    async with ground_on(desk.ground.address) as other:
        yield [desk.servicer, desk.on(other)]


async def everybody(calls: list[object]) -> list[object]:
    return await asyncio.gather(*calls, return_exceptions=True)  # type: ignore[call-overload, no-any-return]


async def test_of_many_publishers_of_one_number_one_wins(desk: Desk, replicas: list[ModelServicer]) -> None:
    signed = [sign_manifest(ROOT, manifest(licence=f"licence {number}")) for number in range(AT_ONCE)]
    answers = await everybody(
        [
            replicas[number % 2].PublishVersion(models_pb2.PublishVersionRequest(manifest=each), NOWHERE)
            for number, each in enumerate(signed)
        ]
    )
    assert Counter(type(answer) for answer in answers) == {models_pb2.PublishVersionResponse: 1, VersionExists: AT_ONCE - 1}
    (winner,) = [answer for answer in answers if isinstance(answer, models_pb2.PublishVersionResponse)]
    assert list((await desk.model()).versions) == [winner.version]
    assert await desk.ground.count("version_files") == 1
    assert await desk.told() == 2, "the model's creation, and this"


async def test_many_publishers_of_the_same_are_answered_alike(desk: Desk, replicas: list[ModelServicer]) -> None:
    request = models_pb2.PublishVersionRequest(manifest=sign_manifest(ROOT, manifest()))
    answers = await everybody([replicas[number % 2].PublishVersion(request, NOWHERE) for number in range(AT_ONCE)])
    assert {type(answer) for answer in answers} == {models_pb2.PublishVersionResponse}
    assert len({answer.version.SerializeToString() for answer in answers}) == 1  # type: ignore[attr-defined]
    assert (await desk.model()).generation == 2


async def test_of_many_moves_from_one_target_one_wins(desk: Desk, replicas: list[ModelServicer]) -> None:
    await desk.publish(*range(1, AT_ONCE + 2))
    await desk.move("stable", 1)
    answers = await everybody(
        [
            replicas[number % 2].MoveAlias(
                models_pb2.MoveAliasRequest(
                    model="digits", alias="stable", version=str(number + 2), expected_version="1", immediate=True
                ),
                NOWHERE,
            )
            for number in range(AT_ONCE)
        ]
    )
    assert Counter(type(answer) for answer in answers) == {models_pb2.MoveAliasResponse: 1, AliasChanged: AT_ONCE - 1}
    (winner,) = [answer for answer in answers if isinstance(answer, models_pb2.MoveAliasResponse)]
    assert (await desk.aliases())["stable"] == winner.alias
    assert [move.to_version for move in await desk.history()] == ["1", winner.alias.version]


async def test_moves_of_everybody_leave_a_history_without_a_gap(desk: Desk, replicas: list[ModelServicer]) -> None:
    await desk.publish(*range(1, 6))
    before = (await desk.model()).generation
    answers = await everybody(
        [
            replicas[number % 2].MoveAlias(
                models_pb2.MoveAliasRequest(
                    model="digits", alias=f"a{number % 2}", version=str(number % 5 + 1), weight=number % 7, immediate=True
                ),
                NOWHERE,
            )
            for number in range(AT_ONCE)
        ]
    )
    assert {type(answer) for answer in answers} == {models_pb2.MoveAliasResponse}
    for alias, state in (await desk.aliases()).items():
        history = await desk.history(alias)
        assert [move.generation for move in history] == list(range(1, state.generation + 1))
        assert [move.from_version for move in history] == ["", *(move.to_version for move in history[:-1])]
        assert (history[-1].to_version, history[-1].weight) == (state.version, state.weight)
    changes = len(await desk.history())
    assert (await desk.model()).generation == before + changes


async def test_a_file_that_is_collected_meanwhile_is_missing(postgres: Postgres) -> None:
    """The collector deletes first and commits last: the foreign key decides, not what was read before.

    On SQLite, with its one writer at a time, a collector is before a publisher or after it.
    """
    address = postgres.new_database("collected_meanwhile")
    async with ground_on(address) as ground, AsyncExitStack() as stack:
        desk = await furnished(ground)
        collector = await asyncpg.connect(address)
        stack.push_async_callback(collector.close)
        collecting = collector.transaction()
        await collecting.start()
        await collector.execute("DELETE FROM file_owners")
        await collector.execute("DELETE FROM files")
        publishing = asyncio.ensure_future(desk.publish(1))
        await until_somebody_waits_for_a_lock(ground)
        await collecting.commit()
        with pytest.raises(FilesMissing, match="upload them again"):
            await publishing
        assert await ground.count("versions") == 0
        assert (await desk.model()).generation == 1
    postgres.drop_database("collected_meanwhile")


async def until_somebody_waits_for_a_lock(ground: Ground) -> None:
    waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()")
    async with asyncio.timeout(10):
        while True:
            async with ground.database.reading() as connection:
                if (await connection.execute(waiting)).scalar_one():
                    return
            await asyncio.sleep(0.01)
