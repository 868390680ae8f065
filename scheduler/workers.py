"""Workers as the scheduler calls them: places held and given back, a drain.

One channel to each worker that was called lately, over mTLS, answered by that very worker or by nobody; the one that was not
used for longest goes when there are too many. Sees generated messages; errors come out as our own classes. Never tries again
and never decides whom to ask.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
from penstock.worker.v1 import worker_pb2, worker_pb2_grpc

from placement.types import Worker
from runtime.channel import inner_channel
from runtime.errors import Code, PenstockError
from runtime.identity import NodeIdentity, Role
from runtime.ids import ModelName, ModelVersion, NodeId, TenantId, WorkerId
from runtime.status import error_of

AT_MOST = 512
"""Channels that are open at once."""

ANSWER_S = 5.0
"""How long a worker may take to answer, beside what it was asked to wait."""

TOLD_S = 2.0
"""A worker that was told to drain answers when it has; one that has not refused after so long was told."""

OpenChannel = Callable[[Worker], grpc.aio.Channel]


class TooManyWorkers(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="TOO_MANY_WORKERS_CALLED"):
    """As many workers are being called by this scheduler as it calls at once."""


@dataclass(slots=True, eq=False)
class _Line:
    channel: grpc.aio.Channel
    stub: Any
    calls: int = 0


class WorkerPeers:
    """Open while entered. Belongs to one event loop."""

    def __init__(self, identity: NodeIdentity, *, at_most: int = AT_MOST, open_channel: OpenChannel | None = None) -> None:
        """`open_channel` replaces the mTLS channel to a worker's address that only that worker can answer."""
        self._at_most = at_most
        self._open = open_channel or (
            lambda worker: inner_channel(worker.address, identity, Role.WORKER, node_id=NodeId(worker.worker_id))
        )
        self._lines: OrderedDict[tuple[WorkerId, str], _Line] = OrderedDict()

    def __len__(self) -> int:
        """How many channels are open."""
        return len(self._lines)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lines = list(self._lines.values())
        self._lines.clear()
        await asyncio.gather(*(line.channel.close() for line in lines))

    async def hold(
        self,
        worker: Worker,
        *,
        hold_id: str,
        model: ModelName,
        version: ModelVersion,
        tenant: TenantId,
        wait_s: float,
        ttl_s: float,
        token_sha256: bytes = b"",
    ) -> ModelVersion:
        """Wait there for a place, and have it kept; the version it is for. Cancelled while it waits, it is withdrawn.

        Raises what the worker answers: RESOURCE_EXHAUSTED where none came free in time, NOT_FOUND or FAILED_PRECONDITION
        where the model does not answer there, UNAVAILABLE where nobody does or it drains.
        """
        request = worker_pb2.HoldSlotRequest(
            hold_id=hold_id,
            model=model,
            version=version,
            tenant=tenant,
            wait_ms=round(wait_s * 1000),
            ttl_ms=max(1, round(ttl_s * 1000)),
            token_sha256=token_sha256,
        )
        async with self._line(worker) as line:
            answer = await line.stub.HoldSlot(request, timeout=wait_s + ANSWER_S)
            return ModelVersion(answer.version)

    async def release(self, worker: Worker, hold_id: str) -> None:
        """Give a place back, or stop waiting for one."""
        async with self._line(worker) as line:
            await line.stub.ReleaseSlot(worker_pb2.ReleaseSlotRequest(hold_id=hold_id), timeout=ANSWER_S)

    async def drain(self, worker: Worker, grace_s: float) -> None:
        """Return when the worker was told; it goes on by itself."""
        async with self._line(worker) as line:
            try:
                await line.stub.Drain(worker_pb2.DrainRequest(grace_ms=round(grace_s * 1000)), timeout=TOLD_S)
            except grpc.aio.AioRpcError as failure:
                if failure.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise
                if line.channel.get_state() is not grpc.ChannelConnectivity.READY:
                    raise

    @asynccontextmanager
    async def _line(self, worker: Worker) -> AsyncIterator[_Line]:
        line = await self._opened(worker)
        line.calls += 1
        try:
            yield line
        except grpc.aio.AioRpcError as failure:
            raise error_of(failure) from failure
        finally:
            line.calls -= 1

    async def _opened(self, worker: Worker) -> _Line:
        key = (worker.worker_id, worker.address)
        line = self._lines.get(key)
        if line is None:
            idle = self._idle() if len(self._lines) >= self._at_most else None
            channel = self._open(worker)
            line = self._lines[key] = _Line(channel, worker_pb2_grpc.WorkerServiceStub(channel))
            if idle is not None:
                line.calls += 1  # nobody else may find it idle while the other one is being closed
                try:
                    await self._lines.pop(idle).channel.close()
                finally:
                    line.calls -= 1
        self._lines.move_to_end(key)
        return line

    def _idle(self) -> tuple[WorkerId, str]:
        """The one that was not used for longest. Raises TooManyWorkers."""
        for key, line in self._lines.items():
            if not line.calls:
                return key
        raise TooManyWorkers(f"{len(self._lines)} workers are being called, as many as may be at once", retry_after_s=1.0)
