"""A file as another process streams it: its parts as they come, a bound on silence, failures as our own classes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeVar

import grpc.aio

from runtime.errors import PenstockError, Unavailable
from runtime.status import DETAILS_KEY, error_of

M = TypeVar("M")
T = TypeVar("T")
_VAGUE = (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED)


async def read_parts(
    call: Any, kind: type[M], data_of: Callable[[M], T], *, who: str, what: str, silence_s: float
) -> AsyncGenerator[T, None]:
    """The parts of a server's stream of `kind`. Closing it ends the call. Raises what `who` answers; silence is Unavailable."""
    try:
        while True:
            async with asyncio.timeout(silence_s):
                message = await call.read()
            if not isinstance(message, kind):
                return
            yield data_of(message)
    except grpc.aio.AioRpcError as failure:
        raise failure_of(failure, who) from failure
    except TimeoutError as error:
        raise Unavailable(f"{who} sent nothing of {what} for {silence_s:g} s") from error
    finally:
        call.cancel()


def failure_of(failure: grpc.aio.AioRpcError, who: str) -> PenstockError:
    """What they answered; what only the connection says is passing."""
    told = any(key == DETAILS_KEY for key, _ in failure.trailing_metadata() or ())
    if not told and failure.code() in _VAGUE:
        return Unavailable(f"{who} broke off: {failure.details()}")
    if not told and failure.code() is grpc.StatusCode.UNAVAILABLE:
        return Unavailable(f"{who} does not answer: {failure.details()}")
    return error_of(failure)
