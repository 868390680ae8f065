"""The registry's replicas behind the real Envoy: who calls is told truly, a replica that ends costs nobody a call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
from penstock.registry.v1 import accounts_pb2, accounts_pb2_grpc
from penstock.worker.v1 import worker_pb2, worker_pb2_grpc

from gateway.xds.descriptors import annotated_services
from gateway.xds.types import Endpoint, RegistryFront
from runtime.channel import inner_channel
from runtime.identity import Authority, NodeIdentity, Role, server_name
from runtime.serving import Listen, Running, inner_peer, serving
from tests.support.edge import EdgeUnderTest, edge_under_test
from tests.support.envoy import LOOPBACK, free_endpoint

SERVICE = "penstock.registry.v1.AccountService"
XFCC = "x-forwarded-client-cert"


@dataclass(slots=True)
class Replica:
    """Answers with what it saw of the caller."""

    name: str
    hang: bool = False
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    served: int = 0

    def register(self, server: grpc.aio.Server) -> None:
        method = grpc.unary_unary_rpc_method_handler(
            self._who_am_i,
            request_deserializer=accounts_pb2.WhoAmIRequest.FromString,
            response_serializer=accounts_pb2.WhoAmIResponse.SerializeToString,
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"WhoAmI": method}),))

    async def _who_am_i(self, request: accounts_pb2.WhoAmIRequest, context: Any) -> accounts_pb2.WhoAmIResponse:
        seen = dict(context.invocation_metadata())
        self.served += 1
        self.asked.set()
        if self.hang:
            await asyncio.Event().wait()
        return accounts_pb2.WhoAmIResponse(
            kind=inner_peer(context).role.value,
            id=self.name,
            tenant=str(seen.get(XFCC, "")),
            role=str(seen.get("authorization", "")),
        )


@dataclass(slots=True)
class Front:
    edge: EdgeUnderTest
    replicas: list[Replica]
    servers: list[Running]
    listen: Endpoint

    @property
    def address(self) -> str:
        return f"{self.listen.host}:{self.listen.port}"


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Front]:
    async with edge_under_test(tmp_path) as edge:
        identity = edge.authority.enrol(tmp_path / "registry", Role.REGISTRY)
        replicas, servers = [Replica("one"), Replica("two")], []
        for replica in replicas:
            server = serving([Listen(LOOPBACK, 0, identity)], [replica.register], (SERVICE,), drain_grace_s=0.0)
            servers.append(await edge.stack.enter_async_context(server))
        listen = free_endpoint()
        services = annotated_services(edge.edge.descriptor_set, ("penstock.registry.",))
        members = tuple(Endpoint(LOOPBACK, server.ports[0]) for server in servers)
        _, gateway, _ = await edge.gateway("gateway")
        edge.publish(gateway, registry=RegistryFront(members, listen, services))
        envoy = await edge.envoy(gateway)
        await envoy.until_listening(listen)
        await edge.settled()
        yield Front(edge, replicas, servers, listen)


async def who(address: str, identity: NodeIdentity, *metadata: tuple[str, str]) -> accounts_pb2.WhoAmIResponse:
    async with inner_channel(address, identity, Role.REGISTRY) as channel:
        stub = accounts_pb2_grpc.AccountServiceStub(channel)
        return await stub.WhoAmI(accounts_pb2.WhoAmIRequest(), metadata=metadata, timeout=10, wait_for_ready=True)


async def test_a_nodes_certificate_reaches_the_registry_and_cannot_be_made_up(front: Front, tmp_path: Path) -> None:
    operator = front.edge.authority.enrol(tmp_path / "operator", Role.OPERATOR)
    seen = await who(front.address, operator, (XFCC, "URI=penstock://operator/somebody-else"))
    assert seen.kind == "envoy"
    told = [pair for pair in seen.tenant.split(";") if pair.startswith("URI=")]
    assert told == [f"URI=penstock://operator/{operator.node_id}"]


async def test_who_shows_no_certificate_gets_in_as_nobody(front: Front) -> None:
    believed = grpc.ssl_channel_credentials(front.edge.identity.authority_pem)
    options = [("grpc.ssl_target_name_override", server_name(Role.REGISTRY))]
    async with grpc.aio.secure_channel(front.address, believed, options=options) as channel:
        stub = accounts_pb2_grpc.AccountServiceStub(channel)
        metadata = ((XFCC, "URI=penstock://operator/made-up"), ("authorization", "Bearer ss-pn-1"))
        seen = await stub.WhoAmI(accounts_pb2.WhoAmIRequest(), metadata=metadata, timeout=10, wait_for_ready=True)
    assert (seen.tenant, seen.role) == ("", "Bearer ss-pn-1")


async def test_a_certificate_of_another_mesh_gets_nowhere(front: Front, tmp_path: Path) -> None:
    stranger = Authority.open(tmp_path / "other").enrol(tmp_path / "stranger", Role.OPERATOR)
    own = front.edge.identity
    credentials = grpc.ssl_channel_credentials(own.authority_pem, stranger.tls_key_pem, stranger.certificate_pem)
    options = [("grpc.ssl_target_name_override", server_name(Role.REGISTRY))]
    async with grpc.aio.secure_channel(front.address, credentials, options=options) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await accounts_pb2_grpc.AccountServiceStub(channel).WhoAmI(accounts_pb2.WhoAmIRequest(), timeout=10)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_only_the_registry_is_behind_this_door(front: Front) -> None:
    async with inner_channel(front.address, front.edge.identity, Role.REGISTRY) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await worker_pb2_grpc.WorkerServiceStub(channel).LoadModel(worker_pb2.LoadModelRequest(), timeout=10)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_people_speak_json_to_it_over_the_edge(front: Front) -> None:
    async with httpx.AsyncClient(base_url=front.edge.url, timeout=10) as client:
        headers = {"authorization": "Bearer ss-pn-2", XFCC: "URI=penstock://operator/made-up"}
        answer = await client.get("/v1/registry/me", headers=headers)
    assert answer.status_code == 200
    assert answer.json()["role"] == "Bearer ss-pn-2"
    assert "tenant" not in answer.json()


async def test_a_replica_that_dies_costs_nobody_a_call(front: Front) -> None:
    async with inner_channel(front.address, front.edge.identity, Role.REGISTRY) as channel:
        stub = accounts_pb2_grpc.AccountServiceStub(channel)
        stopped, answered = asyncio.Event(), 0

        async def ask() -> None:
            nonlocal answered
            after = 0
            while after < 20:
                await stub.WhoAmI(accounts_pb2.WhoAmIRequest(), timeout=10)
                answered += 1
                after += stopped.is_set()

        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(ask())
            await asyncio.gather(*(replica.asked.wait() for replica in front.replicas))
            await front.servers[0].server.stop(None)
            stopped.set()
    assert all(replica.served for replica in front.replicas)
    assert answered >= 160


async def test_what_waits_on_a_replica_that_hangs_is_answered_by_another(front: Front) -> None:
    first, second = front.replicas
    first.hang = True
    async with inner_channel(front.address, front.edge.identity, Role.REGISTRY) as channel:
        stub = accounts_pb2_grpc.AccountServiceStub(channel)

        async def asked() -> accounts_pb2.WhoAmIResponse:
            return await stub.WhoAmI(accounts_pb2.WhoAmIRequest(), timeout=30)

        async with asyncio.timeout(30):
            calls = [asyncio.create_task(asked()) for _ in range(4)]
            await first.asked.wait()
            answers = await asyncio.gather(*calls)
    assert {answer.id for answer in answers} == {second.name}
