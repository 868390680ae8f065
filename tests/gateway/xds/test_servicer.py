"""The discovery stream over real gRPC with mTLS: who may, what goes out, what is remembered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest
from google.rpc import status_pb2
from xds import core_pb2, discovery_pb2, discovery_pb2_grpc

from gateway.xds.holder import SnapshotHolder
from gateway.xds.resources import edge_snapshot
from gateway.xds.servicer import SERVICE, DiscoveryServicer
from gateway.xds.snapshot import ResourceType
from runtime.channel import inner_channel
from runtime.identity import Authority, Role
from runtime.serving import Listen, serving
from tests.gateway.xds.test_resources import EDGE, HERE, THERE

CLUSTERS = ResourceType.CLUSTERS.value
Stub = discovery_pb2_grpc.AggregatedDiscoveryServiceStub


class Plane:
    """A control plane on loopback, and channels to it by role."""

    def __init__(self, folder: Path, servicer: DiscoveryServicer, holder: SnapshotHolder) -> None:
        self.authority = Authority.open(folder / "authority")
        self.folder, self.servicer, self.holder, self.port = folder, servicer, holder, 0

    @asynccontextmanager
    async def stub(self, role: Role = Role.ENVOY) -> AsyncIterator[Stub]:
        identity = self.authority.enrol(self.folder / role.value, role)
        async with inner_channel(f"127.0.0.1:{self.port}", identity, Role.GATEWAY) as channel:
            yield Stub(channel)

    async def until(self, reached: Callable[[DiscoveryServicer], bool]) -> None:
        async with asyncio.timeout(5):
            await self.servicer.until(reached)


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Plane]:
    holder = SnapshotHolder()
    made = Plane(tmp_path, DiscoveryServicer(holder, identifier="here", max_streams=2), holder)
    identity = made.authority.enrol(tmp_path / "gateway", Role.GATEWAY)

    def register(server: grpc.aio.Server) -> None:
        discovery_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(made.servicer, server)

    async with serving([Listen("127.0.0.1", 0, identity)], [register], (SERVICE,), drain_grace_s=0) as running:
        made.port = running.ports[0]
        yield made


def ask(kind: str = CLUSTERS, **fields: object) -> discovery_pb2.DiscoveryRequest:
    return discovery_pb2.DiscoveryRequest(type_url=kind, node=core_pb2.Node(id="edge-1"), **fields)  # type: ignore[arg-type]


async def test_a_subscription_is_answered_and_followed_by_changes(plane: Plane) -> None:
    plane.holder.publish(edge_snapshot(EDGE, [HERE]))
    async with plane.stub() as stub:
        call = stub.StreamAggregatedResources()
        await call.write(ask(ResourceType.ENDPOINTS.value, resource_names=["gateways"]))
        first = await call.read()
        assert isinstance(first, discovery_pb2.DiscoveryResponse)
        assert first.control_plane.identifier == "here"
        assert [one.type_url for one in first.resources] == [ResourceType.ENDPOINTS.value]
        plane.holder.publish(edge_snapshot(EDGE, [HERE, THERE]))
        second = await call.read()
        assert isinstance(second, discovery_pb2.DiscoveryResponse)
        assert second.version_info != first.version_info
        call.cancel()


async def test_a_subscription_waits_for_the_first_snapshot(plane: Plane) -> None:
    async with plane.stub() as stub:
        call = stub.StreamAggregatedResources()
        await call.write(ask())
        await plane.until(lambda seen: bool(seen.edges() and seen.edges()[0].node))
        plane.holder.publish(edge_snapshot(EDGE, [HERE]))
        reply = await call.read()
        assert isinstance(reply, discovery_pb2.DiscoveryResponse)
        await call.write(ask(version_info=reply.version_info, response_nonce=reply.nonce))
        await plane.until(lambda seen: seen.edges()[0].settled)
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK
    assert plane.servicer.edges() == ()


async def test_a_nack_is_remembered_after_the_stream_has_gone(plane: Plane) -> None:
    plane.holder.publish(edge_snapshot(EDGE, [HERE]))
    async with plane.stub() as stub:
        call = stub.StreamAggregatedResources()
        await call.write(ask())
        reply = await call.read()
        assert isinstance(reply, discovery_pb2.DiscoveryResponse)
        await call.write(ask(response_nonce=reply.nonce, error_detail=status_pb2.Status(message="bad " * 10_000)))
        await plane.until(lambda seen: bool(seen.rejections()))
        (status,) = plane.servicer.edges()
        assert status.rejected[ResourceType.CLUSTERS].version == reply.version_info
        call.cancel()
    await plane.until(lambda seen: seen.edges() == ())
    (refusal,) = plane.servicer.rejections()
    assert (refusal.node, refusal.kind) == ("edge-1", ResourceType.CLUSTERS)
    assert len(refusal.rejection.detail) == 2_000


@pytest.mark.parametrize("role", [Role.WORKER, Role.GATEWAY, Role.OPERATOR])
async def test_only_an_envoy_may_have_the_configuration(plane: Plane, role: Role) -> None:
    async with plane.stub(role) as stub:
        call = stub.StreamAggregatedResources()
        assert await call.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_streams_and_names_are_bounded(plane: Plane) -> None:
    async with plane.stub() as stub:
        calls = [stub.StreamAggregatedResources() for _ in range(2)]
        for call in calls:
            await call.write(ask())
        await plane.until(lambda seen: [one.node for one in seen.edges()] == ["edge-1"] * 2)
        assert await stub.StreamAggregatedResources().code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await calls[0].write(ask(resource_names=[str(number) for number in range(2_000)]))
        assert await calls[0].code() is grpc.StatusCode.INVALID_ARGUMENT
        calls[1].cancel()


async def test_an_unknown_type_is_passed_over(plane: Plane) -> None:
    plane.holder.publish(edge_snapshot(EDGE, [HERE]))
    async with plane.stub() as stub:
        call = stub.StreamAggregatedResources()
        await call.write(ask("type.googleapis.com/envoy.service.runtime.v3.Runtime"))
        await call.write(ask())
        reply = await call.read()
        assert isinstance(reply, discovery_pb2.DiscoveryResponse)
        assert reply.type_url == CLUSTERS
        call.cancel()
