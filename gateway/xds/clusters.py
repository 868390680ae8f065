"""CDS and EDS: the gateways as one cluster, and where they are. The bootstrap's control plane is built of the same parts."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from google.protobuf import any_pb2
from xds import cluster_pb2, core_pb2, endpoint_pb2, percent_pb2, upstream_http_pb2

from gateway.xds.packing import number, over_ads, packed, seconds, socket
from gateway.xds.tls import towards_gateway
from gateway.xds.types import Edge, EdgeLimits, Endpoint, RegistryFront

GATEWAYS = "gateways"
GATEWAYS_HTTP = "gateways-http"
"""The same processes, by the port that takes HTTP as it comes."""

REGISTRIES = "registries"
_HEALTH_INTERVAL_S, _HEALTH_TIMEOUT_S = 1.0, 1.0
_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_STREAM_WINDOW_BYTES = 1024 * 1024
_CONNECTION_WINDOW_BYTES = 16 * 1024 * 1024
_BUFFER_BYTES = 1024 * 1024

_UNREACHED, _OUT_OF_ORDER = 5, 50
"""Connections that fail in a row, and answers in a row that say 502, 503 or 504, until a gateway gets nothing for a while."""

_HTTP_IDLE_S = 60.0
_LOOK_S, _EJECTED_S, _EJECTED_MAX_S = 1.0, 5.0, 60.0
_EJECTED_PERCENT = 50
_PANIC_PERCENT = 1.0
"""With fewer well members than this, all are asked: none is, then, and one may have been judged wrongly."""


def gateways_cluster(edge: Edge) -> cluster_pb2.Cluster:
    """Every gateway, least requests first; a gateway that leaves finishes what it has."""
    limits = edge.limits
    return cluster_pb2.Cluster(
        name=GATEWAYS,
        type=cluster_pb2.Cluster.EDS,
        eds_cluster_config=cluster_pb2.Cluster.EdsClusterConfig(eds_config=over_ads(), service_name=GATEWAYS),
        connect_timeout=seconds(limits.connect_timeout_s),
        per_connection_buffer_limit_bytes=number(_BUFFER_BYTES),
        lb_policy=cluster_pb2.Cluster.LEAST_REQUEST,
        circuit_breakers=_bounds(limits),
        outlier_detection=_outliers(),
        common_lb_config=_choosing(),
        transport_socket=towards_gateway(edge.identity.authority, edge.gateway_name),
        typed_extension_protocol_options={_HTTP_OPTIONS: http2(limits.streams_per_connection)},
        upstream_connection_options=alive(),
    )


def gateways_http_cluster(edge: Edge) -> cluster_pb2.Cluster:
    """The gateways over HTTP/1.1, which takes a connection for each request that is open."""
    cluster = gateways_cluster(edge)
    cluster.name = cluster.eds_cluster_config.service_name = GATEWAYS_HTTP
    cluster.circuit_breakers.thresholds[0].max_connections.value = edge.limits.concurrent_requests
    cluster.transport_socket.CopyFrom(towards_gateway(edge.identity.authority, edge.gateway_name, protocol="http/1.1"))
    cluster.typed_extension_protocol_options[_HTTP_OPTIONS].CopyFrom(_http1())
    return cluster


def registries_cluster(edge: Edge, front: RegistryFront) -> cluster_pb2.Cluster:
    """Every replica of the registry, asked each second whether it is well."""
    cluster = gateways_cluster(edge)
    cluster.name = cluster.eds_cluster_config.service_name = REGISTRIES
    cluster.lb_policy = cluster_pb2.Cluster.ROUND_ROBIN
    cluster.transport_socket.CopyFrom(towards_gateway(edge.identity.authority, front.name))
    cluster.ClearField("outlier_detection")  # its health checks tell
    cluster.health_checks.append(
        core_pb2.HealthCheck(
            timeout=seconds(_HEALTH_TIMEOUT_S),
            interval=seconds(_HEALTH_INTERVAL_S),
            no_traffic_interval=seconds(_HEALTH_INTERVAL_S),
            unhealthy_threshold=number(2),
            healthy_threshold=number(1),
            grpc_health_check=core_pb2.HealthCheck.GrpcHealthCheck(),
        )
    )
    return cluster


def gateways_members(
    endpoints: Iterable[Endpoint], draining: AbstractSet[Endpoint] = frozenset()
) -> endpoint_pb2.ClusterLoadAssignment:
    """Where the gateways are; none is a valid answer, and clients then read 503. Those that drain finish what they have."""
    return members(GATEWAYS, endpoints, draining)


def members(
    cluster_name: str, endpoints: Iterable[Endpoint], draining: AbstractSet[Endpoint] = frozenset()
) -> endpoint_pb2.ClusterLoadAssignment:
    """The members of a cluster, in order, so that the same set has the same bytes."""
    found = [
        endpoint_pb2.LbEndpoint(
            endpoint=endpoint_pb2.Endpoint(address=socket(one)),
            health_status=core_pb2.DRAINING if one in draining else core_pb2.UNKNOWN,
        )
        for one in sorted(set(endpoints))
    ]
    locality = endpoint_pb2.LocalityLbEndpoints(lb_endpoints=found)
    return endpoint_pb2.ClusterLoadAssignment(cluster_name=cluster_name, endpoints=[locality] if found else [])


def http2(streams: int) -> any_pb2.Any:
    """HTTP/2 without asking, with windows that keep one tensor from holding up a connection."""
    protocol = core_pb2.Http2ProtocolOptions(
        max_concurrent_streams=number(streams),
        initial_stream_window_size=number(_STREAM_WINDOW_BYTES),
        initial_connection_window_size=number(_CONNECTION_WINDOW_BYTES),
    )
    explicit = upstream_http_pb2.HttpProtocolOptions.ExplicitHttpConfig(http2_protocol_options=protocol)
    return packed(upstream_http_pb2.HttpProtocolOptions(explicit_http_config=explicit))


def _http1() -> any_pb2.Any:
    """HTTP/1.1, and idle connections are let go long before a gateway would close them under a request."""
    kind = upstream_http_pb2.HttpProtocolOptions
    explicit = kind.ExplicitHttpConfig(http_protocol_options=core_pb2.Http1ProtocolOptions())
    common = core_pb2.HttpProtocolOptions(idle_timeout=seconds(_HTTP_IDLE_S))
    return packed(kind(explicit_http_config=explicit, common_http_protocol_options=common))


def alive() -> cluster_pb2.UpstreamConnectionOptions:
    """TCP probes, not HTTP/2 pings: gRPC servers hang up on a peer that pings more often than they allow."""
    probes = core_pb2.TcpKeepalive(keepalive_probes=number(3), keepalive_time=number(10), keepalive_interval=number(5))
    return cluster_pb2.UpstreamConnectionOptions(tcp_keepalive=probes)


def _bounds(limits: EdgeLimits) -> cluster_pb2.CircuitBreakers:
    # Envoy's own 1,024 requests would refuse the 1,025th open stream with 503.
    return cluster_pb2.CircuitBreakers(
        thresholds=[
            cluster_pb2.CircuitBreakers.Thresholds(
                max_connections=number(limits.connections_to_gateway),
                max_pending_requests=number(limits.concurrent_requests),
                max_requests=number(limits.concurrent_requests),
                max_retries=number(limits.concurrent_requests),
            )
        ]
    )


def _outliers() -> cluster_pb2.OutlierDetection:
    """Who is not reached gets nothing for a while, longer each time; at most half of the gateways at once.

    What a gateway answers tells little of the gateway: UNIMPLEMENTED and INTERNAL are errors of one request, and a caller who
    gives no time makes DEADLINE_EXCEEDED. Only a long row of 502, 503 and 504 with nothing else in between counts.
    """
    return cluster_pb2.OutlierDetection(
        interval=seconds(_LOOK_S),
        base_ejection_time=seconds(_EJECTED_S),
        max_ejection_time=seconds(_EJECTED_MAX_S),
        max_ejection_percent=number(_EJECTED_PERCENT),
        split_external_local_origin_errors=True,
        consecutive_local_origin_failure=number(_UNREACHED),
        consecutive_gateway_failure=number(_OUT_OF_ORDER),
        enforcing_consecutive_local_origin_failure=number(100),
        enforcing_consecutive_gateway_failure=number(100),
        enforcing_consecutive_5xx=number(0),
        enforcing_success_rate=number(0),
        enforcing_local_origin_success_rate=number(0),
    )


def _choosing() -> cluster_pb2.Cluster.CommonLbConfig:
    """What changes takes effect at once: Envoy would hold back a gateway's draining for up to a second after another change."""
    return cluster_pb2.Cluster.CommonLbConfig(
        healthy_panic_threshold=percent_pb2.Percent(value=_PANIC_PERCENT), update_merge_window=seconds(0)
    )
