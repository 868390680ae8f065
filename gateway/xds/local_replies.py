"""What the edge answers by itself: no route, too large, nobody behind it. In the shape that OpenAI's clients read, and below
/v2 in that which Triton's do.

gRPC clients keep Envoy's own words in `grpc-message`. An HTTP client never reads a reason of the transport: those name inner
addresses.
"""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf import struct_pb2
from xds import accesslog_pb2, core_pb2, http_connection_manager_pb2, matcher_pb2, route_pb2

from gateway.xds.types import EdgeLimits

_ENVOYS_WORDS = "%LOCAL_REPLY_BODY%"
_ADVICE, _V2_ADVICE = "GET /v1/models or POST /v1/chat/completions", "GET /v2 or POST /v2/models/{model}/infer"
_TRANSCODED = "x-envoy-original-path"
"""The transcoder leaves the path it replaced here, and rewrites the content type to gRPC's."""


@dataclass(frozen=True, slots=True)
class ErrorPage:
    """One answer: statuses from `first` to `last`, and the error object."""

    first: int
    last: int
    kind: str
    code: str
    message: str
    retry_after_s: int | None = None


def error_pages(limits: EdgeLimits) -> tuple[ErrorPage, ...]:
    """All answers; the first that fits is given."""
    body_mib = limits.body_bytes / (1024 * 1024)
    return (
        ErrorPage(
            404,
            404,
            "invalid_request_error",
            "unknown_url",
            f"Unknown URL: %REQ(:METHOD)% %PATH(NQ:ORIG_OR_PATH)%; try {_ADVICE}.",
        ),
        ErrorPage(
            413,
            413,
            "invalid_request_error",
            "request_too_large",
            f"The request body is larger than the {body_mib:g} MiB allowed.",
        ),
        ErrorPage(408, 408, "invalid_request_error", "request_timeout", "The request did not arrive in time; send it again."),
        ErrorPage(400, 499, "invalid_request_error", "invalid_request", _ENVOYS_WORDS),
        ErrorPage(503, 503, "server_error", "unavailable", "No gateway answers at the moment; retry shortly.", retry_after_s=1),
        ErrorPage(504, 504, "server_error", "timeout", "The stream was quiet for too long and was ended; send it again."),
        ErrorPage(
            500, 599, "server_error", "edge_failed", "The answer was lost between edge and gateway; send the request again."
        ),
    )


def local_replies(limits: EdgeLimits) -> http_connection_manager_pb2.LocalReplyConfig:
    """The pages, for every client that does not speak gRPC."""
    pages = error_pages(limits)
    tritons = [_mapper(page, page.message.replace(_ADVICE, _V2_ADVICE), _below_v2()) for page in pages]
    openais = [_mapper(page, {"message": page.message, "type": page.kind, "param": None, "code": page.code}) for page in pages]
    return http_connection_manager_pb2.LocalReplyConfig(mappers=[*tritons, *openais])


def _mapper(
    page: ErrorPage, error: str | dict[str, str | None], *more: accesslog_pb2.AccessLogFilter
) -> http_connection_manager_pb2.ResponseMapper:
    conditions = [_at_least(page.first), _at_most(page.last), _speaks_http(), *more]
    body = struct_pb2.Struct()
    body.update({"error": error})
    mapper = http_connection_manager_pb2.ResponseMapper(
        filter=accesslog_pb2.AccessLogFilter(and_filter=accesslog_pb2.AndFilter(filters=conditions)),
        body_format_override=core_pb2.SubstitutionFormatString(json_format=body, content_type="application/json"),
    )
    if page.retry_after_s is not None:
        header = core_pb2.HeaderValue(key="retry-after", value=str(page.retry_after_s))
        mapper.headers_to_add.append(
            core_pb2.HeaderValueOption(header=header, append_action=core_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD)
        )
    return mapper


def _at_least(status: int) -> accesslog_pb2.AccessLogFilter:
    return _status(accesslog_pb2.ComparisonFilter.GE, status)


def _at_most(status: int) -> accesslog_pb2.AccessLogFilter:
    return _status(accesslog_pb2.ComparisonFilter.LE, status)


def _status(op: accesslog_pb2.ComparisonFilter.Op.ValueType, status: int) -> accesslog_pb2.AccessLogFilter:
    value = core_pb2.RuntimeUInt32(default_value=status, runtime_key=f"penstock.local_reply.{status}")
    comparison = accesslog_pb2.ComparisonFilter(op=op, value=value)
    return accesslog_pb2.AccessLogFilter(status_code_filter=accesslog_pb2.StatusCodeFilter(comparison=comparison))


def _speaks_http() -> accesslog_pb2.AccessLogFilter:
    not_grpc = route_pb2.HeaderMatcher(
        name="content-type",
        string_match=matcher_pb2.StringMatcher(prefix="application/grpc"),
        invert_match=True,
        treat_missing_header_as_empty=True,
    )
    transcoded = route_pb2.HeaderMatcher(name=_TRANSCODED, present_match=True)
    return accesslog_pb2.AccessLogFilter(or_filter=accesslog_pb2.OrFilter(filters=[_header(not_grpc), _header(transcoded)]))


def _below_v2() -> accesslog_pb2.AccessLogFilter:
    """The Open Inference Protocol's paths, transcoded or not."""
    prefix = matcher_pb2.StringMatcher(prefix="/v2")
    paths = [_header(route_pb2.HeaderMatcher(name=name, string_match=prefix)) for name in (":path", _TRANSCODED)]
    return accesslog_pb2.AccessLogFilter(or_filter=accesslog_pb2.OrFilter(filters=paths))


def _header(matcher: route_pb2.HeaderMatcher) -> accesslog_pb2.AccessLogFilter:
    return accesslog_pb2.AccessLogFilter(header_filter=accesslog_pb2.HeaderFilter(header=matcher))
