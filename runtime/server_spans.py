"""A span for each RPC that a server answers, as a grpc.aio interceptor. Imported only where tracing is on.

OpenTelemetry's own interceptor reads every streaming handler as an async generator. Ours read from and write to the context
(grpc#43360), so that one span around the whole call is right for them. An Execute stream gets none: it lasts as long as the
connection, and each call in it has spans of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import grpc
from opentelemetry.instrumentation.grpc._aio_server import OpenTelemetryAioServerInterceptor
from opentelemetry.trace import Tracer

_CONNECTION_LONG = frozenset({"/penstock.worker.v1.WorkerService/Execute"})


class _ServerSpans(OpenTelemetryAioServerInterceptor):
    def _intercept_aio_server_stream(self, behavior: Callable[..., Any], handler_call_details: Any) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(behavior):
            return self._intercept_aio_server_unary(behavior, handler_call_details)  # type: ignore[no-untyped-call,no-any-return]
        return super()._intercept_aio_server_stream(behavior, handler_call_details)  # type: ignore[no-untyped-call,no-any-return]


def server_spans(tracer: Tracer) -> grpc.aio.ServerInterceptor:
    """The interceptor that makes them with this tracer."""
    return _ServerSpans(tracer, filter_=lambda details: details.method not in _CONNECTION_LONG)  # type: ignore[no-untyped-call]
