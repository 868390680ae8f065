"""The leader of the limits as a gateway speaks to it: one stream, a question and its answer at a time.

Owns nothing but the call; channels belong to whoever opened them. Foreign errors leave as our own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
from penstock.scheduler.v1 import limits_pb2 as pb
from penstock.scheduler.v1.limits_pb2_grpc import LimitServiceStub

from gateway.limits import codec
from placement.limits.types import Ask, Grant
from runtime.errors import Code, PenstockError, Unavailable
from runtime.status import error_of

Exchange = Callable[[Sequence[Ask]], Awaitable[list[Grant]]]


class LedElsewhere(PenstockError, code=Code.UNAVAILABLE, reason="LIMITS_LED_ELSEWHERE"):
    """Another scheduler leads the limits."""

    def __init__(self, address: str) -> None:
        super().__init__(f"the scheduler at {address} leads the limits")
        self.address = address


@asynccontextmanager
async def shared(channel: grpc.aio.Channel, process: str) -> AsyncIterator[Exchange]:
    """A stream to this scheduler: what is yielded says all that is asked, and returns the answer.

    It raises LedElsewhere, and a PenstockError once the stream is over. Put a time-out around it.
    """
    stub: Any = LimitServiceStub(channel)
    call = stub.Share()

    async def exchange(asks: Sequence[Ask]) -> list[Grant]:
        try:
            await call.write(codec.share_request(process, asks))
            answer = await call.read()
        except grpc.aio.AioRpcError as failure:
            raise error_of(failure) from failure
        except (asyncio.InvalidStateError, grpc.aio.UsageError) as error:  # it has ended: its status says why
            raise Unavailable(f"the stream to the leader of the limits has ended: {await call.details()}") from error
        if not isinstance(answer, pb.ShareResponse):  # grpc.aio.EOF
            raise Unavailable("the leader of the limits ended the stream")
        if answer.leader_address:
            raise LedElsewhere(answer.leader_address)
        return codec.grants_of(answer)

    try:
        yield exchange
    finally:
        call.cancel()
