"""When a key was used last: noted without a write for each use, kept where it cannot be written."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from penstock.registry.v1 import accounts_pb2
from sqlalchemy.ext.asyncio import AsyncConnection

from registry.access.tokens import token_sha256
from registry.accounts.last_use import LastUse
from registry.accounts.sql import AccountSql
from runtime.database import DatabaseUnavailable
from runtime.identity import Role
from runtime.ids import KeyId
from tests.registry.accounts.rig import Office, bearing
from tests.registry.harness import Ground, ManualClock


async def last_used(office: Office) -> dict[str, int]:
    listed = await (await office.accounts()).ListKeys(accounts_pb2.ListKeysRequest())
    return {key.key_id: key.last_used_at_ms for key in listed.keys}


async def test_resolving_and_entering_are_uses(office: Office) -> None:
    resolved, shown, idle = [await office.key() for _ in range(3)]
    office.ground.clock.now_s = 1_700_000_125.0
    minute_ms = 1_700_000_100_000
    request = accounts_pb2.ResolveKeyRequest(secret_sha256=token_sha256(resolved.secret))
    await (await office.accounts(Role.GATEWAY)).ResolveKey(request)
    await (await office.public()).WhoAmI(accounts_pb2.WhoAmIRequest(), metadata=bearing(shown.secret))
    assert set((await last_used(office)).values()) == {0}, "reading writes nothing"
    await office.last_use.write()
    assert await last_used(office) == {resolved.key.key_id: minute_ms, shown.key.key_id: minute_ms, idle.key.key_id: 0}
    await (await office.accounts()).RevokeKey(accounts_pb2.RevokeKeyRequest(key_id=resolved.key.key_id))


async def test_a_later_use_is_not_overwritten_by_an_earlier_one(office: Office) -> None:
    """Two replicas write, in whatever order."""
    key_id = KeyId((await office.key()).key.key_id)
    ground, sql = office.ground, AccountSql(office.ground.seals)
    late, early = ManualClock(), ManualClock()
    late.now_s += 3600
    for clock in (late, early):
        uses = LastUse(ground.database, sql, clock)
        uses.used(key_id)
        await uses.write()
    (written,) = (await last_used(office)).values()
    assert written == int(late.now_s * 1000) // 60_000 * 60_000


class Ticking(ManualClock):
    """A tick is let through when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.ticks: asyncio.Queue[None] = asyncio.Queue()
        self.waits = asyncio.Event()

    async def sleep(self, delay_s: float) -> None:
        self.waits.set()
        await self.ticks.get()


class Away(AccountSql):
    """A database that is not there for a while."""

    away = True
    written: tuple[tuple[KeyId, int], ...] = ()

    async def note_uses(self, connection: AsyncConnection, used_at_ms: Sequence[tuple[KeyId, int]]) -> None:
        if self.away:
            raise DatabaseUnavailable("away")
        self.written = tuple(used_at_ms)


async def test_what_cannot_be_written_is_written_later_and_at_the_latest_on_leaving(sqlite_ground: Ground) -> None:
    clock, sql = Ticking(), Away(sqlite_ground.seals)
    uses = LastUse(sqlite_ground.database, sql, clock, pending=2)
    async with uses.running():
        for name in ("a", "b", "more than is remembered"):
            uses.used(KeyId(name))
        await clock.waits.wait()
        clock.waits.clear()
        clock.ticks.put_nowait(None)
        await clock.waits.wait()
        assert list(sql.written) == []
        sql.away = False
    assert [key_id for key_id, _ in sql.written] == ["a", "b"]
