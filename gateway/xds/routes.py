"""RDS: which paths reach the gateways, and what a page of another origin may do. All else is answered 404 by the edge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from google.protobuf import any_pb2
from xds import cors_pb2, lua_pb2, matcher_pb2, percent_pb2, route_pb2, transcoder_pb2

from gateway.xds.clusters import GATEWAYS, GATEWAYS_HTTP
from gateway.xds.descriptors import DIRECT, direct_paths, http_prefixes
from gateway.xds.packing import packed, seconds
from gateway.xds.registry_front import method_routes
from gateway.xds.retries import UNTOUCHED, elsewhere
from gateway.xds.types import Edge, EdgeLimits

ROUTES = "edge"
CORS_FILTER = "envoy.filters.http.cors"
LUA_FILTER = "envoy.filters.http.lua"
TRANSCODER_FILTER = "envoy.filters.http.grpc_json_transcoder"
_CORS_METHODS = "GET, POST, DELETE, OPTIONS"
_CORS_REQUEST_HEADERS = (
    "authorization, x-api-key, content-type, content-encoding, inference-header-content-length, x-request-id, "
    "x-penstock-region, x-grpc-web, x-user-agent, grpc-timeout, traceparent, tracestate"
)
_CORS_RESPONSE_HEADERS = (
    "x-request-id, retry-after, retry-after-ms, grpc-status, grpc-message, grpc-status-details-bin, "
    "inference-header-content-length, openai-processing-ms, x-penstock-model, x-penstock-model-version, x-penstock-cache, "
    "x-penstock-overhead-ms, x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, "
    "x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens"
)


def edge_routes(edge: Edge, *, direct: bool = False) -> route_pb2.RouteConfiguration:
    """One virtual host for every name. `direct`: what needs no transcoding goes to the gateways as HTTP.

    Other JSON reaches the gateway by its method's path, after it was transcoded. Its HTTP path has a route for the sake of
    preflight requests, which are never transcoded: without a route Envoy finds no CORS policy.
    """
    methods = (f"/{service}/" for service in edge.services)
    prefixes = (*edge.passed_through, *methods, *http_prefixes(edge.descriptor_set, edge.services))
    registry = method_routes(edge) if edge.registry else ()
    host = route_pb2.VirtualHost(
        name=ROUTES,
        domains=["*"],
        routes=[*registry, *(_direct_routes(edge) if direct else ()), *(_route(prefix, edge.limits) for prefix in prefixes)],
        typed_per_filter_config=_cors(edge.cors_origins),
    )
    return route_pb2.RouteConfiguration(name=ROUTES, virtual_hosts=[host])


def _route(prefix: str, limits: EdgeLimits) -> route_pb2.Route:
    # A timeout of zero is none: deadlines are the client's and the gateway's, and a stream lasts as long as it speaks.
    # Of retries Envoy does only those of requests that reached no handler; the others are the gateway's, with its budget.
    action = route_pb2.RouteAction(
        cluster=GATEWAYS,
        timeout=seconds(0),
        idle_timeout=seconds(limits.stream_idle_timeout_s),
        retry_policy=elsewhere(UNTOUCHED, limits.retries) if limits.retries else None,
    )
    return route_pb2.Route(name=prefix, match=route_pb2.RouteMatch(prefix=prefix), route=action)


def _direct_routes(edge: Edge) -> Iterator[route_pb2.Route]:
    untouched = {
        LUA_FILTER: packed(lua_pb2.LuaPerRoute(disabled=True)),
        # Without services it does nothing, but Envoy insists on descriptors.
        TRANSCODER_FILTER: packed(transcoder_pb2.GrpcJsonTranscoder(proto_descriptor_bin=edge.descriptor_set)),
    }
    for path in direct_paths(edge.descriptor_set, DIRECT):
        is_prefix = path.endswith("/")
        match = route_pb2.RouteMatch(prefix=path) if is_prefix else route_pb2.RouteMatch(path=path)
        route = _route(path, edge.limits)
        route.route.cluster = GATEWAYS_HTTP
        yield route_pb2.Route(name=path, match=match, route=route.route, typed_per_filter_config=untouched)


def _cors(origins: tuple[str, ...]) -> Mapping[str, any_pb2.Any]:
    if not origins:
        return {}
    policy = cors_pb2.CorsPolicy(
        allow_origin_string_match=[_origin(one) for one in sorted(origins)],
        allow_methods=_CORS_METHODS,
        allow_headers=_CORS_REQUEST_HEADERS,
        expose_headers=_CORS_RESPONSE_HEADERS,
        max_age="86400",
    )
    policy.filter_enabled.default_value.CopyFrom(percent_pb2.FractionalPercent(numerator=100))
    return {CORS_FILTER: packed(policy)}


def _origin(origin: str) -> matcher_pb2.StringMatcher:
    if origin == "*":
        return matcher_pb2.StringMatcher(safe_regex=matcher_pb2.RegexMatcher(regex=".*"))
    return matcher_pb2.StringMatcher(exact=origin)
