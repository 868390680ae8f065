"""One ModelStreamInfer stream: many requests at once, each with one or more responses, errors in their midst.

Owns the stream's tasks and the order of its writes. Requests to models with one response are answered in the order in which
they came, as Triton does; those of decoupled models as their responses come. With metadata `triton_grpc_error: true` the
first error ends the stream with its status. Written with reads and writes on the context: cancelled async-generator handlers
leak in grpc.aio (grpc#43360).
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import grpc.aio
from inference import grpc_service_pb2

from runtime.errors import PenstockError
from runtime.status import translated
from runtime.whole_batches import Writes, whole
from worker.inference import TableInference
from worker.kserve.codec import parse, streamed
from worker.models import ModelTable, UnknownModel
from worker.types import CallContext, Kind

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
    except BaseExceptionGroup as group:
        # Tasks raise only what is to end the stream; the others were cancelled for it.
        await stream.writes.ended()  # or its status could not leave
        raise group.exceptions[0] from None


class _Stream:
    def __init__(
        self, inference: TableInference, table: ModelTable, context: grpc.aio.ServicerContext[Any, Any], call: CallContext
    ) -> None:
        self._inference = inference
        self._table = table
        self._context = context
        self._call = call
        self.writes = Writes(context)
        self._places = asyncio.Semaphore(_IN_FLIGHT)
        self._as_status = any(
            key == _ERRORS_AS_STATUS and value in ("true", b"true") for key, value in context.invocation_metadata() or ()
        )

    async def read(self, tasks: asyncio.TaskGroup) -> None:
        before: asyncio.Event | None = None
        while True:
            await self._places.acquire()
            payload = await whole(self._context.read())
            if payload is grpc.aio.EOF:
                return
            try:
                request = parse(payload)
            except PenstockError as error:
                await self._refuse(error, "", before)
                self._places.release()
                continue
            if self._ordered(request):
                ended = asyncio.Event()
                tasks.create_task(self._answer(request, before, ended))
                before = ended
            else:
                tasks.create_task(self._answer(request, None, None))

    async def _answer(
        self, request: grpc_service_pb2.ModelInferRequest, before: asyncio.Event | None, ended: asyncio.Event | None
    ) -> None:
        try:
            async with aclosing(self._inference.stream("", "", request, self._call)) as responses:
                async for response in responses:
                    await self._write(streamed(response), before)
        except (asyncio.CancelledError, grpc.aio.BaseError):
            raise
        except Exception as raised:
            await self._refuse(translated(raised, _METHOD), request.id, before)
        finally:
            self._places.release()
            if ended is not None:
                ended.set()

    async def _refuse(self, error: PenstockError, request_id: str, before: asyncio.Event | None) -> None:
        if self._as_status:
            raise error
        message = grpc_service_pb2.ModelStreamInferResponse(error_message=error.message)
        message.infer_response.id = request_id
        await self._write(message.SerializeToString(), before)

    def _ordered(self, request: grpc_service_pb2.ModelInferRequest) -> bool:
        try:
            return self._table.get(request.model_name, request.model_version).kind is Kind.TENSORS
        except UnknownModel:
            return True

    async def _write(self, message: bytes, before: asyncio.Event | None) -> None:
        if before is not None:
            await before.wait()
        await self.writes.write(message)
