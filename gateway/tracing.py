"""The trace context of the call being served, for those it is passed on to. Imported in earnest only where spans are made."""

from __future__ import annotations


def traceparent_of_span() -> str:
    """W3C traceparent of the current span; empty where there is none."""
    from opentelemetry import trace

    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
