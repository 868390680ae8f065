"""One ModelStreamInfer stream at the edge: many requests at once, each sent to a worker of its own, errors in their midst.

Owns the stream's tasks and the order of its writes: requests to tensor models are answered in the order in which they came, as
Triton does; those to models that generate as their answers come. An error of one request leaves the stream open, unless the
client asked for a status by metadata `triton_grpc_error: true`. Answers pass through as the worker wrote them. Written with
reads and writes on the context: cancelled async-generator handlers leak in grpc.aio (grpc#43360).
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace

import grpc.aio

from gateway.callers import Caller, Callers, Context
from gateway.dispatch import Dispatch
from gateway.exchange import Exchange, Exchanges
from gateway.fleet import Fleet
from gateway.kserve.codec import stream_error
from gateway.kserve.sequences import SEQUENCE_END, request_of
from gateway.links.types import Method
from gateway.regions import Regions
from gateway.targets import Targets
from gateway.wire import RequestHead, head_of
from runtime.errors import PenstockError
from runtime.status import translated
from runtime.whole_batches import Writes, whole

METHOD = "ModelStreamInfer"
_ERRORS_AS_STATUS = "triton_grpc_error"
_GENERATING = ("chat", "completion")


class InferenceStream:
    """Serves one stream, once."""

    def __init__(
        self,
        callers: Callers,
        exchanges: Exchanges,
        dispatch: Dispatch,
        targets: Targets,
        fleet: Fleet,
        context: Context,
        caller: Caller,
        in_flight: int,
        regions: Regions,
    ) -> None:
        self._callers, self._exchanges, self._dispatch = callers, exchanges, dispatch
        self._targets, self._fleet = targets, fleet
        self._context, self._caller = context, caller
        self._region = regions.of(caller.headers, caller.address)
        self._places = asyncio.Semaphore(in_flight)
        self._writes = Writes(context)
        self._as_status = caller.headers.get(_ERRORS_AS_STATUS) == "true"
        self._identified = True  # the first request's key was looked at when the stream was let in

    async def serve(self) -> None:
        """Return once the client has ended the stream and every request of it is answered."""
        try:
            async with asyncio.TaskGroup() as tasks:
                await self._read(tasks)
        except BaseExceptionGroup as group:
            # Tasks raise only what is to end the stream; the others were cancelled for it.
            await self._writes.ended()  # or its status could not leave
            raise group.exceptions[0] from None

    async def _read(self, tasks: asyncio.TaskGroup) -> None:
        before: asyncio.Event | None = None
        while True:
            await self._places.acquire()
            payload = await whole(self._context.read())
            if not isinstance(payload, bytes):  # grpc.aio.EOF
                return
            head, exchange = RequestHead(""), self._exchanges.begin(METHOD, len(payload))
            exchange.caller, exchange.streamed = self._caller, True
            try:
                await self._identify(exchange)
                head = head_of(payload)
                self._caller.key.authorise_call(head.model)
                await self._exchanges.admit(exchange, head.model)
            except PenstockError as error:
                await self._refuse(error, head, before, exchange)
                self._places.release()
                continue
            if self._generates(head):
                tasks.create_task(self._answer(payload, head, None, None, exchange))
            else:
                ended = asyncio.Event()
                tasks.create_task(self._answer(payload, head, before, ended, exchange))
                before = ended

    async def _identify(self, exchange: Exchange) -> None:
        """A stream may outlive its key, and what limits it. Raises like `Callers.identify`."""
        if self._identified:
            self._identified = False
        elif (key := await self._callers.identify(self._caller.headers)) is not self._caller.key:
            exchange.caller = self._caller = replace(self._caller, key=key)

    async def _answer(
        self, payload: bytes, head: RequestHead, before: asyncio.Event | None, ended: asyncio.Event | None, exchange: Exchange
    ) -> None:
        key, call = self._caller.key, self._caller.call(head.priority)
        try:
            version = await self._targets.found(key, head.model, head.version, head.session_key, call.deadline_s)
            request = request_of(head, version, self._region, key.tenant)
            async with aclosing(self._dispatch.stream(Method.STREAM_INFER, request, payload, call, exchange)) as answers:
                async for answer in answers:
                    exchange.answering(len(answer))
                    await self._write(answer, before)
            if request.sticky and head.parameters.get(SEQUENCE_END):
                self._fleet.state.forget_session(request.model, request.session_key)
            self._exchanges.answered(exchange)
        except (asyncio.CancelledError, grpc.aio.BaseError):
            self._exchanges.failed(exchange, asyncio.CancelledError())
            raise
        except Exception as raised:
            await self._refuse(translated(raised, METHOD), head, before, exchange)
        finally:
            self._places.release()
            if ended is not None:
                ended.set()

    async def _refuse(self, error: PenstockError, head: RequestHead, before: asyncio.Event | None, exchange: Exchange) -> None:
        self._exchanges.failed(exchange, error)
        if self._as_status:
            raise error
        await self._write(stream_error(error.message, head.request_id), before)

    async def _write(self, answer: bytes, before: asyncio.Event | None) -> None:
        if before is not None:
            await before.wait()
        await self._writes.write(answer)

    def _generates(self, head: RequestHead) -> bool:
        copies = self._fleet.copies(head.model)
        return bool(copies) and copies[0][1].task in _GENERATING
