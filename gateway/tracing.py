"""The trace context of the call being served, for those it is passed on to. Imported in earnest only where spans are made."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


def traceparent_of_span() -> str:
    """W3C traceparent of the current span; empty where there is none."""
    from opentelemetry import trace

    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


@contextmanager
def span_of_call(method: str, headers: Mapping[str, str]) -> Iterator[None]:
    """A span around the answer to a call that came by HTTP, as the gRPC server makes them around its own."""
    from opentelemetry import propagate, trace

    kind, parent = trace.SpanKind.SERVER, propagate.extract(headers)
    with trace.get_tracer("penstock.rpc").start_as_current_span(method, parent, kind, {"rpc.system": "http"}):
        yield


def note_event(name: str, **attributes: str | int) -> None:
    """Write down what happened to the call being served, where it is traced."""
    if (trace := sys.modules.get("opentelemetry.trace")) is not None:
        trace.get_current_span().add_event(name, attributes)
