"""What Envoy is started with: who it is, and where the control plane that tells it the rest is.

Everything else arrives over the discovery stream and survives its loss: Envoy keeps the last configuration it accepted.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import json_format
from xds import bootstrap_pb2, cluster_pb2, core_pb2, downstream_connections_pb2, overload_pb2

from gateway.xds.clusters import alive, http2, members
from gateway.xds.packing import over_ads, packed, seconds, socket
from gateway.xds.tls import towards_gateway
from gateway.xds.types import Endpoint
from runtime.identity import Role, TlsFiles, server_name

CONTROL_PLANE = "control-plane"
_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_CONNECTIONS_MONITOR = "envoy.resource_monitors.global_downstream_max_connections"


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """The static part. Several control planes are tried in turn; any one is enough."""

    node_id: str
    control_planes: Sequence[Endpoint]
    """Inner ports of gateways, where discovery is served."""
    identity: TlsFiles
    gateway_name: str = server_name(Role.GATEWAY)
    cluster: str = "penstock"
    admin: Endpoint | Path | None = None
    """The administration page: a loopback address or a Unix socket. It can stop the process, so it is off unless asked for."""
    client_connections: int = 50_000
    reconnect_s: float = 0.2
    reconnect_max_s: float = 2.0


def bootstrap_json(bootstrap: Bootstrap) -> str:
    """The bootstrap as Envoy reads it."""
    resources = bootstrap_pb2.Bootstrap
    whole = resources(
        node=core_pb2.Node(id=bootstrap.node_id, cluster=bootstrap.cluster),
        static_resources=resources.StaticResources(clusters=[_control_plane(bootstrap)]),
        dynamic_resources=resources.DynamicResources(
            lds_config=over_ads(), cds_config=over_ads(), ads_config=_stream(bootstrap)
        ),
        overload_manager=_connections(bootstrap.client_connections),
        admin=_admin(bootstrap.admin),
    )
    return json_format.MessageToJson(whole, preserving_proto_field_name=True)


def write_bootstrap(bootstrap: Bootstrap, file: Path) -> Path:
    """Write it, whole or not at all; returns the file. It names the key's file and holds no secret."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.write_text(bootstrap_json(bootstrap), encoding="utf-8")
    return draft.replace(file)


def _control_plane(bootstrap: Bootstrap) -> cluster_pb2.Cluster:
    return cluster_pb2.Cluster(
        name=CONTROL_PLANE,
        type=cluster_pb2.Cluster.STATIC,
        connect_timeout=seconds(1),
        load_assignment=members(CONTROL_PLANE, bootstrap.control_planes),
        transport_socket=towards_gateway(bootstrap.identity, bootstrap.gateway_name),
        typed_extension_protocol_options={_HTTP_OPTIONS: http2(streams=16)},
        upstream_connection_options=alive(),
    )


def _stream(bootstrap: Bootstrap) -> core_pb2.ApiConfigSource:
    back_off = core_pb2.BackoffStrategy(
        base_interval=seconds(bootstrap.reconnect_s), max_interval=seconds(bootstrap.reconnect_max_s)
    )
    service = core_pb2.GrpcService.EnvoyGrpc(
        cluster_name=CONTROL_PLANE, retry_policy=core_pb2.RetryPolicy(retry_back_off=back_off)
    )
    return core_pb2.ApiConfigSource(
        api_type=core_pb2.ApiConfigSource.GRPC,
        transport_api_version=core_pb2.V3,
        grpc_services=[core_pb2.GrpcService(envoy_grpc=service)],
        set_node_on_first_message_only=True,
    )


def _connections(bound: int) -> overload_pb2.OverloadManager:
    monitor = downstream_connections_pb2.DownstreamConnectionsConfig(max_active_downstream_connections=bound)
    return overload_pb2.OverloadManager(
        resource_monitors=[overload_pb2.ResourceMonitor(name=_CONNECTIONS_MONITOR, typed_config=packed(monitor))]
    )


def _admin(where: Endpoint | Path | None) -> bootstrap_pb2.Admin | None:
    if where is None:
        return None
    if isinstance(where, Path):
        return bootstrap_pb2.Admin(address=core_pb2.Address(pipe=core_pb2.Pipe(path=str(where), mode=0o600)))
    return bootstrap_pb2.Admin(address=socket(where))
