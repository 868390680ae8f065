"""The log in a gateway's process: off, with a database that is there, away, frozen or comes later, and how it ends."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from gateway.request_log.room import LogRoom, request_log_room
from gateway.request_log.types import LogNotKept, LogSettings, Origin, Question
from runtime.clock import SystemClock
from runtime.errors import FailedPrecondition, Unavailable
from tests.gateway.request_log.ground import exchange_of, store_on
from tests.support.outages import FailingPostgres, failing_postgres
from tests.support.postgres import free_port

HERE = Origin("local", "g", 0)
QUICK = LogSettings(every_s=0.02, flush_s=20.0)


def counted(registry: CollectorRegistry, name: str, **labels: str) -> float:
    return registry.get_sample_value(f"penstock_gateway_log_{name}", labels) or 0.0


def dropped(registry: CollectorRegistry) -> float:
    return sum(counted(registry, "dropped_total", reason=why) for why in ("queue_full", "bytes_full", "refused", "shutdown"))


def note(room: LogRoom, count: int) -> None:
    assert room.log is not None
    for _ in range(count):
        room.log.note(exchange_of(), 0.01)


async def kept(address: str) -> int:
    async with store_on(address) as (store, _):
        return len((await store.page(Question("t", limit=1000))).entries)


async def test_without_an_address_there_is_none() -> None:
    async with request_log_room("", QUICK, HERE, SystemClock(), CollectorRegistry()) as room:
        assert room.log is None
        with pytest.raises(LogNotKept, match="--request-log"):
            room.reading()


async def test_an_address_that_means_nothing_is_refused_at_the_start() -> None:
    with pytest.raises(FailedPrecondition, match="neither a path nor a URL"):
        async with request_log_room("://", QUICK, HERE, SystemClock(), CollectorRegistry()):
            pass


async def test_what_waits_when_the_gateway_ends_is_written(database_address: str) -> None:
    registry = CollectorRegistry()
    settings = LogSettings(every_s=1000.0, flush_s=30.0, batch_rows=10)
    async with request_log_room(database_address, settings, HERE, SystemClock(), registry) as room:
        async with asyncio.timeout(30):
            while room.store is None:
                await asyncio.sleep(0.01)
        note(room, 35)
    assert (counted(registry, "written_total"), dropped(registry)) == (35, 0)
    assert await kept(database_address) == 35


async def test_a_database_that_is_away_holds_up_neither_the_start_nor_the_end() -> None:
    registry = CollectorRegistry()
    settings = LogSettings(every_s=0.02, flush_s=0.2, queue_rows=10)
    address = f"postgresql://postgres@127.0.0.1:{free_port()}/none"
    async with request_log_room(address, settings, HERE, SystemClock(), registry) as room:
        note(room, 25)
        with pytest.raises(Unavailable, match="has not answered"):
            room.reading()
        await asyncio.sleep(0.1)
    assert counted(registry, "dropped_total", reason="queue_full") == 15
    assert counted(registry, "dropped_total", reason="shutdown") == 10


async def test_a_server_that_takes_connections_and_says_nothing_holds_up_nothing_either() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"postgresql://postgres@127.0.0.1:{silent.getsockname()[1]}/none"
        registry = CollectorRegistry()
        async with request_log_room(address, LogSettings(flush_s=0.2), HERE, SystemClock(), registry) as room:
            note(room, 5)
            await asyncio.sleep(0.1)
    assert dropped(registry) == 5


async def test_a_file_that_cannot_be_made_is_tried_again(tmp_path: Path) -> None:
    (tmp_path / "in-the-way").write_text("")
    registry = CollectorRegistry()
    file = tmp_path / "in-the-way" / "requests.db"
    async with request_log_room(str(file), QUICK, HERE, SystemClock(), registry) as room:
        note(room, 3)
        await asyncio.sleep(0.1)
        (tmp_path / "in-the-way").unlink()
        async with asyncio.timeout(30):
            while counted(registry, "written_total") < 3:
                await asyncio.sleep(0.02)
    assert await kept(str(file)) == 3


@pytest.fixture(scope="module")
def failing() -> Iterator[FailingPostgres]:
    with failing_postgres() as server:
        yield server


async def test_a_database_that_stops_and_freezes_loses_nothing_that_fits_and_doubles_nothing(failing: FailingPostgres) -> None:
    address = await asyncio.to_thread(failing.server.new_database, "requests")
    registry = CollectorRegistry()
    settings = LogSettings(every_s=0.02, write_s=0.5, batch_rows=7, flush_s=30.0)
    noted, stop = 0, False

    async def traffic(room: LogRoom) -> None:
        nonlocal noted
        while not stop:
            note(room, 1)
            noted += 1
            await asyncio.sleep(0.005)

    async def written(more: int) -> None:
        wanted = counted(registry, "written_total") + more
        async with asyncio.timeout(60):
            while counted(registry, "written_total") < wanted:
                await asyncio.sleep(0.02)

    async with request_log_room(address, settings, HERE, SystemClock(), registry) as room:
        asking = asyncio.create_task(traffic(room))
        await written(20)
        failing.freeze()
        await asyncio.sleep(1.5)
        failing.thaw()
        await written(50)
        await failing.stop()
        await asyncio.sleep(0.5)
        await failing.start()
        await written(50)
        stop = True
        await asking
    assert counted(registry, "failures_total") > 0
    assert counted(registry, "written_total") == noted
    assert dropped(registry) == 0
    async with store_on(address) as (store, _):
        rows, before = 0, None
        while True:
            page = await store.page(Question("t", limit=1000, before=before))
            rows, before = rows + len(page.entries), page.rest
            if before is None:
                break
    assert rows == noted
