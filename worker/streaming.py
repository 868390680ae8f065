"""One ModelStreamInfer stream: many requests at once, each with one or more responses, errors in their midst.

Owns the stream's tasks and the order of its writes. Requests to models with one response are answered in the order in which they
came, as Triton does; those of decoupled models as their responses come. With metadata `triton_grpc_error: true` the first error
ends the stream with its status. Written with reads and writes on the context: cancelled async-generator handlers leak in
grpc.aio (grpc#43360).
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import grpc.aio
from inference import grpc_service_pb2

from runtime.errors import PenstockError
from runtime.status import translated
from worker.inference import TableInference
from worker.kserve import parse
from worker.models import ModelTable, TensorModel, UnknownModel
from worker.types import CallContext

_METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"
_IN_FLIGHT = 128
"""Requests of one stream that may run at once; more are not read until some end."""

_ERRORS_AS_STATUS = "triton_grpc_error"


async def serve_stream(
    inference: TableInference, table: ModelTable, context: grpc.aio.ServicerContext[Any, Any], call: CallContext
) -> None:
    """Serve one stream until the client ends it and every request of it is answered."""
    stream = _Stream(inference, table, context, call)
    try:
        async with asyncio.TaskGroup() as tasks:
            await stream.read(tasks)
    except* PenstockError as errors:
        raise errors.exceptions[0] from None


class _Stream:
    def __init__(
        self, inference: TableInference, table: ModelTable, context: grpc.aio.ServicerContext[Any, Any], call: CallContext
    ) -> None:
        self._inference = inference
        self._table = table
        self._context = context
        self._call = call
        self._writing = asyncio.Lock()
        self._places = asyncio.Semaphore(_IN_FLIGHT)
        self._as_status = any(
            key == _ERRORS_AS_STATUS and value in ("true", b"true") for key, value in context.invocation_metadata() or ()
        )

    async def read(self, tasks: asyncio.TaskGroup) -> None:
        before: asyncio.Event | None = None
        while True:
            await self._places.acquire()
            payload = await self._context.read()
            if payload is grpc.aio.EOF:
                return
            ended = asyncio.Event()
            tasks.create_task(self._answer(payload, before, ended))
            before = ended

    async def _answer(self, payload: bytes, before: asyncio.Event | None, ended: asyncio.Event) -> None:
        message = grpc_service_pb2.ModelStreamInferResponse()
        turn: asyncio.Event | None = None
        try:
            request = parse(payload)
            message.infer_response.id = request.id
            turn = before if self._ordered(request) else None
            async with aclosing(self._inference.stream("", "", request, self._call)) as responses:
                async for response in responses:
                    if turn is not None:
                        await turn.wait()
                    await self._write(grpc_service_pb2.ModelStreamInferResponse(infer_response=response))
        except asyncio.CancelledError:
            raise
        except Exception as raised:
            error = translated(raised, _METHOD)
            if self._as_status:
                raise error from None
            if turn is not None:
                await turn.wait()
            message.error_message = error.message
            await self._write(message)
        finally:
            self._places.release()
            ended.set()

    def _ordered(self, request: grpc_service_pb2.ModelInferRequest) -> bool:
        try:
            return isinstance(self._table.get(request.model_name, request.model_version), TensorModel)
        except UnknownModel:
            return True

    async def _write(self, message: grpc_service_pb2.ModelStreamInferResponse) -> None:
        async with self._writing:  # one write at a time is what grpc.aio allows
            await self._context.write(message.SerializeToString())
