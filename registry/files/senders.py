"""Listening to a sender: not for ever, and, where it was answered early, to its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TypeVar

from registry.files.errors import UploadSilent

T = TypeVar("T")
_READ_OFF_S = 2.0


async def heard(messages: AsyncIterator[T], silence_s: float) -> T | None:
    """The sender's next message; None at the end. Raises UploadSilent."""
    try:
        async with asyncio.timeout(silence_s):
            return await anext(messages, None)
    except TimeoutError as error:
        raise UploadSilent("nothing came for long, or too little; begin again to learn which parts are missing") from error


async def listened(messages: AsyncIterator[T], silence_s: float, within_s: float) -> AsyncIterator[T]:
    """All that comes, and that in time: a sender of a byte now and then is never silent. Raises UploadSilent."""
    loop = asyncio.get_running_loop()
    ends_at_s = loop.time() + within_s
    while (message := await heard(messages, min(silence_s, ends_at_s - loop.time()))) is not None:
        yield message


async def read_off(messages: AsyncIterator[object], most: int) -> None:
    """Let a sender finish that was answered early, within bounds.

    A grpc.aio client whose write fails because the call ended reports INTERNAL, and not what the server answered.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(_READ_OFF_S):
            async for _ in messages:
                most -= 1
                if most < 0:
                    return
