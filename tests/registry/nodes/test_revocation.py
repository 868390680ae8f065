"""An operator puts a node out: at once here, written for everybody else, and never so that nobody is left to do it."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import pytest
from penstock.registry.v1 import nodes_pb2
from sqlalchemy import select

from registry.access.policy import NODE_SCOPES
from registry.access.types import ActorKind, Principal
from registry.nodes.enrolment import Enrolment
from registry.nodes.sql import SqlNodes
from registry.nodes.types import EnrolmentRules, NotItself
from registry.schema import outbox
from runtime.certificates import LIFETIME_LIMIT_S
from runtime.errors import InvalidArgument, PenstockError
from runtime.identity import NodeIdentity, Role
from runtime.ids import NodeId
from runtime.revocations import NodeRevoked, Revocations
from tests.registry.harness import Ground, ground_on, refusal
from tests.registry.nodes.world import Newcomer, NodeWorld, node_world


def revoke(node_id: str, reason: str = "") -> nodes_pb2.RevokeNodeRequest:
    return nodes_pb2.RevokeNodeRequest(node_id=node_id, reason=reason)


async def told(ground: Ground) -> list[tuple[str, str]]:
    async with ground.database.reading() as connection:
        rows = await connection.execute(select(outbox).order_by(outbox.c.notice))
        return [(row.kind, row.subject) for row in rows]


async def test_a_revoked_node_is_out_here_at_once_and_the_mesh_is_told(world: NodeWorld) -> None:
    newcomer, operator = Newcomer(world), await world.as_role()
    identity = newcomer.identity(await world.enrol(await world.invite(Role.OPERATOR), newcomer))
    stub = await world.as_node(identity)
    await stub.ListNodes(nodes_pb2.ListNodesRequest())
    node = (await operator.RevokeNode(revoke(identity.node_id, "stolen"))).node
    assert (node.role, node.revoked_because) == ("operator", "stolen")
    assert isinstance(await refusal(stub.ListNodes(nodes_pb2.ListNodesRequest())), NodeRevoked)
    assert await told(world.ground) == [("node", identity.node_id)]
    assert (await world.ground.actions())[-1] == ("node.revoke", identity.node_id, "done")
    # Again is no harm, and nothing new.
    assert (await operator.RevokeNode(revoke(identity.node_id, "again"))).node.revoked_because == "stolen"
    assert len(await told(world.ground)) == 1


async def test_a_node_that_was_never_seen_is_remembered_as_long_as_it_can_have_a_certificate(world: NodeWorld) -> None:
    await (await world.as_role()).RevokeNode(revoke("0123456789abcdef0123"))
    node = await world.sql.node(NodeId("0123456789abcdef0123"))
    assert node is not None
    assert node.role is None
    assert node.certificate_expires_at_ms >= (time.time() + LIFETIME_LIMIT_S - 60) * 1000
    listed = (await (await world.as_role()).ListNodes(nodes_pb2.ListNodesRequest())).nodes
    assert {entry.node_id: entry.role for entry in listed}["0123456789abcdef0123"] == ""


async def test_a_registry_that_starts_knows_who_is_out(sqlite_world: NodeWorld) -> None:
    world = sqlite_world
    await (await world.as_role()).RevokeNode(revoke("0123456789abcdef0123"))
    assert await world.sql.revoked_ids() == ["0123456789abcdef0123"]


async def test_nobody_revokes_itself(sqlite_world: NodeWorld) -> None:
    world = sqlite_world
    own = world.identities[Role.OPERATOR].node_id
    assert isinstance(await refusal((await world.as_role()).RevokeNode(revoke(own))), NotItself)
    assert await told(world.ground) == []


@pytest.mark.parametrize(
    "request_", [revoke(""), revoke("x"), revoke("0123456789ABCDEF0123"), revoke("0" * 20, "because " * 100)], ids=range(4)
)
async def test_what_names_no_node_is_refused(sqlite_world: NodeWorld, request_: nodes_pb2.RevokeNodeRequest) -> None:
    assert isinstance(await refusal((await sqlite_world.as_role()).RevokeNode(request_)), InvalidArgument)


async def test_a_revoked_operator_revokes_nobody_even_where_that_was_not_heard(world: NodeWorld) -> None:
    newcomer = Newcomer(world)
    identity = newcomer.identity(await world.enrol(await world.invite(Role.OPERATOR), newcomer))
    world.enrolment._revocations = Revocations()
    await (await world.as_role()).RevokeNode(revoke(identity.node_id))
    stub = await world.as_node(identity)
    assert isinstance(await refusal(stub.RevokeNode(revoke(world.identities[Role.OPERATOR].node_id))), NodeRevoked)


@pytest.mark.parametrize("seed", range(3))
async def test_operators_who_revoke_each_other_at_once_leave_one(
    ground: Ground, identities: dict[Role, NodeIdentity], seed: int
) -> None:
    """Through two registries that do not hear of each other, none of the operators enrolled there."""
    async with node_world(ground, identities) as world, ground_on(ground.address) as replica:
        rules, clock = EnrolmentRules(), ground.clock
        registries = [
            Enrolment(SqlNodes(one.database, one.seals, one.trail), world.authority, rules, Revocations(), clock)
            for one in (ground, replica)
        ]
        names = [f"{number:020x}" for number in range(4)]
        principals = [
            Principal(ActorKind.NODE, name, NODE_SCOPES[Role.OPERATOR], node_role=Role.OPERATOR, node_id=NodeId(name))
            for name in names
        ]
        wishes = [(one, other) for one in range(4) for other in range(4) if one != other]
        random.Random(seed).shuffle(wishes)

        async def attempt(number: int, one: int, other: int) -> None:
            try:
                await registries[number % 2].revoke(principals[one], NodeId(names[other]), "")
            except PenstockError as error:
                assert isinstance(error, NodeRevoked), error

        await asyncio.gather(*(attempt(number, *wish) for number, wish in enumerate(wishes)))
        left = [node.node_id for node in await world.sql.nodes() if not node.revoked_at_ms]
        assert len(left) == 1
        assert sorted({subject for _, subject in await told(ground)} | set(left)) == names


async def test_revoking_and_renewing_at_once_never_leaves_a_revoked_node_renewed(
    sqlite_world: NodeWorld, tmp_path: Path
) -> None:
    world = sqlite_world
    from tests.registry.nodes.test_renewal import joined, renewal_of

    identity = await joined(world)
    operator = await world.as_role()
    renewing = asyncio.ensure_future(renewal_of(world, identity).renew())
    await asyncio.gather(renewing, operator.RevokeNode(revoke(identity.node_id)), return_exceptions=True)
    node = await world.sql.node(identity.node_id)
    assert node is not None
    assert node.revoked_at_ms
    assert node.certificate_expires_at_ms >= identity.certificate.expires_wall_s * 1000 - 1
