"""Trace spans of what happened to a request inside of the worker: how long it waited, was gathered, ran, was divided.

Made afterwards from the times that were taken anyway, so a request without a sampled trace costs one comparison, and a process
that exports no spans never imports OpenTelemetry. Never logs and never holds a payload.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from worker.types import CallContext

_SCOPE = "penstock.worker"
Attributes = Mapping[str, str | int]


@dataclass(frozen=True, slots=True)
class ExecutionTimes:
    """Of one request, on the monotonic clock."""

    arrived_ns: int
    started_ns: int
    """Its batch began to be gathered."""
    gathered_ns: int
    ran_ns: int
    ended_ns: int


@dataclass(frozen=True, slots=True)
class GenerationTimes:
    """Of one generation, on the monotonic clock."""

    arrived_ns: int
    began_ns: int
    """It got its place at the engine."""
    first_ns: int
    """Its first text was there."""
    ended_ns: int


@dataclass(frozen=True, slots=True)
class Stage:
    """One part of a request's time."""

    name: str
    start_ns: int
    end_ns: int


def trace_execution(call: CallContext, model: str, version: str, times: ExecutionTimes, *, rows: int, batch_rows: int) -> None:
    """The spans of one request that ended well, as children of the caller's: `infer`, and in it what its time went into."""
    if not _sampled(call.traceparent):
        return
    stages = (
        Stage("queue", times.arrived_ns, times.started_ns),
        Stage("batch", times.started_ns, times.gathered_ns),
        Stage("execute", times.gathered_ns, times.ran_ns),
    )
    attributes = {"penstock.rows": rows, "penstock.batch_rows": batch_rows}
    whole = Stage("infer", times.arrived_ns, times.ended_ns)
    _export(call, whole, stages, {"penstock.model": model, "penstock.version": version, **attributes})


def trace_generation(
    call: CallContext, model: str, version: str, times: GenerationTimes, *, prompt_tokens: int, completion_tokens: int
) -> None:
    """The spans of one generation that ended well, as children of the caller's: `generate`, in it queue, prefill, decode."""
    if not _sampled(call.traceparent):
        return
    stages = (
        Stage("queue", times.arrived_ns, times.began_ns),
        Stage("prefill", times.began_ns, times.first_ns),
        Stage("decode", times.first_ns, times.ended_ns),
    )
    # Source of the two names: OpenTelemetry's semantic conventions for generative AI.
    attributes = {"gen_ai.usage.input_tokens": prompt_tokens, "gen_ai.usage.output_tokens": completion_tokens}
    whole = Stage("generate", times.arrived_ns, times.ended_ns)
    _export(call, whole, stages, {"penstock.model": model, "penstock.version": version, **attributes})


def current_traceparent() -> str:
    """W3C traceparent of the span around this call; empty where there is none that is sampled."""
    from opentelemetry import trace

    context = trace.get_current_span().get_span_context()
    if not context.is_valid or not context.trace_flags.sampled:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def _sampled(traceparent: str) -> bool:
    """Whether somebody follows this trace. Source: W3C Trace Context, 3.2.2: version, trace id, span id, flags."""
    if len(traceparent) < 55 or traceparent[52] != "-":
        return False
    return traceparent[54] in "13579bdf"


def _export(call: CallContext, whole: Stage, stages: Sequence[Stage], attributes: Attributes) -> None:
    from opentelemetry import trace
    from opentelemetry.trace.propagation import tracecontext

    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider):
        return  # the caller traces, this process does not
    parent = tracecontext.TraceContextTextMapPropagator().extract({"traceparent": call.traceparent})
    tracer = provider.get_tracer(_SCOPE)
    wall_ns = time.time_ns() - time.monotonic_ns()
    span = tracer.start_span(whole.name, parent, start_time=whole.start_ns + wall_ns, attributes=attributes)
    inside = trace.set_span_in_context(span)
    for stage in stages:
        part = tracer.start_span(stage.name, inside, start_time=stage.start_ns + wall_ns, attributes=attributes)
        part.end(max(stage.start_ns, stage.end_ns) + wall_ns)
    span.end(whole.end_ns + wall_ns)
