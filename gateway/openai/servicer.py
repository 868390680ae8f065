"""penstock.gateway.v1.OpenAIService: the OpenAI API over HttpBody, to which the edge adds HTTP.

`OpenAIServicer(mesh, files, batches).register` puts it onto a server under the name `SERVICE`; `mesh` is a gateway.mesh.Mesh.
Failures leave as OpenAI's error bodies with their status in the initial metadata; those of events that have begun, as the last
one. Stream handlers write on the context: cancelled async-generator handlers leak in grpc.aio (grpc#43360).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from functools import partial
from time import perf_counter

import grpc.aio
from google.api.httpbody_pb2 import HttpBody
from penstock.gateway.v1 import gateway_pb2 as pb
from penstock.gateway.v1 import gateway_pb2_grpc

from gateway.callers import REQUEST_ID, Caller, Context
from gateway.exchange import Exchange, Headers
from gateway.openai.answers import Answers, whole
from gateway.openai.batches import Batches
from gateway.openai.catalogue import Catalogue, not_served
from gateway.openai.errors import error_answer, error_event
from gateway.openai.events import EVENTS_TYPE, JSON_TYPE, TextEvents
from gateway.openai.files import Files, tenant_of
from gateway.openai.read_ahead import Pace, ReadAhead
from gateway.openai.requests import text_asked, vectors_asked
from gateway.openai.stored import BatchStore, FileStore
from gateway.openai.types import Mesh, Style
from gateway.versions import split_name
from runtime.errors import PenstockError
from runtime.status import translated
from runtime.telemetry import request_id_var

SERVICE = "penstock.gateway.v1.OpenAIService"
_METHODS = {Style.CHAT: "CreateChatCompletion", Style.COMPLETION: "CreateCompletion"}
_CONTENT_TYPE = "application/octet-stream"
VERSION_HEADER = "x-penstock-model-version"
MODEL_HEADER = "x-penstock-model"
OVERHEAD_HEADER = "x-penstock-overhead-ms"
_UNKEPT = (("cache-control", "no-cache"),)
"""As the HTML standard advises for server-sent events: nothing on the way should gather them."""


class _Answering:
    """One call being answered: whether anything has left yet."""

    __slots__ = ("_context", "_headers_sent", "begun_as", "exchange")

    def __init__(self, exchange: Exchange, context: Context) -> None:
        self.exchange, self._context = exchange, context
        self.begun_as = ""
        self._headers_sent = False

    async def headers(self, *more: tuple[str, str]) -> None:
        """Send the initial metadata, once: the request's id, who answers, how long it took, and what else is to be said."""
        if not self._headers_sent:
            self._headers_sent = True
            exchange = self.exchange
            request_id = exchange.caller.request_id if exchange.caller is not None else request_id_var.get()
            ids = ((REQUEST_ID, request_id),) if request_id else ()
            metadata = (*ids, *_answerer(exchange), *_times(exchange), *exchange.headers(), *more)
            await self._context.send_initial_metadata(metadata)

    async def write(self, content_type: str, data: bytes) -> None:
        await self.headers(*(_UNKEPT if content_type == EVENTS_TYPE else ()))
        # Only the first message's content type counts, but each has to be a whole HttpBody.
        await self._context.write(HttpBody(content_type=content_type, data=data))
        self.begun_as = content_type


def _answerer(exchange: Exchange) -> Headers:
    """The version that answers, and the model where it is not the one that was asked for."""
    versions = ((VERSION_HEADER, exchange.version),) if exchange.version else ()
    is_other = exchange.asked and exchange.model not in ("", exchange.asked)
    return (*versions, (MODEL_HEADER, exchange.model)) if is_other else versions


def _times(exchange: Exchange) -> Headers:
    """How long it took until now, and how much of that was the gateway's own doing where that was measured."""
    elapsed_s = perf_counter() - exchange.started_s
    processing = ("openai-processing-ms", str(round(elapsed_s * 1000)))
    if exchange.waited_s is None:
        return (processing,)
    return processing, (OVERHEAD_HEADER, f"{(elapsed_s - exchange.waited_s) * 1000:.3f}")


