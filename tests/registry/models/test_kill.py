"""A registry that is killed in the middle of publishing: no half version is there afterwards, and no finished one is lost."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import pytest

from tests.registry.models.rig import Desk

STATEMENTS = ["INSERT INTO version_files", "INSERT INTO outbox", "COMMIT"]
ROOT = Path(__file__).parents[3]


async def killed(address: str, number: int, statement: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.registry.models.publisher", address, str(number), statement),
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}"},
    )
    assert await process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("statement", STATEMENTS)
async def test_a_version_is_there_whole_or_not_at_all(desk: Desk, database_address: str, statement: str) -> None:
    before = (await desk.told(), await desk.ground.count("audit"))
    await killed(database_address, 1, statement)
    assert await desk.ground.count("versions") == await desk.ground.count("version_files") == 0
    assert (await desk.told(), await desk.ground.count("audit"), (await desk.model()).generation) == (*before, 1)
    await desk.publish(1)
    assert await desk.number() == "1", "whoever goes on is not held up by the dead"


async def test_a_version_that_was_published_stays(desk: Desk, database_address: str) -> None:
    await killed(database_address, 1, "nothing")
    found = await desk.get("1")
    assert (await desk.publish(1)) == [found.version]
    assert (await desk.told(), await desk.ground.count("version_files")) == (2, 1)
