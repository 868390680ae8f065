"""penstock.gateway.v1.InferenceRestService: the Open Inference Protocol by HTTP, or over HttpBody where an edge transcodes.

`InferenceRestServicer(mesh, questions).register` puts it onto a gRPC server under the name `SERVICE`; `take_http` is called by
`gateway.http.server`. Neither makes messages of what comes and leaves: tensors are copied once each way. Failures leave as
{"error": "..."} with their status in the initial metadata; those of events that have begun, as the last one. The stream's
handler writes on the context: cancelled async-generator handlers leak in grpc.aio (grpc#43360).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Any, cast

import grpc
import grpc.aio

from gateway.callers import REQUEST_ID, Caller, Context
from gateway.exchange import Exchange
from gateway.kserve.questions import Questions
from gateway.kserve.restrictions import Restrictions
from gateway.mesh import Mesh
from gateway.openai.read_ahead import ReadAhead
from gateway.rest.documents import OPEN, TWINS, Documents
from gateway.rest.envelope import asked_by_http, asked_of, message_of
from gateway.rest.errors import RequestRefused, error_answer, error_event
from gateway.rest.generation import Generations, whole
from gateway.rest.generation_codec import text_asked, told
from gateway.rest.inferences import Inferences
from gateway.rest.types import EVENTS_TYPE, JSON_TYPE, Body, Came
from runtime.errors import PenstockError
from runtime.status import translated

SERVICE = "penstock.gateway.v1.InferenceRestService"
VERSION_HEADER = "x-penstock-model-version"
_UNKEPT = (("cache-control", "no-cache"),)
"""As the HTML standard advises for server-sent events: nothing on the way should gather them."""

_STREAMED = "GenerateStream"
_Asking = Callable[[Caller, Came, Exchange], Awaitable[Body]]
_Write = Callable[[Body], Awaitable[None]]


class InferenceRestServicer:
    """Belongs to one event loop. `register` is a `runtime.serving.Register`."""

    def __init__(
        self, mesh: Mesh, questions: Questions, *, max_bytes: int = 64 * 1024 * 1024, restrictions: Restrictions | None = None
    ) -> None:
        """`max_bytes`: of a body, also once it is unpacked."""
        self._mesh, self._restrictions = mesh, restrictions
        self._documents, self._inferences = Documents(questions, max_bytes), Inferences(mesh, max_bytes)
        self._generations = Generations(mesh)

    def register(self, server: grpc.aio.Server) -> None:
        async def answer(method: str, request: bytes, context: Context) -> bytes:
            return message_of(await self._answer(method, _in_message(request), context))

        async def stream(request: bytes, context: Context) -> None:
            async def write(body: Body) -> None:
                await context.write(message_of(body))

            await self._generate_stream(_in_message(request), context, write)

        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            method: grpc.unary_unary_rpc_method_handler(partial(answer, method)) for method in ("Infer", "Generate", *TWINS)
        }
        handlers[_STREAMED] = grpc.unary_stream_rpc_method_handler(stream)
        server.add_registered_method_handlers(SERVICE, handlers)

    async def take_http(self, method: str, names: Sequence[tuple[str, str]], body: bytes, context: Context) -> Body | None:
        """A `gateway.http.server.TakesHttp`."""
        request = Came(len(body), partial(asked_by_http, names, body))
        if method == _STREAMED:
            await self._generate_stream(request, context, context.write)
            return None
        return await self._answer(method, request, context)

    async def _answer(self, method: str, request: Came, context: Context) -> Body:
        if method in TWINS:
            return await self._ask(method, request, context)
        asking = self._inferences.answer if method == "Infer" else self._generate
        return await self._answered(method, request, context, asking)

    async def _ask(self, method: str, request: Came, context: Context) -> Body:
        """A call that serves no inference. The model is not told apart in what is counted: anybody may name any."""
        started_s, request_id, metrics = perf_counter(), "", self._mesh.metrics
        try:
            self._check(TWINS[method], context)
            if method in OPEN:
                body = self._documents.health(method)
            else:
                caller = await self._mesh.callers.enter(context)
                request_id = caller.request_id
                body = await self._documents.answer(method, caller, await self._inferences.unpacked(caller, request))
        except Exception as raised:
            error = _translated(raised, method, context)
            metrics.failed(method, "", error.code.name)
            body = error_answer(error)
        else:
            metrics.answered(method, "", perf_counter() - started_s)
        ids = ((REQUEST_ID, request_id),) if request_id else ()
        await context.send_initial_metadata((*ids, *body.headers))
        return body

    async def _generate(self, caller: Caller, request: Came, exchange: Exchange) -> Body:
        path = await self._inferences.unpacked(caller, request)
        exchange.says(asked=path.body)
        asked = text_asked(path.body)
        if asked.stream:
            raise RequestRefused("'stream' is true; POST …/generate_stream answers in events, this call in one piece")
        piece = await whole(await self._generations.begin(caller, path, asked, exchange))
        exchange.says(answered=(answer := told(exchange, asked, piece)))
        return Body((answer,))

    async def _answered(self, method: str, request: Came, context: Context, answer: _Asking) -> Body:
        exchange = self._mesh.exchanges.begin(method, request.size_bytes)
        try:
            caller = await self._entered(exchange, context)
            body = await answer(caller, request, exchange)
        except BaseException as raised:
            body = error_answer(self._failure(exchange, raised, context))
            await context.send_initial_metadata((*_known(exchange), *body.headers))
            return body
        await context.send_initial_metadata((*_known(exchange), *body.headers))
        self._mesh.exchanges.answered(exchange)
        return body

    async def _generate_stream(self, request: Came, context: Context, write: _Write) -> None:
        exchange, begun = self._mesh.exchanges.begin(_STREAMED, request.size_bytes), False
        exchange.streamed = True
        try:
            caller = await self._entered(exchange, context)
            path = await self._inferences.unpacked(caller, request)
            exchange.says(asked=path.body)
            asked = text_asked(path.body)
            async with ReadAhead(await self._generations.begin(caller, path, asked, exchange)) as ahead:
                while pieces := await ahead.take():
                    events = [b"data: " + told(exchange, asked, each) + b"\n\n" for each in pieces]
                    if not begun:
                        await context.send_initial_metadata((*_known(exchange), *_UNKEPT))
                        begun = True
                    await write(Body(events, EVENTS_TYPE))
        except BaseException as raised:
            error = self._failure(exchange, raised, context)
            if begun:
                await write(Body((error_event(error),), EVENTS_TYPE))
                return
            body = error_answer(error)
            await context.send_initial_metadata((*_known(exchange), *body.headers))
            await write(Body(body.parts, JSON_TYPE))
            return
        self._mesh.exchanges.answered(exchange)

    async def _entered(self, exchange: Exchange, context: Context) -> Caller:
        self._check("ModelInfer", context)
        exchange.caller = caller = await self._mesh.callers.enter(context)
        return caller

    def _check(self, rpc: str, context: Context) -> None:
        """Raises ProtocolRestricted."""
        if self._restrictions is not None:
            self._restrictions.check(rpc, cast("dict[str, str | bytes]", dict(context.invocation_metadata() or ())))

    def _failure(self, exchange: Exchange, raised: BaseException, context: Context) -> PenstockError:
        """What to answer, counted. Raises what cannot be answered: the caller went, or the process is ending."""
        try:
            error = _translated(raised, exchange.method, context)
        except BaseException as gone:
            self._mesh.exchanges.failed(exchange, gone)
            raise
        self._mesh.exchanges.failed(exchange, error)
        return error


def _in_message(request: bytes) -> Came:
    return Came(len(request), partial(asked_of, request))


def _known(exchange: Exchange) -> tuple[tuple[str, str], ...]:
    """The headers that tell of a request."""
    ids = ((REQUEST_ID, exchange.caller.request_id),) if exchange.caller is not None else ()
    versions = ((VERSION_HEADER, exchange.version),) if exchange.version else ()
    return (*ids, *versions, *exchange.headers())


def _translated(raised: BaseException, method: str, context: Context) -> PenstockError:
    """What to answer. Raises what cannot be answered."""
    # A write to a client that has gone fails in ways of its own before the cancellation arrives.
    if not isinstance(raised, Exception):
        raise raised
    if context.done():
        raise asyncio.CancelledError from raised
    return translated(raised, method)
