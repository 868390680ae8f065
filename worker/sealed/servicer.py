"""penstock.worker.v1.SealedService on the wire: a port of its own, which shows the worker's certificate and asks for none.

`register` is a `runtime.serving.Register`. A servicer: bytes in, sealed parts out; who may call is the door's to say.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import grpc.aio
from penstock.worker.v1 import sealed_pb2, sealed_pb2_grpc

from runtime.errors import DeadlineExceeded
from worker.sealed.door import Door

SERVICE = "penstock.worker.v1.SealedService"
WRITE_S = 30.0
"""How long a client may leave one part untaken: it holds a place meanwhile."""

Context = grpc.aio.ServicerContext[Any, Any]


class SealedServicer(sealed_pb2_grpc.SealedServiceServicer):
    """Belongs to one event loop."""

    def __init__(self, door: Door) -> None:
        self._door, self._loop = door, asyncio.get_running_loop()

    def register(self, server: grpc.aio.Server) -> None:
        sealed_pb2_grpc.add_SealedServiceServicer_to_server(self, server)

    # A coroutine that writes: cancelled generators leak natively in grpc.aio (grpc#43360).
    async def CallSealed(self, request: sealed_pb2.CallSealedRequest, context: Context) -> None:  # type: ignore[override]
        left_s = context.time_remaining()
        deadline_s = None if left_s is None else self._loop.time() + left_s
        async with aclosing(self._door.answers(request.reservation_id, request.box, deadline_s)) as parts:
            async for header, message in parts:
                await _written(context, sealed_pb2.CallSealedResponse(header=header, message=message))


async def _written(context: Context, message: sealed_pb2.CallSealedResponse) -> None:
    try:
        async with asyncio.timeout(WRITE_S):
            await context.write(message)
    except TimeoutError as error:
        raise DeadlineExceeded(f"the client took nothing for {WRITE_S:g} s; its place is for others") from error