class OpenAIServicer(gateway_pb2_grpc.OpenAIServiceServicer):
    """Belongs to one event loop."""

    def __init__(self, mesh: Mesh, files: FileStore, batches: BatchStore) -> None:
        self._mesh, self._answers = mesh, Answers(mesh)
        self._file_store, self._files, self._batches = files, Files(files), Batches(batches)
        self._loop, self._pace = asyncio.get_running_loop(), Pace()
        self._catalogue = Catalogue(mesh.fleet, mesh.registry, self._loop.time)

    def register(self, server: grpc.aio.Server) -> None:
        gateway_pb2_grpc.add_OpenAIServiceServicer_to_server(self, server)

    async def CreateChatCompletion(self, request: HttpBody, context: Context) -> None:  # type: ignore[override]  # writes
        await self._answer_text(Style.CHAT, request.data, context)

    async def CreateCompletion(self, request: HttpBody, context: Context) -> None:  # type: ignore[override]  # writes
        await self._answer_text(Style.COMPLETION, request.data, context)

    async def CreateEmbeddings(self, request: HttpBody, context: Context) -> HttpBody:
        async def answer(exchange: Exchange, _: Caller) -> bytes:
            exchange.says(asked=request.data)
            return await self._answers.vectors(vectors_asked(request.data), exchange)

        return await self._answer("CreateEmbeddings", context, answer, len(request.data), admits=False)

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> HttpBody:
        async def answer(_: Exchange, caller: Caller) -> bytes:
            return await self._catalogue.all(partial(self._mesh.targets.sees, caller.key))

        return await self._answer("ListModels", context, answer)

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> HttpBody:
        async def answer(exchange: Exchange, caller: Caller) -> bytes:
            exchange.model, wanted = split_name(request.model)
            try:
                version = self._mesh.targets.pinned(caller.key, exchange.model, wanted)
            except PenstockError:  # another tenant's, withdrawn, or not there yet: nothing of it is told
                raise not_served(request.model) from None
            return await self._catalogue.one(request.model, exchange.model, version)

        return await self._answer("GetModel", context, answer)

    async def CreateFile(self, request: HttpBody, context: Context) -> HttpBody:
        return await self._answer(
            "CreateFile", context, lambda _, caller: self._files.create(caller, request.content_type, request.data)
        )

    async def ListFiles(self, request: pb.ListFilesRequest, context: Context) -> HttpBody:
        async def answer(_: Exchange, caller: Caller) -> bytes:
            return await self._files.all(
                caller, purpose=request.purpose, limit=request.limit, after=request.after, order=request.order
            )

        return await self._answer("ListFiles", context, answer)

    async def GetFile(self, request: pb.GetFileRequest, context: Context) -> HttpBody:
        return await self._answer("GetFile", context, lambda _, caller: self._files.one(caller, request.file_id))

    async def DeleteFile(self, request: pb.DeleteFileRequest, context: Context) -> HttpBody:
        return await self._answer("DeleteFile", context, lambda _, caller: self._files.delete(caller, request.file_id))

    async def CreateBatch(self, request: HttpBody, context: Context) -> HttpBody:
        return await self._answer("CreateBatch", context, lambda _, caller: self._batches.create(caller, request.data))

    async def ListBatches(self, request: pb.ListBatchesRequest, context: Context) -> HttpBody:
        return await self._answer(
            "ListBatches", context, lambda _, caller: self._batches.all(caller, limit=request.limit, after=request.after)
        )

    async def GetBatch(self, request: pb.GetBatchRequest, context: Context) -> HttpBody:
        return await self._answer("GetBatch", context, lambda _, caller: self._batches.one(caller, request.batch_id))

    async def CancelBatch(self, request: pb.CancelBatchRequest, context: Context) -> HttpBody:
        return await self._answer("CancelBatch", context, lambda _, caller: self._batches.cancel(caller, request.batch_id))

    async def GetFileContent(self, request: pb.GetFileContentRequest, context: Context) -> None:  # type: ignore[override]  # writes
        async def write(answering: _Answering, caller: Caller) -> None:
            await self._mesh.exchanges.admit(answering.exchange)
            file = await self._files.found(caller, request.file_id)
            async with aclosing(self._file_store.content(tenant_of(caller), file)) as content:
                async for data in content:
                    await answering.write(_CONTENT_TYPE, data)
            if not answering.begun_as:
                await answering.write(_CONTENT_TYPE, b"")

        await self._written("GetFileContent", context, write)

    async def _answer_text(self, style: Style, body: bytes, context: Context) -> None:
        async def write(answering: _Answering, _: Caller) -> None:
            answering.exchange.says(asked=body)
            asked = text_asked(style, body)
            begun = await self._answers.begin_text(style, asked, answering.exchange)
            if not asked.stream:
                answering.exchange.says(answered=(answer := await whole(begun)))
                await answering.write(JSON_TYPE, answer)
                return
            async with ReadAhead(begun.pieces, self._pace) as ahead:
                if not (batch := await ahead.take()):
                    return
                events = TextEvents(style, begun.asked, begun.title())
                opening = events.first()  # leaves with the first piece: until then a failure can still have a status
                while batch:
                    if data := events.events(batch):
                        await answering.write(EVENTS_TYPE, opening + data)
                        opening = b""
                    batch = await ahead.take()

        await self._written(_METHODS[style], context, write, len(body))

    async def _written(
        self, method: str, context: Context, write: Callable[[_Answering, Caller], Awaitable[None]], request_bytes: int = 0
    ) -> None:
        """Have an answer written. Its failure leaves as an error body, or as the last of its events; else the call fails."""
        answering = _Answering(exchange := self._mesh.exchanges.begin(method, request_bytes), context)
        try:
            exchange.caller = caller = await self._mesh.callers.enter(context)
            await write(answering, caller)
        except BaseException as raised:
            error = self._failure(answering, raised, context)
            if answering.begun_as == EVENTS_TYPE:
                await answering.write(EVENTS_TYPE, error_event(error))
            elif answering.begun_as:
                raise error from raised
            else:
                refusal = error_answer(error)
                await answering.headers(*refusal.headers)
                await answering.write(JSON_TYPE, refusal.body)
            return
        self._mesh.exchanges.answered(exchange)

    async def _answer(
        self,
        method: str,
        context: Context,
        answer: Callable[[Exchange, Caller], Awaitable[bytes]],
        request_bytes: int = 0,
        *,
        admits: bool = True,
    ) -> HttpBody:
        """Have an answer made. `admits`: it counts as a request that asks nothing of a model; else it is let in on the way."""
        answering = _Answering(exchange := self._mesh.exchanges.begin(method, request_bytes), context)
        try:
            exchange.caller = caller = await self._mesh.callers.enter(context)
            if admits:
                await self._mesh.exchanges.admit(exchange)
            body = await answer(exchange, caller)
        except BaseException as raised:
            refusal = error_answer(self._failure(answering, raised, context))
            await answering.headers(*refusal.headers)
            return HttpBody(content_type=JSON_TYPE, data=refusal.body)
        await answering.headers()
        self._mesh.exchanges.answered(exchange)
        return HttpBody(content_type=JSON_TYPE, data=body)

    def _failure(self, answering: _Answering, raised: BaseException, context: Context) -> PenstockError:
        """What to answer, counted. Raises what cannot be answered: the caller went, or the process is ending."""
        # A write to a client that has gone fails in ways of its own before the cancellation arrives, and before `done` tells.
        if not isinstance(raised, Exception) or context.done() or isinstance(raised, grpc.aio.InternalError):
            self._mesh.exchanges.failed(answering.exchange, asyncio.CancelledError())
            if isinstance(raised, Exception):
                raise asyncio.CancelledError from raised
            raise raised
        error = translated(raised, answering.exchange.method)
        self._mesh.exchanges.failed(answering.exchange, error)
        return error
