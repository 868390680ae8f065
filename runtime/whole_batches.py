"""Reads and writes of a stream that a cancelled handler leaves to end by themselves.

grpc.aio frees the native memory of a read or write only if whoever awaits it sees its end (grpc#43360, seen on 1.85.1): a
stream that a client leaves has a read pending, and cancelling it leaked 98 bytes each, a write 275. Behind a shield a read
leaks nothing and a write that fails 157. Owns the tasks that nobody awaits any more; each ends with its RPC.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
_under_way: set[asyncio.Task[Any]] = set()


async def whole(batch: Coroutine[Any, Any, T]) -> T:
    """Await one read or write of a stream; cancelling gives up the wait, not the batch."""
    task = asyncio.create_task(batch)
    _under_way.add(task)
    task.add_done_callback(_ended)
    return await asyncio.shield(task)


def _ended(task: asyncio.Task[Any]) -> None:
    _under_way.discard(task)
    if not task.cancelled():
        task.exception()  # looked at, so that nobody is told of a peer that left
