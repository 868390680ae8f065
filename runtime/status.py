"""Errors on the wire: out of a server as a rich gRPC status, back in at a client as the same class.

The one interceptor here is the only place where an exception becomes a status. What nobody mapped is logged whole and answered
INTERNAL with opaque text. Source: google/rpc/error_details.proto; gRPC's `grpc-status-details-bin` trailer.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

import grpc
import grpc.aio
import structlog
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from runtime.errors import DOMAIN, Code, PenstockError, error_from_wire

DETAILS_KEY = "grpc-status-details-bin"
_GRPC_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
_log = structlog.get_logger("penstock.rpc")


def status_of(error: PenstockError) -> status_pb2.Status:
    """The error as google.rpc.Status, with ErrorInfo always and RetryInfo where waiting helps."""
    status = status_pb2.Status(code=int(error.code), message=error.message)
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


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: PenstockError) -> NoReturn:
    """End this RPC with the error's code, sentence and details."""
    trailers = ((DETAILS_KEY, status_of(error).SerializeToString()),)
    await context.abort(_GRPC_CODES[int(error.code)], error.message, trailers)
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
    """Maps PenstockError to a status around every handler. Handlers are wrapped once and remembered by method."""

    def __init__(self) -> None:
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
        self._wrapped[method] = wrapped = _wrap(handler, method)
        return wrapped


def _wrap(handler: Any, method: str) -> grpc.RpcMethodHandler[Any, Any]:
    codec = {"request_deserializer": handler.request_deserializer, "response_serializer": handler.response_serializer}
    if handler.unary_unary:
        return grpc.unary_unary_rpc_method_handler(_unary(handler.unary_unary, method), **codec)
    if handler.stream_unary:
        return grpc.stream_unary_rpc_method_handler(_unary(handler.stream_unary, method), **codec)
    if handler.unary_stream:
        return grpc.unary_stream_rpc_method_handler(_stream(handler.unary_stream, method), **codec)
    return grpc.stream_stream_rpc_method_handler(_stream(handler.stream_stream, method), **codec)


def _unary(behaviour: Callable[..., Any], method: str) -> Callable[..., Any]:
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await behaviour(request, context)
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except grpc.aio.InternalError as gone:  # a batch failed, because the peer left
            raise asyncio.CancelledError from gone
        except Exception as error:
            await abort(context, translated(error, method))

    return call


def _stream(behaviour: Callable[..., Any], method: str) -> Callable[..., Any]:
    # A generator stays a generator and a writer stays a writer: grpc.aio tells them apart by inspecting the function.
    if not inspect.isasyncgenfunction(behaviour):
        return _unary(behaviour, method)

    async def iterate(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        try:
            async for response in behaviour(request, context):
                yield response
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except grpc.aio.InternalError as gone:  # a batch failed, because the peer left
            raise asyncio.CancelledError from gone
        except Exception as error:
            await abort(context, translated(error, method))

    return iterate
