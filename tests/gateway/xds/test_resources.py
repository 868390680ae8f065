"""The edge as a snapshot: fit, the same on every replica, and changed only where something changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xds import core_pb2, endpoint_pb2, http_connection_manager_pb2, listener_pb2, route_pb2

from gateway.xds.descriptors import annotated_services, http_prefixes, load_descriptor_set
from gateway.xds.resources import edge_snapshot
from gateway.xds.snapshot import ResourceType, Snapshot
from gateway.xds.types import AddressUnusable, Edge, EdgeLimits, Endpoint, ServerFiles, endpoint_of
from runtime.identity import TlsFiles

FILES = TlsFiles(Path("/run/ca.pem"), Path("/run/tls.pem"), Path("/run/tls.key"))
DESCRIPTORS = load_descriptor_set()
EDGE = Edge(Endpoint("127.0.0.1", 8080), FILES, DESCRIPTORS, annotated_services(DESCRIPTORS))
HERE, THERE = Endpoint("127.0.0.1", 9000), Endpoint("127.0.0.1", 9001)

endpoints = st.lists(st.builds(Endpoint, st.ip_addresses().map(str), st.integers(0, 65535)), max_size=5)


@settings(deadline=None)
@given(endpoints)
def test_any_set_of_gateways_is_fit_and_order_does_not_matter(gateways: list[Endpoint]) -> None:
    snapshot = edge_snapshot(EDGE, gateways)
    assert snapshot.faults() == ()
    assert snapshot.versions == edge_snapshot(EDGE, [*reversed(gateways), *gateways]).versions


def changed(before: Snapshot, after: Snapshot) -> set[ResourceType]:
    return {kind for kind in ResourceType if before.versions[kind] != after.versions[kind]}


@pytest.mark.parametrize(
    ("edge", "kinds"),
    [
        (replace(EDGE, listen=Endpoint("::1", 8080)), {ResourceType.LISTENERS}),
        (replace(EDGE, limits=EdgeLimits(body_bytes=1)), {ResourceType.LISTENERS}),
        (replace(EDGE, limits=EdgeLimits(retries=0)), {ResourceType.ROUTES}),
        (replace(EDGE, limits=EdgeLimits(concurrent_requests=1)), {ResourceType.CLUSTERS}),
        (replace(EDGE, passed_through=("/x.Y/",)), {ResourceType.ROUTES}),
        (replace(EDGE, gateway_name="other"), {ResourceType.CLUSTERS}),
        (replace(EDGE, cors_origins=("*",)), {ResourceType.LISTENERS, ResourceType.ROUTES}),
        (
            replace(EDGE, server_files=ServerFiles(FILES.certificate, FILES.key)),
            {ResourceType.LISTENERS, ResourceType.SECRETS},
        ),
        (replace(EDGE, access_log="/dev/stdout"), {ResourceType.LISTENERS}),
    ],
)
def test_a_setting_touches_what_it_says(edge: Edge, kinds: set[ResourceType]) -> None:
    assert changed(edge_snapshot(EDGE, [HERE]), edge_snapshot(edge, [HERE])) == kinds


def test_a_gateway_that_comes_touches_endpoints_alone() -> None:
    assert changed(edge_snapshot(EDGE, [HERE]), edge_snapshot(EDGE, [HERE, THERE])) == {ResourceType.ENDPOINTS}


def test_a_gateway_that_drains_touches_endpoints_alone_and_is_marked() -> None:
    after = edge_snapshot(EDGE, [HERE, THERE], frozenset({THERE}))
    assert changed(edge_snapshot(EDGE, [HERE, THERE]), after) == {ResourceType.ENDPOINTS}
    (resource,) = after.resources[ResourceType.ENDPOINTS]
    (locality,) = endpoint_pb2.ClusterLoadAssignment.FromString(resource.body).endpoints
    marks = {one.endpoint.address.socket_address.port_value: one.health_status for one in locality.lb_endpoints}
    assert marks == {HERE.port: core_pb2.UNKNOWN, THERE.port: core_pb2.DRAINING}


def test_the_listener_is_where_it_was_said_and_takes_the_port_for_itself() -> None:
    (resource,) = edge_snapshot(EDGE, [HERE]).resources[ResourceType.LISTENERS]
    listener = listener_pb2.Listener.FromString(resource.body)
    assert (listener.address.socket_address.address, listener.address.socket_address.port_value) == ("127.0.0.1", 8080)
    assert listener.HasField("enable_reuse_port")
    assert not listener.enable_reuse_port.value


def test_routes_offer_no_inner_service() -> None:
    (resource,) = edge_snapshot(EDGE, [HERE]).resources[ResourceType.ROUTES]
    (host,) = route_pb2.RouteConfiguration.FromString(resource.body).virtual_hosts
    offered = {route.match.prefix for route in host.routes}
    assert "/inference.GRPCInferenceService/" in offered
    assert "/penstock.gateway.v1.OpenAIService/" in offered
    assert not [prefix for prefix in offered if prefix.startswith(("/envoy.", "/penstock.worker", "/penstock.registry"))]
    assert [prefix for prefix in offered if prefix.startswith("/penstock.scheduler")] == ["/penstock.scheduler.v1.JobService/"]
    assert "/" not in offered
    assert all(route.route.timeout.ToMilliseconds() == 0 for route in host.routes)


def test_inner_services_are_spoken_as_json_only_when_asked_for() -> None:
    offered = annotated_services(DESCRIPTORS)
    assert {"penstock.gateway.v1.OpenAIService", "penstock.gateway.v1.ReservationService"} < set(offered)
    others = [name for name in offered if not name.startswith("penstock.gateway.")]
    assert others == ["penstock.scheduler.v1.JobService"]
    every = annotated_services(DESCRIPTORS, ("penstock.",))
    assert {"penstock.gateway.v1.OpenAIService", "penstock.worker.v1.WorkerService"} <= set(every)
    assert http_prefixes(DESCRIPTORS, every) == ("/v1/", "/v2/")


@pytest.mark.parametrize(("host", "port"), [("localhost", 80), ("", 80), ("127.0.0.1", 70_000), ("127.0.0.1", -1)])
def test_what_is_no_address_is_named(host: str, port: int) -> None:
    with pytest.raises(AddressUnusable, match=repr(host) if port == 80 else str(port)):
        Endpoint(host, port)


@pytest.mark.parametrize(
    ("address", "endpoint"), [("127.0.0.1:80", Endpoint("127.0.0.1", 80)), ("[::1]:9", Endpoint("::1", 9))]
)
def test_an_address_is_read(address: str, endpoint: Endpoint) -> None:
    assert endpoint_of(address) == endpoint


@pytest.mark.parametrize("address", ["", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "localhost:80", "127.0.0.1:99999999", ":80"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(AddressUnusable):
        endpoint_of(address)


def test_the_access_log_names_no_secret() -> None:
    (resource,) = edge_snapshot(replace(EDGE, access_log="/log"), [HERE]).resources[ResourceType.LISTENERS]
    (network,) = listener_pb2.Listener.FromString(resource.body).filter_chains[0].filters
    manager = http_connection_manager_pb2.HttpConnectionManager()
    assert network.typed_config.Unpack(manager)
    (log,) = manager.access_log
    written = str(log).lower()
    assert "x-request-id" in written
    assert not [word for word in ("authorization", "cookie", "api-key", "body", "query") if word in written]
