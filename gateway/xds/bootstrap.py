"""What Envoy is started with: who it is, and where the control plane that tells it the rest is.

Everything else arrives over the discovery stream and survives its loss: Envoy keeps the last configuration it accepted. Its own
certificate is told of in a second file, so that a renewed one is used without a restart.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import json_format, struct_pb2
from xds import bootstrap_pb2, cluster_pb2, core_pb2, discovery_pb2, downstream_connections_pb2, overload_pb2

from gateway.xds.clusters import alive, http2, members
from gateway.xds.packing import from_file, over_ads, packed, seconds, socket
from gateway.xds.tls import IDENTITY, certificate_secret, towards_gateway
from gateway.xds.types import Endpoint
from runtime.identity import Role, TlsFiles, server_name

CONTROL_PLANE = "control-plane"
_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_CONNECTIONS_MONITOR = "envoy.resource_monitors.global_downstream_max_connections"

_FLOODS = {
    "overload.premature_reset_total_stream_count": 500,
    "overload.premature_reset_min_stream_lifetime_seconds": 1,
    "http.max_requests_per_io_cycle": 16,
}
"""HTTP/2 clients that open streams only to reset them are cut off (CVE-2023-44487), and one connection's requests do not keep a
thread from the others'. Envoy's own bounds on frames of other kinds are in force as they are."""


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


def bootstrap_json(bootstrap: Bootstrap, identity_file: Path) -> str:
    """The bootstrap as Envoy reads it. `identity_file`: where `identity_json` lies."""
    resources = bootstrap_pb2.Bootstrap
    whole = resources(
        node=core_pb2.Node(id=bootstrap.node_id, cluster=bootstrap.cluster),
        static_resources=resources.StaticResources(clusters=[_control_plane(bootstrap, identity_file)]),
        dynamic_resources=resources.DynamicResources(
            lds_config=over_ads(), cds_config=over_ads(), ads_config=_stream(bootstrap)
        ),
        overload_manager=_connections(bootstrap.client_connections),
        layered_runtime=_runtime(),
        admin=_admin(bootstrap.admin),
    )
    return json_format.MessageToJson(whole, preserving_proto_field_name=True)


def identity_json(identity: TlsFiles) -> str:
    """Of which files Envoy's own certificate and key are; it watches them."""
    secret = certificate_secret(IDENTITY, identity.certificate, identity.key)
    return json_format.MessageToJson(
        discovery_pb2.DiscoveryResponse(resources=[packed(secret)]), preserving_proto_field_name=True
    )


def write_bootstrap(bootstrap: Bootstrap, file: Path) -> Path:
    """Write it, and `….identity.json` beside it, whole or not at all; returns the file. They name the key's file and hold no
    secret."""
    file = file.absolute()
    identity_file = file.with_suffix(".identity.json")
    _write(identity_file, identity_json(bootstrap.identity))
    return _write(file, bootstrap_json(bootstrap, identity_file))


def _write(file: Path, content: str) -> Path:
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.write_text(content, encoding="utf-8")
    return draft.replace(file)


def _control_plane(bootstrap: Bootstrap, identity_file: Path) -> cluster_pb2.Cluster:
    return cluster_pb2.Cluster(
        name=CONTROL_PLANE,
        type=cluster_pb2.Cluster.STATIC,
        connect_timeout=seconds(1),
        load_assignment=members(CONTROL_PLANE, bootstrap.control_planes),
        transport_socket=towards_gateway(bootstrap.identity.authority, bootstrap.gateway_name, from_file(identity_file)),
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


def _runtime() -> bootstrap_pb2.LayeredRuntime:
    layer = struct_pb2.Struct()
    layer.update(_FLOODS)
    return bootstrap_pb2.LayeredRuntime(layers=[bootstrap_pb2.RuntimeLayer(name="penstock", static_layer=layer)])


def _admin(where: Endpoint | Path | None) -> bootstrap_pb2.Admin | None:
    if where is None:
        return None
    if isinstance(where, Path):
        return bootstrap_pb2.Admin(address=core_pb2.Address(pipe=core_pb2.Pipe(path=str(where), mode=0o600)))
    return bootstrap_pb2.Admin(address=socket(where))
