"""How a stream ends: its status waits for what is being written, whatever the client does meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import pytest
from inference import grpc_service_pb2 as pb

from runtime.errors import InvalidArgument
from worker.kserve.streaming import serve_stream
from worker.models import ModelTable
from worker.types import CallContext


@dataclass
class SlowReader:
    """A call whose client takes nothing before it is let."""

    requests: list[bytes]
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    taken: asyncio.Event = field(default_factory=asyncio.Event)
    written: list[bytes] = field(default_factory=list)

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return (("triton_grpc_error", "true"),)

    async def read(self) -> bytes:
        if not self.requests:
            await asyncio.Event().wait()
        return self.requests.pop(0)

    async def write(self, message: bytes) -> None:
        self.begun.set()
        await self.taken.wait()
        self.written.append(message)


@dataclass
class FirstAnswersThenFails:
    context: SlowReader

    async def stream(
        self, model: str, version: str, request: pb.ModelInferRequest, call: CallContext
    ) -> AsyncGenerator[pb.ModelInferResponse, None]:
        if request.id == "fails":
            await self.context.begun.wait()
            raise InvalidArgument("not so")
        yield pb.ModelInferResponse(id=request.id)


async def test_the_status_of_a_failed_stream_waits_for_the_write_before_it() -> None:
    context = SlowReader([pb.ModelInferRequest(id=each).SerializeToString() for each in ("answers", "fails")])
    inference: Any = FirstAnswersThenFails(context)
    serving = asyncio.create_task(serve_stream(inference, ModelTable(), context, CallContext()))  # type: ignore[arg-type]
    await context.begun.wait()
    for _ in range(20):
        await asyncio.sleep(0)
    assert not serving.done()
    context.taken.set()
    with pytest.raises(InvalidArgument, match="not so"):
        await serving
    assert len(context.written) == 1
