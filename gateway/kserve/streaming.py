"""One ModelStreamInfer stream at the edge: many requests at once, each sent to a worker of its own, errors in their midst.

Owns the stream's tasks and the order of its writes: requests to tensor models are answered in the order in which they came, as
Triton does; those to models that generate as their answers come. An error of one request leaves the stream open, unless the
client asked for a status by metadata `triton_grpc_error: true`. Answers pass through as the worker wrote them. Written with
reads and writes on the context: cancelled async-generator handlers leak in grpc.aio (grpc#43360).
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from time import perf_counter

import grpc.aio

from gateway.callers import Caller, Callers, Context
from gateway.fleet import Fleet
from gateway.kserve.codec import stream_error
from gateway.kserve.sequences import SEQUENCE_END, request_of
from gateway.links.types import Method
from gateway.metrics import GatewayMetrics
from gateway.regions import Regions
from gateway.routing import Router
from gateway.targets import Targets
from gateway.wire import RequestHead, head_of
from runtime.errors import PenstockError
from runtime.status import translated
from runtime.whole_batches import whole

METHOD = "ModelStreamInfer"
_ERRORS_AS_STATUS = "triton_grpc_error"
_GENERATING = ("chat", "completion")


class InferenceStream:
    """Serves one stream, once."""

    def __init__(
        self,
        callers: Callers,
        router: Router,
        targets: Targets,
        fleet: Fleet,
        metrics: GatewayMetrics,
        context: Context,
        caller: Caller,
        in_flight: int,
        regions: Regions,
    ) -> None:
        self._callers, self._router, self._targets = callers, router, targets
        self._fleet, self._metrics = fleet, metrics
        self._context, self._caller = context, caller
        self._region = regions.of(caller.headers, caller.address)
        self._places = asyncio.Semaphore(in_flight)
        self._writing = asyncio.Lock()
        self._as_status = caller.headers.get(_ERRORS_AS_STATUS) == "true"
        self._charged = True  # the first request was paid for when the stream was let in

    async def serve(self) -> None:
        """Return once the client has ended the stream and every request of it is answered."""
        try:
            async with asyncio.TaskGroup() as tasks:
                await self._read(tasks)
        except BaseExceptionGroup as group:
            # Tasks raise only what is to end the stream; the others were cancelled for it.
            raise group.exceptions[0] from None

    async def _read(self, tasks: asyncio.TaskGroup) -> None:
        before: asyncio.Event | None = None
        while True:
            await self._places.acquire()
            payload = await whole(self._context.read())
            if not isinstance(payload, bytes):  # grpc.aio.EOF
                return
            head, started_s = RequestHead(""), perf_counter()
            try:
                await self._charge()
                head = head_of(payload)
                self._caller.key.authorise_call(head.model)
            except PenstockError as error:
                await self._refuse(error, head, before)
                self._places.release()
                continue
            if self._generates(head):
                tasks.create_task(self._answer(payload, head, None, None, started_s))
            else:
                ended = asyncio.Event()
                tasks.create_task(self._answer(payload, head, before, ended, started_s))
                before = ended

    async def _charge(self) -> None:
        if self._charged:
            self._charged = False
        else:
            await self._callers.charge(self._caller.headers)

    async def _answer(
        self, payload: bytes, head: RequestHead, before: asyncio.Event | None, ended: asyncio.Event | None, started_s: float
    ) -> None:
        key, call = self._caller.key, self._caller.call(head.priority)
        try:
            version = await self._targets.found(key, head.model, head.version, head.session_key, call.deadline_s)
            request = request_of(head, version, self._region, key.tenant)
            async with aclosing(self._router.stream(Method.STREAM_INFER, request, payload, call)) as answers:
                async for answer in answers:
                    await self._write(answer, before)
            if request.sticky and head.parameters.get(SEQUENCE_END):
                self._fleet.state.forget_session(request.model, request.session_key)
            self._metrics.answered(METHOD, head.model, perf_counter() - started_s)
        except (asyncio.CancelledError, grpc.aio.BaseError):
            raise
        except Exception as raised:
            await self._refuse(translated(raised, METHOD), head, before)
        finally:
            self._places.release()
            if ended is not None:
                ended.set()

    async def _refuse(self, error: PenstockError, head: RequestHead, before: asyncio.Event | None) -> None:
        self._metrics.failed(METHOD, head.model, error.code.name)
        if self._as_status:
            raise error
        await self._write(stream_error(error.message, head.request_id), before)

    async def _write(self, answer: bytes, before: asyncio.Event | None) -> None:
        if before is not None:
            await before.wait()
        async with self._writing:  # one write at a time is what grpc.aio allows
            await whole(self._context.write(answer))

    def _generates(self, head: RequestHead) -> bool:
        copies = self._fleet.copies(head.model)
        return bool(copies) and copies[0][1].task in _GENERATING
