"""penstock.gateway.v1.UsageService: what became of a tenant's requests, from the request log.

`UsageServicer(mesh, room, clock).register` puts it onto a server under the name `SERVICE`. Any key sees what its tenant's keys
did, and nothing else. Asking is a request of its own, limited and logged like others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol, TypeVar

import grpc.aio
from penstock.gateway.v1 import usage_pb2 as pb
from penstock.gateway.v1 import usage_pb2_grpc

from gateway.callers import Caller, Callers, Context, name_request
from gateway.exchange import Exchanges
from gateway.request_log.codec import page_message, question_of, usage_message, usage_question_of
from gateway.request_log.room import LogRoom
from runtime.clock import Clock
from runtime.errors import DeadlineExceeded

SERVICE = "penstock.gateway.v1.UsageService"
ANSWER_S = 10.0
"""What looking something up may take. A filter that matches little in much may take longer: a shorter time helps."""

_Answer = TypeVar("_Answer")


class Mesh(Protocol):
    """What is asked of gateway.mesh.Mesh."""

    @property
    def callers(self) -> Callers: ...

    @property
    def exchanges(self) -> Exchanges: ...


class UsageServicer(usage_pb2_grpc.UsageServiceServicer):
    """Belongs to one event loop. `register` is a `runtime.serving.Register`."""

    def __init__(self, mesh: Mesh, room: LogRoom, clock: Clock) -> None:
        self._mesh, self._room, self._clock = mesh, room, clock

    def register(self, server: grpc.aio.Server) -> None:
        usage_pb2_grpc.add_UsageServiceServicer_to_server(self, server)

    async def ListRequests(self, request: pb.ListRequestsRequest, context: Context) -> pb.ListRequestsResponse:
        async def listed(caller: Caller) -> pb.ListRequestsResponse:
            store, asked = self._room.reading(), question_of(request, caller.key.tenant)
            return page_message(await _in_time(store.page(asked)))

        return await self._answered("ListRequests", context, listed)

    async def GetUsage(self, request: pb.GetUsageRequest, context: Context) -> pb.GetUsageResponse:
        async def summed(caller: Caller) -> pb.GetUsageResponse:
            now_ms = int(self._clock.wall_s() * 1000)
            store, asked = self._room.reading(), usage_question_of(request, caller.key.tenant, now_ms)
            return usage_message(await _in_time(store.usage(asked)))

        return await self._answered("GetUsage", context, summed)

    async def _answered(self, method: str, context: Context, answer: Callable[[Caller], Awaitable[_Answer]]) -> _Answer:
        exchange, caller = self._mesh.exchanges.begin(method), None
        try:
            exchange.caller = caller = await self._mesh.callers.enter(context)
            await self._mesh.exchanges.admit(exchange)
            answered = await answer(caller)
        except BaseException as raised:
            self._mesh.exchanges.failed(exchange, raised)
            if caller is not None and isinstance(raised, Exception):
                with suppress(grpc.aio.BaseError):  # who has gone meanwhile needs no id to ask about it
                    await name_request(context, caller)
            raise
        await name_request(context, caller)
        self._mesh.exchanges.answered(exchange)
        return answered


async def _in_time(looked_up: Awaitable[_Answer]) -> _Answer:
    """Raises DeadlineExceeded."""
    try:
        async with asyncio.timeout(ANSWER_S):
            return await looked_up
    except TimeoutError as error:
        raise DeadlineExceeded(f"the request log took longer than {ANSWER_S:g} s; ask for a shorter time") from error
