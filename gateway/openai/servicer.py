"""penstock.gateway.v1.OpenAIService: the OpenAI API over HttpBody, to which the edge adds HTTP.

`OpenAIServicer(mesh).register` puts it onto a server under the name `SERVICE`; `mesh` is a gateway.mesh.Mesh. Failures leave as
OpenAI's error bodies with their status in the initial metadata; those of an answer that has begun, as its last event. Stream
handlers write on the context: cancelled async-generator handlers leak in grpc.aio (grpc#43360).
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from functools import partial

import grpc.aio
from google.api.httpbody_pb2 import HttpBody
from penstock.gateway.v1 import gateway_pb2 as pb
from penstock.gateway.v1 import gateway_pb2_grpc

from gateway.callers import REQUEST_ID, Caller, Context
from gateway.openai.catalogue import Catalogue, not_served
from gateway.openai.codec import signature_of
from gateway.openai.embeddings import rendered, vectors
from gateway.openai.errors import AnswerCutShort, error_answer, error_event
from gateway.openai.events import EVENTS_TYPE, JSON_TYPE, TextAnswer
from gateway.openai.read_ahead import ReadAhead
from gateway.openai.requests import text_asked, vectors_asked
from gateway.openai.text import check_task, check_text, pieces, session_of
from gateway.openai.types import Mesh, Piece, Style
from gateway.versions import split_name
from runtime.errors import PenstockError
from runtime.status import translated

SERVICE = "penstock.gateway.v1.OpenAIService"
_METHODS = {Style.CHAT: "CreateChatCompletion", Style.COMPLETION: "CreateCompletion"}
_IDS = {Style.CHAT: "chatcmpl-", Style.COMPLETION: "cmpl-"}
VERSION_HEADER = "x-penstock-model-version"
_UNKEPT = (("cache-control", "no-cache"),)
"""As the HTML standard advises for server-sent events: nothing on the way should gather them."""


class _Answering:
    """One call being answered: whether anything has left yet, and what it is counted as."""

    __slots__ = ("_context", "_headers_sent", "begun", "caller", "method", "model", "started_s", "version")

    def __init__(self, method: str, context: Context, started_s: float) -> None:
        self.method, self.started_s, self._context = method, started_s, context
        self.model, self.version, self.begun = "", "", False
        self.caller: Caller | None = None
        self._headers_sent = False

    async def headers(self, *more: tuple[str, str]) -> None:
        """Send the initial metadata, once: the request's id, the version that answers, and what else is to be said then."""
        if not self._headers_sent:
            self._headers_sent = True
            ids = ((REQUEST_ID, self.caller.request_id),) if self.caller is not None else ()
            versions = ((VERSION_HEADER, self.version),) if self.version else ()
            await self._context.send_initial_metadata((*ids, *versions, *more))

    def granted(self, version: str) -> None:
        """This version was asked; what leaves from now on is its answer."""
        self.version = version

    async def write(self, content_type: str, data: bytes) -> None:
        await self.headers(*(_UNKEPT if content_type == EVENTS_TYPE else ()))
        # Only the first message's content type counts, but each has to be a whole HttpBody.
        await self._context.write(HttpBody(content_type=content_type, data=data))
        self.begun = True


