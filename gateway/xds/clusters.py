"""CDS and EDS: the gateways as one cluster, and where they are. The bootstrap's control plane is built of the same parts."""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf import any_pb2
from xds import cluster_pb2, core_pb2, endpoint_pb2, upstream_http_pb2

from gateway.xds.packing import number, over_ads, packed, seconds, socket
from gateway.xds.tls import towards_gateway
from gateway.xds.types import Edge, EdgeLimits, Endpoint, RegistryFront

GATEWAYS = "gateways"
REGISTRIES = "registries"
_HEALTH_INTERVAL_S, _HEALTH_TIMEOUT_S = 1.0, 1.0
_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_STREAM_WINDOW_BYTES = 1024 * 1024
_CONNECTION_WINDOW_BYTES = 16 * 1024 * 1024
_BUFFER_BYTES = 1024 * 1024


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
        transport_socket=towards_gateway(edge.identity, edge.gateway_name),
        typed_extension_protocol_options={_HTTP_OPTIONS: http2(limits.streams_per_connection)},
        upstream_connection_options=alive(),
    )


def registries_cluster(edge: Edge, front: RegistryFront) -> cluster_pb2.Cluster:
    """Every replica of the registry, asked each second whether it is well."""
    cluster = gateways_cluster(edge)
    cluster.name = cluster.eds_cluster_config.service_name = REGISTRIES
    cluster.lb_policy = cluster_pb2.Cluster.ROUND_ROBIN
    cluster.transport_socket.CopyFrom(towards_gateway(edge.identity, front.name))
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


def gateways_members(endpoints: Iterable[Endpoint]) -> endpoint_pb2.ClusterLoadAssignment:
    """Where the gateways are; none is a valid answer, and clients then read 503."""
    return members(GATEWAYS, endpoints)


def members(cluster_name: str, endpoints: Iterable[Endpoint]) -> endpoint_pb2.ClusterLoadAssignment:
    """The members of a cluster, in order, so that the same set has the same bytes."""
    found = [endpoint_pb2.LbEndpoint(endpoint=endpoint_pb2.Endpoint(address=socket(one))) for one in sorted(set(endpoints))]
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
