"""LDS: the one listener, which carries gRPC, gRPC-Web, JSON and server-sent events, over HTTP/1.1 and HTTP/2 alike.

Filters in the order in which a request passes them (an answer passes them backwards):

    cors          only where origins are configured
    lua           gives an answer of the transcoder its HTTP status and error body
    grpc_web      gRPC-Web becomes gRPC
    transcoder    JSON becomes gRPC, by the contracts' HTTP paths; bodies of HttpBody stay as they are
    router
"""

from __future__ import annotations

from importlib import resources

from google.protobuf import message
from xds import (
    core_pb2,
    cors_pb2,
    grpc_web_pb2,
    http_connection_manager_pb2,
    listener_pb2,
    lua_pb2,
    request_id_pb2,
    router_pb2,
    transcoder_pb2,
)

from gateway.xds.access_log import access_logs
from gateway.xds.local_replies import local_replies
from gateway.xds.packing import flag, number, over_ads, packed, seconds, socket
from gateway.xds.routes import CORS_FILTER, LUA_FILTER, ROUTES, TRANSCODER_FILTER
from gateway.xds.tls import towards_clients
from gateway.xds.types import Edge, EdgeLimits

LISTENER = "edge"
_BUFFER_BYTES = 1024 * 1024
_STREAM_WINDOW_BYTES = 1024 * 1024
_CONNECTION_WINDOW_BYTES = 16 * 1024 * 1024
_ENVELOPE_BYTES = 1024
"""Envoy counts a body together with the message that it makes of it: names, content type, framing."""

_LUA_FILE = "http_errors.lua"

_Hcm = http_connection_manager_pb2.HttpConnectionManager


def edge_listener(edge: Edge) -> listener_pb2.Listener:
    """Where clients connect."""
    chain = listener_pb2.FilterChain(
        filters=[
            listener_pb2.Filter(name="envoy.filters.network.http_connection_manager", typed_config=packed(_manager(edge)))
        ],
        transport_socket=towards_clients() if edge.server_files is not None else None,
    )
    return listener_pb2.Listener(
        name=LISTENER,
        address=socket(edge.listen),
        filter_chains=[chain],
        per_connection_buffer_limit_bytes=number(_BUFFER_BYTES),
        enable_reuse_port=flag(edge.share_port),
    )


def _manager(edge: Edge) -> _Hcm:
    limits = edge.limits
    return _Hcm(
        codec_type=_Hcm.AUTO,
        stat_prefix=LISTENER,
        rds=http_connection_manager_pb2.Rds(config_source=over_ads(), route_config_name=ROUTES),
        http_filters=_filters(edge),
        common_http_protocol_options=_common(limits),
        http2_protocol_options=_http2(limits),
        server_name="penstock",
        max_request_headers_kb=number(limits.header_kib),
        stream_idle_timeout=seconds(limits.stream_idle_timeout_s),
        request_headers_timeout=seconds(limits.request_headers_timeout_s),
        drain_timeout=seconds(limits.drain_timeout_s),
        access_log=access_logs(edge.access_log, LISTENER),
        use_remote_address=flag(True),
        normalize_path=flag(True),
        merge_slashes=True,
        local_reply_config=local_replies(limits),
        stream_error_on_invalid_http_message=flag(True),
        # The client's id is kept to the letter; Envoy would otherwise write its sampling decision into it.
        generate_request_id=flag(True),
        preserve_external_request_id=True,
        always_set_request_id_in_response=True,
        request_id_extension=http_connection_manager_pb2.RequestIDExtension(
            typed_config=packed(
                request_id_pb2.UuidRequestIdConfig(pack_trace_reason=flag(False), use_request_id_for_trace_sampling=flag(False))
            )
        ),
    )


def _common(limits: EdgeLimits) -> core_pb2.HttpProtocolOptions:
    # Underscores are allowed: Triton's clients send `triton_grpc_error`.
    return core_pb2.HttpProtocolOptions(
        idle_timeout=seconds(limits.connection_idle_timeout_s),
        headers_with_underscores_action=core_pb2.HttpProtocolOptions.ALLOW,
    )


def _http2(limits: EdgeLimits) -> core_pb2.Http2ProtocolOptions:
    return core_pb2.Http2ProtocolOptions(
        max_concurrent_streams=number(limits.streams_per_connection),
        initial_stream_window_size=number(_STREAM_WINDOW_BYTES),
        initial_connection_window_size=number(_CONNECTION_WINDOW_BYTES),
    )


def _filters(edge: Edge) -> list[http_connection_manager_pb2.HttpFilter]:
    lua = resources.files(__package__).joinpath(_LUA_FILE).read_text(encoding="utf-8")
    found = [_filter(CORS_FILTER, cors_pb2.Cors())] if edge.cors_origins else []
    found += [
        _filter(LUA_FILTER, lua_pb2.Lua(default_source_code=core_pb2.DataSource(inline_string=lua))),
        _filter("envoy.filters.http.grpc_web", grpc_web_pb2.GrpcWeb()),
        _filter(TRANSCODER_FILTER, _transcoder(edge)),
        _filter("envoy.filters.http.router", router_pb2.Router(suppress_envoy_headers=True)),
    ]
    return found


def _transcoder(edge: Edge) -> transcoder_pb2.GrpcJsonTranscoder:
    kind = transcoder_pb2.GrpcJsonTranscoder
    return kind(
        proto_descriptor_bin=edge.descriptor_set,
        services=[*edge.services, *(edge.registry.services if edge.registry else ())],
        print_options=kind.PrintOptions(preserve_proto_field_names=True),
        ignore_unknown_query_parameters=True,
        convert_grpc_status=True,
        request_validation_options=kind.RequestValidationOptions(reject_unknown_method=True),
        max_request_body_size=number(edge.limits.body_bytes + _ENVELOPE_BYTES),
        max_response_body_size=number(edge.limits.body_bytes + _ENVELOPE_BYTES),
    )


def _filter(name: str, configuration: message.Message) -> http_connection_manager_pb2.HttpFilter:
    return http_connection_manager_pb2.HttpFilter(name=name, typed_config=packed(configuration))
