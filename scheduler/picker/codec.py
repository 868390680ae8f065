"""Envoy's external-processing messages to nouns and back. With the servicer, the only place of the picker that sees them."""

from __future__ import annotations

import json
from collections.abc import Iterable

from google.protobuf.struct_pb2 import Struct
from xds import core_pb2, http_status_pb2
from xds import external_processor_pb2 as pb

from scheduler.picker.types import DESTINATION, SERVED, SUBSET, Picked, TurnedAway

_NAMESPACE, _SUBSET_NAMESPACE = "envoy.lb", "envoy.lb.subset_hint"
_CHUNK_BYTES = 62_000
"""Of a body part that is sent on: Envoy takes up to 64 KiB in one message."""

STREAMED_WHOLE = pb.FULL_DUPLEX_STREAMED
READABLE = frozenset({pb.FULL_DUPLEX_STREAMED, pb.BUFFERED, pb.BUFFERED_PARTIAL})
"""Modes in which headers can still be set when the body is seen."""


def headers_of(message: pb.HttpHeaders) -> dict[str, str]:
    """By lower-case name; of one that comes twice, the first."""
    headers: dict[str, str] = {}
    for each in message.headers.headers:
        headers.setdefault(each.key.lower(), each.raw_value.decode("latin-1") if each.raw_value else each.value)
    return headers


def subset_of(message: pb.ProcessingRequest) -> frozenset[str] | None:
    """The endpoints that may be picked; None: all may."""
    struct = message.metadata_context.filter_metadata.get(_SUBSET_NAMESPACE)
    if struct is None or SUBSET not in struct.fields:
        return None
    value = struct.fields[SUBSET]
    if value.HasField("list_value"):
        return frozenset(each.string_value.strip() for each in value.list_value.values)
    return frozenset(part.strip() for part in value.string_value.split(",") if part.strip())


def served_by(message: pb.ProcessingRequest) -> str:
    """Who answered in the end, where Envoy tells; else empty."""
    struct = message.metadata_context.filter_metadata.get(_NAMESPACE)
    return struct.fields[SERVED].string_value if struct is not None and SERVED in struct.fields else ""


def to_headers(picked: Picked) -> pb.ProcessingResponse:
    """Answers the request's headers."""
    return pb.ProcessingResponse(
        request_headers=pb.HeadersResponse(response=_destination(picked)), dynamic_metadata=_metadata(picked)
    )


def to_body(picked: Picked) -> pb.ProcessingResponse:
    """Answers a buffered body whose headers have been let go on."""
    return pb.ProcessingResponse(
        request_body=pb.BodyResponse(response=_destination(picked)), dynamic_metadata=_metadata(picked)
    )


def passed_on(body: bytes, *, ended: bool) -> Iterable[pb.ProcessingResponse]:
    """A streamed body as it came."""
    last = max(0, len(body) - 1) // _CHUNK_BYTES
    for index in range(last + 1):
        part = body[index * _CHUNK_BYTES : (index + 1) * _CHUNK_BYTES]
        streamed = pb.StreamedBodyResponse(body=part, end_of_stream=ended and index == last)
        mutation = pb.BodyMutation(streamed_response=streamed)
        yield pb.ProcessingResponse(request_body=pb.BodyResponse(response=pb.CommonResponse(body_mutation=mutation)))


def continued(kind: str, message: pb.ProcessingRequest) -> pb.ProcessingResponse:
    """Lets a part go on that nothing is to be said about."""
    match kind:
        case "request_headers":
            return pb.ProcessingResponse(request_headers=pb.HeadersResponse(response=pb.CommonResponse()))
        case "response_headers":
            return pb.ProcessingResponse(response_headers=pb.HeadersResponse(response=pb.CommonResponse()))
        case "request_body":
            return pb.ProcessingResponse(request_body=pb.BodyResponse(response=pb.CommonResponse()))
        case "request_trailers":
            return pb.ProcessingResponse(request_trailers=pb.TrailersResponse())
        case "response_trailers":
            return pb.ProcessingResponse(response_trailers=pb.TrailersResponse())
    return pb.ProcessingResponse(response_body=pb.BodyResponse(response=pb.CommonResponse()))


def response_passed_on(message: pb.ProcessingRequest) -> pb.ProcessingResponse:
    """A part of a streamed answer as it came."""
    streamed = pb.StreamedBodyResponse(body=message.response_body.body, end_of_stream=message.response_body.end_of_stream)
    mutation = pb.BodyMutation(streamed_response=streamed)
    return pb.ProcessingResponse(response_body=pb.BodyResponse(response=pb.CommonResponse(body_mutation=mutation)))


def refusal(turned: TurnedAway, *, speaks_grpc: bool) -> pb.ProcessingResponse:
    """The request goes no further."""
    headers = [_set("content-type", "application/json")]
    if turned.retry_after_s is not None:
        headers.append(_set("retry-after", f"{turned.retry_after_s:.0f}"))
    return pb.ProcessingResponse(
        immediate_response=pb.ImmediateResponse(
            status=http_status_pb2.HttpStatus(code=turned.status),
            headers=pb.HeaderMutation(set_headers=[] if speaks_grpc else headers),
            # Envoy makes the body the gRPC status's message.
            body=turned.message.encode() if speaks_grpc else json.dumps({"error": {"message": turned.message}}).encode(),
            grpc_status=pb.GrpcStatus(status=turned.grpc_code) if speaks_grpc else None,
            details="penstock_picker",
        )
    )


def _destination(picked: Picked) -> pb.CommonResponse:
    mutation = pb.HeaderMutation(set_headers=[_set(DESTINATION, ",".join(picked.endpoints))])
    return pb.CommonResponse(header_mutation=mutation, clear_route_cache=True)


def _metadata(picked: Picked) -> Struct:
    metadata = Struct()
    metadata.update({_NAMESPACE: {DESTINATION: ",".join(picked.endpoints)}})
    return metadata


def _set(name: str, value: str) -> core_pb2.HeaderValueOption:
    return core_pb2.HeaderValueOption(
        header=core_pb2.HeaderValue(key=name, raw_value=value.encode()),
        append_action=core_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
    )
