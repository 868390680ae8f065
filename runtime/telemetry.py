"""What a process tells of itself: JSON logs with request and trace ids, Prometheus metrics, OpenTelemetry spans.

Owns the process-wide set-up, done once from `__main__`. Never decides what is worth telling. Payloads, prompts and keys are
never passed to a logger; `redact` is the last net for what slips through.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import grpc.aio
import prometheus_client
import structlog

from runtime.loop_lag import measure_loop_lag

request_id_var: ContextVar[str] = ContextVar("request_id", default="")
"""The correlation id of the request being served, in and out as `x-request-id`."""

trace_id_var: ContextVar[str] = ContextVar("trace_id", default="")

_SECRET_WORDS = ("authorization", "secret", "password", "api_key", "token", "prompt", "payload")


def configure_logging(service: str, *, level: str = "info", human: bool = False) -> None:
    """Log to stderr: one JSON object a line, or coloured text where a person reads along."""
    # Never with the frames' local variables, which hold what callers sent.
    exceptions = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    renderer: Any = structlog.processors.JSONRenderer()
    if human:
        renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            add_ids,
            redact,
            structlog.processors.ExceptionRenderer(exceptions) if not human else structlog.dev.set_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)


def add_ids(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Put the request's and the trace's id into the line, where there are any."""
    event.update({key: value for key, value in structlog.contextvars.get_contextvars().items() if key not in event})
    if request_id := request_id_var.get():
        event["request_id"] = request_id
    if trace_id := trace_id_var.get():
        event["trace_id"] = trace_id
    return event


def redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Blank the value of any field named like a secret."""
    for key in event:
        if any(word in key.lower() for word in _SECRET_WORDS) and isinstance(event[key], str | bytes):
            event[key] = "[redacted]"
    return event


def start_metrics_endpoint(
    host: str, port: int, registry: prometheus_client.CollectorRegistry = prometheus_client.REGISTRY
) -> int:
    """Serve Prometheus metrics over HTTP from a thread of its own; returns the bound port. Port 0 picks a free one.

    Called on an event loop, it has that loop's lag measured from then on.
    """
    with suppress(RuntimeError):  # there is no loop
        measure_loop_lag(registry)
    server, _ = prometheus_client.start_http_server(port, addr=host, registry=registry)
    return int(server.server_port)


def configure_tracing(service: str, otlp_endpoint: str | None) -> Sequence[grpc.aio.ServerInterceptor]:
    """Export spans to this OTLP/gRPC endpoint; returns the server interceptors that make them. None: no tracing, no cost."""
    if otlp_endpoint is None:
        return ()
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from runtime.server_spans import server_spans

    provider = TracerProvider(resource=Resource.create({"service.name": f"penstock-{service}"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=otlp_endpoint, insecure=True)))
    trace.set_tracer_provider(provider)
    return (server_spans(trace.get_tracer("penstock.rpc")),)