class OpenAIServicer(gateway_pb2_grpc.OpenAIServiceServicer):
    """Belongs to one event loop."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._loop = asyncio.get_running_loop()
        self._catalogue = Catalogue(mesh.fleet, mesh.registry, self._loop.time)

    def register(self, server: grpc.aio.Server) -> None:
        gateway_pb2_grpc.add_OpenAIServiceServicer_to_server(self, server)

    async def CreateChatCompletion(self, request: HttpBody, context: Context) -> None:  # type: ignore[override]  # writes
        await self._answer_text(Style.CHAT, request.data, context)

    async def CreateCompletion(self, request: HttpBody, context: Context) -> None:  # type: ignore[override]  # writes
        await self._answer_text(Style.COMPLETION, request.data, context)

    async def CreateEmbeddings(self, request: HttpBody, context: Context) -> HttpBody:
        async def answer(answering: _Answering, caller: Caller) -> bytes:
            asked, mesh = vectors_asked(request.data), self._mesh
            answering.model = asked.model
            caller.key.authorise_call(asked.model)
            version = await mesh.targets.found(caller.key, asked.model, asked.wanted, deadline_s=caller.deadline_s)
            check_task(mesh.fleet, asked.model, version, ("embedding",))
            answering.version = version = mesh.copies.chosen(asked.model, version)
            signature = signature_of(await mesh.copies.metadata(asked.model, version))
            max_rows = min((copy.max_batch_size for _, copy in mesh.fleet.copies(asked.model, version)), default=0)
            return await rendered(asked, await vectors(mesh.router, asked, version, signature, max_rows, caller.call()))

        return await self._answer("CreateEmbeddings", context, answer)

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> HttpBody:
        async def answer(_: _Answering, caller: Caller) -> bytes:
            return await self._catalogue.all(partial(self._mesh.targets.sees, caller.key))

        return await self._answer("ListModels", context, answer)

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> HttpBody:
        async def answer(answering: _Answering, caller: Caller) -> bytes:
            answering.model, wanted = split_name(request.model)
            try:
                version = self._mesh.targets.pinned(caller.key, answering.model, wanted)
            except PenstockError:  # another tenant's, withdrawn, or not there yet: nothing of it is told
                raise not_served(request.model) from None
            return await self._catalogue.one(request.model, answering.model, version)

        return await self._answer("GetModel", context, answer)

    async def _answer_text(self, style: Style, body: bytes, context: Context) -> None:
        answering = _Answering(_METHODS[style], context, self._loop.time())
        try:
            answering.caller = caller = await self._mesh.callers.enter(context)
            asked = text_asked(style, body)
            answering.model = asked.model
            caller.key.authorise_call(asked.model)
            session = session_of(asked, caller.key.tenant)
            version = await self._mesh.targets.found(caller.key, asked.model, asked.wanted, session, caller.deadline_s)
            check_text(self._mesh.fleet, style, asked.model, version)
            answer = TextAnswer(style, asked, _IDS[style] + uuid.uuid4().hex, int(time.time()))
            given = pieces(self._mesh.router, asked, version, caller.call(), answering.granted)
            if asked.stream:
                await self._stream(answering, given, answer)
            else:
                await answering.write(JSON_TYPE, await self._whole(given, answer))
        except BaseException as raised:
            error = self._failure(answering, raised, context)
            if answering.begun:
                await answering.write(EVENTS_TYPE, error_event(error))
            else:
                refusal = error_answer(error)
                await answering.headers(*refusal.headers)
                await answering.write(JSON_TYPE, refusal.body)
            return
        self._mesh.metrics.answered(answering.method, answering.model, self._loop.time() - answering.started_s)

    async def _stream(self, answering: _Answering, given: AsyncGenerator[Piece, None], answer: TextAnswer) -> None:
        async with ReadAhead(given) as ahead:
            opening = answer.first()  # leaves with the first piece: until then a failure can still have a status
            while batch := await ahead.take():
                if events := answer.events(batch):
                    await answering.write(EVENTS_TYPE, opening + events)
                    opening = b""

    async def _whole(self, given: AsyncGenerator[Piece, None], answer: TextAnswer) -> bytes:
        texts: list[str] = []
        async with aclosing(given):
            async for piece in given:
                texts.append(piece.text)
                if piece.finish is not None:
                    return answer.whole("".join(texts), piece.finish, piece.usage)
        raise AnswerCutShort("the worker's answer ended before its end was said; send the request again")

    async def _answer(
        self, method: str, context: Context, answer: Callable[[_Answering, Caller], Awaitable[bytes]]
    ) -> HttpBody:
        answering = _Answering(method, context, self._loop.time())
        try:
            answering.caller = caller = await self._mesh.callers.enter(context)
            body = await answer(answering, caller)
        except BaseException as raised:
            refusal = error_answer(self._failure(answering, raised, context))
            await answering.headers(*refusal.headers)
            return HttpBody(content_type=JSON_TYPE, data=refusal.body)
        await answering.headers()
        self._mesh.metrics.answered(method, answering.model, self._loop.time() - answering.started_s)
        return HttpBody(content_type=JSON_TYPE, data=body)

    def _failure(self, answering: _Answering, raised: BaseException, context: Context) -> PenstockError:
        """What to answer, counted. Raises what cannot be answered: the caller went, or the process is ending."""
        # A write to a client that has gone fails in ways of its own before the cancellation arrives.
        if not isinstance(raised, Exception) or context.done():
            self._mesh.metrics.failed(answering.method, answering.model, "CANCELLED")
            if isinstance(raised, Exception):
                raise asyncio.CancelledError from raised
            raise raised
        error = translated(raised, answering.method)
        self._mesh.metrics.failed(answering.method, answering.model, error.code.name)
        return error
