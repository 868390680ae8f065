"""Whoever is cancelled while a read or write is under way leaves it to end by itself."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import grpc
import grpc.aio
import pytest

from runtime.errors import InvalidArgument
from runtime.serving import Listen, serving
from runtime.whole_batches import Writes, whole


async def test_the_result_and_the_failure_are_the_batchs_own() -> None:
    async def read() -> bytes:
        return b"message"

    async def broken() -> bytes:
        raise ConnectionError("gone")

    assert await whole(read()) == b"message"
    with pytest.raises(ConnectionError):
        await whole(broken())


async def test_cancelling_gives_up_the_wait_and_not_the_batch() -> None:
    may_end, ended = asyncio.Event(), asyncio.Event()

    async def read() -> None:
        await may_end.wait()
        ended.set()
        raise ConnectionError("nobody is told of this")

    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))
    waiting = asyncio.create_task(whole(read()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not ended.is_set()
    may_end.set()
    await ended.wait()
    await asyncio.sleep(0)
    gc.collect()
    assert told == []


async def test_a_status_waits_for_the_write_before_it() -> None:
    """Beside a write that carries the initial metadata gRPC takes no status: the caller would wait until its deadline."""

    async def handler(_: Any, context: Any) -> None:
        writes = Writes(context)
        writing = asyncio.create_task(writes.write(bytes(3_000_000)))  # more than anybody takes unasked
        await asyncio.sleep(0.01)
        writing.cancel()
        await writes.ended()
        raise InvalidArgument("not so")

    def register(server: grpc.aio.Server) -> None:
        server.add_registered_method_handlers("t.T", {"S": grpc.stream_stream_rpc_method_handler(handler)})

    async with serving([Listen("127.0.0.1", 0)], [register], ["t.T"], drain_grace_s=0.1) as running:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{running.ports[0]}") as channel:
            for _ in range(5):
                call: Any = channel.stream_stream("/t.T/S")(timeout=20)
                assert len(await call.read()) == 3_000_000
                assert (await call.code(), await call.details()) == (grpc.StatusCode.INVALID_ARGUMENT, "not so")


async def test_one_write_at_a_time_also_where_somebody_gave_up() -> None:
    under_way, most, gate = 0, 0, asyncio.Event()

    class Context:
        async def write(self, message: int) -> None:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            await gate.wait()
            under_way -= 1
            written.append(message)

    written: list[int] = []
    writes = Writes(Context())  # type: ignore[arg-type]  # all it needs of one
    tasks = [asyncio.create_task(writes.write(number)) for number in range(4)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    tasks[0].cancel()
    tasks[2].cancel()
    await asyncio.sleep(0)
    gate.set()
    await asyncio.wait(tasks)
    await writes.ended()
    assert (written, most) == ([0, 1, 3], 1)
