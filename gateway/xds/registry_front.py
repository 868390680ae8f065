"""The registry's replicas behind Envoy: a listener for nodes, routes for both listeners, what is tried again elsewhere.

A node's certificate ends at Envoy, which tells the registry whose it was in `x-forwarded-client-cert` and drops what a client
wrote there itself. No call sticks to a replica. A call that may be done twice is tried at another replica when one dies in the
middle; any other only where it certainly reached no handler.
"""

from __future__ import annotations

from collections.abc import Iterator

from xds import http_connection_manager_pb2, listener_pb2, route_pb2, router_pb2

from gateway.xds.access_log import access_logs
from gateway.xds.clusters import REGISTRIES
from gateway.xds.packing import flag, number, over_ads, packed, seconds, socket
from gateway.xds.retries import ANYWAY, UNTOUCHED, elsewhere
from gateway.xds.tls import towards_nodes
from gateway.xds.types import Edge, Endpoint, RegistryFront

LISTENER = "registry"
ROUTES = "registry"
PACKAGE = "penstock.registry."
_PASSED_THROUGH = (
    "/grpc.health.v1.Health/",
    "/grpc.reflection.v1.ServerReflection/",
    "/grpc.reflection.v1alpha.ServerReflection/",
)
_RETRIES = 3
_PER_TRY_S = 5.0
"""A replica that hangs is given up after so long, where that is harmless."""

_V1 = "/penstock.registry.v1."
_TWICE_IS_ONCE = (
    *(f"{_V1}ModelService/{method}" for method in ("ListModels", "GetVersion", "PublishVersion", "WithdrawVersion")),
    *(
        f"{_V1}ModelService/{method}"
        for method in ("ListAliasMoves", "ListSigners", "EndorseSigner", "RevokeSigner", "ShareModel")
    ),
    *(f"{_V1}FileService/{method}" for method in ("BeginUpload", "AbortUpload", "GetStorage", "SetQuota")),
    *(
        f"{_V1}AccountService/{method}"
        for method in ("ListTenants", "ListUsers", "WhoAmI", "ListKeys", "RevokeKey", "ResolveKey")
    ),
    *(
        f"{_V1}NodeService/{method}"
        for method in ("ListJoinTokens", "RevokeJoinToken", "RenewCertificate", "ListNodes", "RevokeNode")
    ),
    f"{_V1}AuditService/ListEntries",
)
"""Methods with one answer whose second call changes nothing and answers the same."""

_Hcm = http_connection_manager_pb2.HttpConnectionManager


def registry_listener(edge: Edge, listen: Endpoint) -> listener_pb2.Listener:
    """Where nodes reach the registry."""
    chain = listener_pb2.FilterChain(
        filters=[
            listener_pb2.Filter(name="envoy.filters.network.http_connection_manager", typed_config=packed(_manager(edge)))
        ],
        transport_socket=towards_nodes(edge.identity.authority),
    )
    return listener_pb2.Listener(
        name=LISTENER, address=socket(listen), filter_chains=[chain], enable_reuse_port=flag(edge.share_port)
    )


def registry_routes(edge: Edge) -> route_pb2.RouteConfiguration:
    """gRPC of the registry and nothing else."""
    routes = [
        *method_routes(edge),
        *(_route(prefix, edge, elsewhere(UNTOUCHED, _RETRIES), whole=False) for prefix in _PASSED_THROUGH),
    ]
    return route_pb2.RouteConfiguration(
        name=ROUTES, virtual_hosts=[route_pb2.VirtualHost(name=ROUTES, domains=["*"], routes=routes)]
    )


def method_routes(edge: Edge) -> Iterator[route_pb2.Route]:
    """The registry's methods, on either listener."""
    for method in _TWICE_IS_ONCE:
        yield _route(method, edge, elsewhere(ANYWAY, _RETRIES, per_try_s=_PER_TRY_S), whole=True)
    front = edge.registry or RegistryFront(())
    for service in front.services:
        yield _route(f"/{service}/", edge, elsewhere(UNTOUCHED, _RETRIES), whole=False)


def _manager(edge: Edge) -> _Hcm:
    limits = edge.limits
    return _Hcm(
        codec_type=_Hcm.HTTP2,
        stat_prefix=LISTENER,
        rds=http_connection_manager_pb2.Rds(config_source=over_ads(), route_config_name=ROUTES),
        http_filters=[
            http_connection_manager_pb2.HttpFilter(
                name="envoy.filters.http.router", typed_config=packed(router_pb2.Router(suppress_envoy_headers=True))
            )
        ],
        max_request_headers_kb=number(limits.header_kib),
        stream_idle_timeout=seconds(limits.stream_idle_timeout_s),
        request_headers_timeout=seconds(limits.request_headers_timeout_s),
        drain_timeout=seconds(limits.drain_timeout_s),
        access_log=access_logs(edge.access_log, LISTENER),
        use_remote_address=flag(True),
        forward_client_cert_details=_Hcm.SANITIZE_SET,
        set_current_client_cert_details=_Hcm.SetCurrentClientCertDetails(uri=True),
        preserve_external_request_id=True,
    )


def _route(path: str, edge: Edge, policy: route_pb2.RetryPolicy, *, whole: bool) -> route_pb2.Route:
    action = route_pb2.RouteAction(
        cluster=REGISTRIES, timeout=seconds(0), idle_timeout=seconds(edge.limits.stream_idle_timeout_s), retry_policy=policy
    )
    match = route_pb2.RouteMatch(path=path) if whole else route_pb2.RouteMatch(prefix=path)
    return route_pb2.Route(name=path, match=match, route=action)
