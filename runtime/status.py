"""Errors on the wire: out of a server as a rich gRPC status, back in at a client as the same class.

The one interceptor here is the only place where an exception becomes a status. What nobody mapped is logged whole and answered
INTERNAL with opaque text; a request that cannot be parsed is its sender's fault, which gRPC itself would answer UNKNOWN.
Source: google/rpc/error_details.proto; gRPC's `grpc-status-details-bin` trailer.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from itertools import accumulate
from typing import Any, NoReturn

import grpc
import grpc.aio
import structlog
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from runtime.errors import DOMAIN, Code, InvalidArgument, PenstockError, error_from_wire
from runtime.peer_gate import PeerGate

Context = grpc.aio.ServicerContext[Any, Any]
Behaviour = Callable[[Any, Context], Awaitable[Any]]
DETAILS_KEY = "grpc-status-details-bin"
_MESSAGE_BYTES = 3_000
"""Of an error's sentence on the wire, where it is twice: percent-encoded (gRPC over HTTP/2), and in the details, in base64.

Clients take 8 KiB of trailers; of more they tell RESOURCE_EXHAUSTED, and not what the server answered.
"""
_GRPC_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
_log = structlog.get_logger("penstock.rpc")


def status_of(error: PenstockError) -> status_pb2.Status:
    """The error as google.rpc.Status, with ErrorInfo always and RetryInfo where waiting helps."""
    status = status_pb2.Status(code=int(error.code), message=cut(error.message))
    details = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)]
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(int(error.retry_after_s * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def cut(message: str) -> str:
    """As much of the sentence as fits into an answer: requests may name things of any length, and sentences name those."""
    sizes_bytes = accumulate(
        1 if " " <= letter <= "~" and letter != "%" else 3 * len(letter.encode(errors="replace"))
        for letter in message[:_MESSAGE_BYTES]
    )
    fitting = sum(size_bytes <= _MESSAGE_BYTES for size_bytes in sizes_bytes)
    return message if fitting == len(message) else f"{message[:fitting]}…"


async def abort(context: Context, error: PenstockError) -> NoReturn:
    """End this RPC with the error's code, sentence and details."""
    trailers = ((DETAILS_KEY, status_of(error).SerializeToString()),)
    await context.abort(_GRPC_CODES[int(error.code)], cut(error.message), trailers)
    raise AssertionError("abort returned")


def error_of(failure: grpc.aio.AioRpcError) -> PenstockError:
    """What a peer answered, as our own class."""
    reason, retry_after_s = "", None
    for key, value in failure.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            reason, retry_after_s = _details(value)
    return error_from_wire(failure.code().value[0], reason, failure.details() or "", retry_after_s)


def _details(raw: bytes) -> tuple[str, float | None]:
    status = status_pb2.Status.FromString(raw)
    reason, retry_after_s = "", None
    for packed in status.details:
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if packed.Unpack(info):
            reason = info.reason
        elif packed.Unpack(retry):
            retry_after_s = retry.retry_delay.ToMilliseconds() / 1000
    return reason, retry_after_s


def translated(error: Exception, method: str) -> PenstockError:
    """The error to answer with: itself if it is ours, else INTERNAL, after the whole of it went to the log."""
    if isinstance(error, PenstockError):
        return error
    _log.error("unmapped_error", method=method, exc_info=error)
    return error_from_wire(Code.INTERNAL, "INTERNAL", "internal error; the server's log has it under this request's id")


class StatusInterceptor(grpc.aio.ServerInterceptor):
    """Maps PenstockError to a status around every handler, and lets nobody in whom the gate keeps out.

    Handlers are wrapped once and remembered by method.
    """

    def __init__(self, gate: PeerGate | None = None) -> None:
        self._gate = gate
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        method = handler_call_details.method
        known = self._wrapped.get(method)
        if known is not None:
            return known
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        self._wrapped[method] = wrapped = _wrap(handler, method, self._gate)
        return wrapped


def _wrap(handler: Any, method: str, gate: PeerGate | None) -> grpc.RpcMethodHandler[Any, Any]:
    codec = {"response_serializer": handler.response_serializer}
    streams = bool(handler.stream_unary or handler.stream_stream)
    if handler.unary_unary:
        behaviour = _parsed(handler.unary_unary, handler.request_deserializer, streams=False)
        behaviour = behaviour if gate is None else _checked(behaviour, gate)
        return grpc.unary_unary_rpc_method_handler(_answered(behaviour, method), **codec)
    behaviour = handler.stream_unary or handler.unary_stream or handler.stream_stream
    if inspect.isasyncgenfunction(behaviour):
        behaviour = _written(behaviour)
    behaviour = _parsed(behaviour, handler.request_deserializer, streams=streams)
    behaviour = _answered(behaviour if gate is None else _held(behaviour, gate), method)
    if handler.stream_unary:
        return grpc.stream_unary_rpc_method_handler(behaviour, **codec)
    if handler.unary_stream:
        return grpc.unary_stream_rpc_method_handler(behaviour, **codec)
    return grpc.stream_stream_rpc_method_handler(behaviour, **codec)


def _parsed(behaviour: Behaviour, parse: Callable[[bytes], Any] | None, *, streams: bool) -> Behaviour:
    """The behaviour for requests as bytes, if it takes them as messages. What cannot be parsed is answered, not logged."""
    if parse is None:
        return behaviour

    async def call(request: Any, context: Context) -> Any:
        return await behaviour(_Parsed(request, parse) if streams else _message(request, parse), context)

    return call


class _Parsed:
    """A stream of messages. No generator: one that was cancelled while it waited would seem to have ended."""

    def __init__(self, requests: AsyncIterator[bytes], parse: Callable[[bytes], Any]) -> None:
        self._requests, self._parse = aiter(requests), parse

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        return _message(await anext(self._requests), self._parse)


def _message(request: bytes, parse: Callable[[bytes], Any]) -> Any:
    try:
        return parse(request)
    except DecodeError as error:
        raise InvalidArgument(f"the request's {len(request)} bytes are no message of this method's; build it anew") from error


def _answered(behaviour: Behaviour, method: str) -> Behaviour:
    async def call(request: Any, context: Context) -> Any:
        try:
            return await behaviour(request, context)
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except grpc.aio.InternalError as gone:  # a batch failed, because the peer left
            raise asyncio.CancelledError from gone
        except Exception as error:
            await abort(context, translated(error, method))

    return call


def _checked(behaviour: Behaviour, gate: PeerGate) -> Behaviour:
    async def call(request: Any, context: Context) -> Any:
        gate.check(context)
        return await behaviour(request, context)

    return call


def _held(behaviour: Behaviour, gate: PeerGate) -> Behaviour:
    async def call(request: Any, context: Context) -> Any:
        with gate.holding(context):
            return await behaviour(request, context)

    return call


def _written(behaviour: Callable[[Any, Context], AsyncGenerator[Any, None]]) -> Behaviour:
    """A generator as a writer. gRPC writes what a generator yields itself, where nobody is told when that is cut short."""

    async def call(request: Any, context: Context) -> None:
        async with aclosing(behaviour(request, context)) as responses:
            async for response in responses:
                await context.write(response)

    return call
