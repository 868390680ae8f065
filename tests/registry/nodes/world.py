"""A registry of nodes alone: a real server with a port for nodes and one for strangers, on whichever database."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from penstock.registry.v1 import nodes_pb2, nodes_pb2_grpc

from registry.access.door import MeshDoor
from registry.access.sql import Bearers
from registry.audit.audited import audited
from registry.audit.bounded import BoundedTrail
from registry.nodes.enrolment import Enrolment
from registry.nodes.servicer import SERVICE, NodeServicer
from registry.nodes.sql import SqlNodes
from registry.nodes.types import EnrolmentRules
from runtime.channel import inner_channel
from runtime.enrolment import signed_request
from runtime.identity import Authority, NodeIdentity, Role, keys_in, load_identity, node_id_of, server_name, write_public
from runtime.join_line import JoinLine, read_join_line
from runtime.revocations import Revocations
from runtime.serving import Listen, serving
from tests.registry.harness import Ground

Stub = Any
"""The generated stub; its types are of calls that block."""
HOSTS = ("gpu1.example.org", "10.0.0.7")


@dataclass(slots=True)
class NodeWorld:
    ground: Ground
    identities: dict[Role, NodeIdentity]
    authority: Authority
    sql: SqlNodes
    enrolment: Enrolment
    revocations: Revocations
    address: str
    stranger_address: str
    stack: AsyncExitStack
    channels: dict[str, grpc.aio.Channel] = field(default_factory=dict)

    async def as_node(self, identity: NodeIdentity) -> Stub:
        known = self.channels.get(identity.node_id)
        if known is None:
            known = await self.stack.enter_async_context(inner_channel(self.address, identity, Role.REGISTRY))
            self.channels[identity.node_id] = known
        return nodes_pb2_grpc.NodeServiceStub(known)

    async def as_role(self, role: Role = Role.OPERATOR) -> Stub:
        return await self.as_node(self.identities[role])

    async def as_stranger(self) -> Stub:
        """Somebody with no more than a token's line."""
        if "" not in self.channels:
            credentials = grpc.ssl_channel_credentials(self.authority.certificate_pem)
            options = [("grpc.ssl_target_name_override", server_name(Role.REGISTRY))]
            channel = grpc.aio.secure_channel(self.stranger_address, credentials, options=options)
            self.channels[""] = await self.stack.enter_async_context(channel)
        return nodes_pb2_grpc.NodeServiceStub(self.channels[""])

    async def invite(self, role: Role = Role.WORKER, *tenants: str, lifetime_s: int = 0) -> JoinLine:
        request = nodes_pb2.CreateJoinTokenRequest(role=role.value, tenants=tenants, lifetime_s=lifetime_s)
        return read_join_line((await (await self.as_role()).CreateJoinToken(request)).secret)

    async def enrol(self, line: JoinLine, newcomer: Newcomer, **changes: object) -> nodes_pb2.EnrolResponse:
        answer: nodes_pb2.EnrolResponse = await (await self.as_stranger()).Enrol(newcomer.enrol_request(line, **changes))
        return answer


class Newcomer:
    """A machine that wants to join: its keys."""

    def __init__(self, world: NodeWorld) -> None:
        self.folder = world.identities[Role.REGISTRY].folder.parent / f"newcomer-{secrets.token_hex(4)}"
        self.signing_key, self.tls_key_pem = keys_in(self.folder)
        self.node_id = node_id_of(bytes(self.signing_key.verify_key))

    def identity(self, answer: nodes_pb2.EnrolResponse) -> NodeIdentity:
        """Once it was let in."""
        write_public(self.folder / "ca.pem", answer.authority_pem)
        write_public(self.folder / "tls.pem", answer.certificate_pem)
        return load_identity(self.folder)

    def enrol_request(self, line: JoinLine, **changes: object) -> nodes_pb2.EnrolRequest:
        signed = signed_request(self.signing_key, self.tls_key_pem, line.token_id)
        request = nodes_pb2.EnrolRequest(
            token_id=line.token_id,
            token_secret=line.secret,
            ed25519_public_key=signed.ed25519_public_key,
            certificate_request=signed.certificate_request,
            signature=signed.signature,
            hosts=HOSTS,
        )
        for name, value in changes.items():
            if isinstance(value, list):
                del getattr(request, name)[:]
                getattr(request, name).extend(value)
            else:
                setattr(request, name, value)
        return request


def renew_request(identity: NodeIdentity, **changes: object) -> nodes_pb2.RenewCertificateRequest:
    signed = signed_request(identity.signing_key, identity.tls_key_pem, identity.node_id)
    request = nodes_pb2.RenewCertificateRequest(
        certificate_request=signed.certificate_request,
        ed25519_public_key=signed.ed25519_public_key,
        signature=signed.signature,
    )
    for name, value in changes.items():
        setattr(request, name, value)
    return request


@asynccontextmanager
async def node_world(
    ground: Ground, identities: dict[Role, NodeIdentity], *, has_authority: bool = True
) -> AsyncIterator[NodeWorld]:
    ground.clock.now_s = time.time()  # TLS looks at the machine's own clock
    authority = Authority.load(identities[Role.REGISTRY].folder.parent / "authority")
    sql, revocations = SqlNodes(ground.database, ground.seals, ground.trail), Revocations()
    rules = EnrolmentRules(addresses=("registry.example.org:7443",))
    enrolment = Enrolment(sql, authority if has_authority else None, rules, revocations, ground.clock)
    bounded = BoundedTrail(ground.trail, ground.clock)
    door = MeshDoor(Bearers(ground.database, ground.seals), revocations, ground.clock)
    servicer = NodeServicer(door=door, enrolment=enrolment, sql=sql, bounded=bounded, clock=ground.clock)
    own = identities[Role.REGISTRY]
    listens = [Listen("127.0.0.1", 0, own), Listen("127.0.0.1", 0, own, asks_certificate=False)]
    registers = [audited(servicer.register, bounded)]
    async with AsyncExitStack() as stack, serving(listens, registers, [SERVICE], revocations=revocations) as running:
        inner, public = (f"127.0.0.1:{port}" for port in running.ports)
        world = NodeWorld(ground, identities, authority, sql, enrolment, revocations, inner, public, stack)
        try:
            yield world
        finally:
            await stack.aclose()
