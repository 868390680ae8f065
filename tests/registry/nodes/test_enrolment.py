"""Nodes come in by a token, once, over real TLS; whoever else tries is refused, and that is written down."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace

import pytest
from cryptography import x509
from penstock.registry.v1 import nodes_pb2

from registry.access.types import CredentialsMissing
from registry.nodes.enrolment import Enrolment
from registry.nodes.sql import SqlNodes
from registry.nodes.types import (
    AnotherRole,
    Applicant,
    EnrolmentRules,
    EnrolmentsTooMany,
    JoinTokenRefused,
    NoAuthority,
)
from registry.seals import RowAltered
from runtime.certificates import NodeCertificate, hosts_of
from runtime.enrolment import CertificateRequestRefused, SignedRequest, check_request, signed_request
from runtime.errors import InvalidArgument, NotFound, PenstockError
from runtime.identity import NodeIdentity, Role
from runtime.revocations import NodeRevoked, Revocations
from tests.registry.harness import Ground, ground_on, refusal
from tests.registry.nodes.world import HOSTS, Newcomer, NodeWorld, node_world


async def test_a_node_joins_with_a_token_and_is_certified_for_what_the_token_says(world: NodeWorld) -> None:
    line, newcomer = await world.invite(Role.WORKER, "acme", "globex"), Newcomer(world)
    answer = await world.enrol(line, newcomer)
    certificate = NodeCertificate.read(answer.certificate_pem)
    assert certificate.peer.role is Role.WORKER
    assert certificate.peer.node_id == newcomer.node_id == answer.node.node_id
    assert certificate.peer.tenants == {"acme", "globex"}
    assert hosts_of(x509.load_pem_x509_certificate(answer.certificate_pem)) == HOSTS
    assert answer.authority_pem == world.authority.certificate_pem
    assert answer.node.certificate_expires_at_ms == int(certificate.expires_wall_s * 1000)
    assert certificate.expires_wall_s == pytest.approx(world.ground.clock.now_s + 90 * 86_400, abs=2)
    listed = (await (await world.as_role()).ListNodes(nodes_pb2.ListNodesRequest())).nodes
    assert [(node.node_id, node.role, tuple(node.hosts)) for node in listed] == [(newcomer.node_id, "worker", HOSTS)]
    assert await world.ground.actions() == [
        ("node.invite", line.token_id, "done"),
        ("node.enrol", newcomer.node_id, "done"),
    ]


async def test_the_certificate_opens_the_inner_port(sqlite_world: NodeWorld) -> None:
    world, newcomer = sqlite_world, Newcomer(sqlite_world)
    answer = await world.enrol(await world.invite(Role.OPERATOR), newcomer)
    stub = await world.as_node(newcomer.identity(answer))
    assert len((await stub.ListNodes(nodes_pb2.ListNodesRequest())).nodes) == 1


async def test_the_secret_is_in_no_row(sqlite_world: NodeWorld) -> None:
    world = sqlite_world
    line = await world.invite()
    token = await world.sql.token(line.token_id)
    assert token is not None
    assert token.secret_sha256 != line.secret
    assert line.secret.hex() not in repr(token)
    (listed,) = (await (await world.as_role()).ListJoinTokens(nodes_pb2.ListJoinTokensRequest())).tokens
    assert (listed.token_id, listed.role, listed.used_at_ms) == (line.token_id, "worker", 0)
    assert listed.expires_at_ms - listed.created_at_ms == 3_600_000


async def test_a_token_lets_one_node_in_and_that_one_again_after_a_crash(world: NodeWorld) -> None:
    line, first, second = await world.invite(), Newcomer(world), Newcomer(world)
    one = await world.enrol(line, first)
    again = await world.enrol(line, first)
    assert again.node == one.node
    assert again.certificate_pem != one.certificate_pem
    error = await refusal(world.enrol(line, second))
    assert isinstance(error, JoinTokenRefused)
    assert first.node_id in error.message
    assert (await world.ground.actions())[-1] == ("node.enrol", line.token_id, "refused")
    (listed,) = (await (await world.as_role()).ListJoinTokens(nodes_pb2.ListJoinTokensRequest())).tokens
    assert listed.node_id == first.node_id


async def test_a_token_ends(sqlite_world: NodeWorld) -> None:
    world = sqlite_world
    line, newcomer = await world.invite(lifetime_s=60), Newcomer(world)
    await world.enrol(line, newcomer)
    world.ground.clock.now_s += 60
    error = await refusal(world.enrol(line, newcomer))
    assert isinstance(error, JoinTokenRefused)
    assert "expired" in error.message


async def test_a_token_that_was_revoked_lets_nobody_in(sqlite_world: NodeWorld) -> None:
    world = sqlite_world
    line, operator = await world.invite(), await world.as_role()
    request = nodes_pb2.RevokeJoinTokenRequest(token_id=line.token_id)
    assert (await operator.RevokeJoinToken(request)).token.revoked_at_ms
    await operator.RevokeJoinToken(request)  # once more changes nothing
    error = await refusal(world.enrol(line, Newcomer(world)))
    assert isinstance(error, JoinTokenRefused)
    assert "revoked" in error.message
    assert [action for action, _, _ in await world.ground.actions()].count("node.uninvite") == 1
    unknown = nodes_pb2.RevokeJoinTokenRequest(token_id="0" * 16)
    assert isinstance(await refusal(operator.RevokeJoinToken(unknown)), NotFound)


async def test_who_does_not_know_the_secret_learns_nothing_of_the_token(sqlite_world: NodeWorld) -> None:
    world = sqlite_world
    used, unknown = await world.invite(), replace(await world.invite(), token_id="0" * 16)
    await world.enrol(used, Newcomer(world))
    told = [
        await refusal(world.enrol(line, Newcomer(world)))
        for line in (replace(used, secret=bytes(32)), replace(unknown, secret=bytes(32)), unknown)
    ]
    assert [type(error) for error in told] == [JoinTokenRefused] * 3
    assert len({error.message for error in told}) == 1


@pytest.mark.parametrize(
    "host",
    [
        "registry.penstock.internal",
        "PENSTOCK.internal",
        "*.example.org",
        "*",
        "penstock://operator/0",
        "a b",
        "",
        "x:1",
        "a" * 254,
    ],
)
async def test_a_node_cannot_choose_to_be_called_as_another(sqlite_world: NodeWorld, host: str) -> None:
    line = await sqlite_world.invite()
    assert isinstance(await refusal(sqlite_world.enrol(line, Newcomer(sqlite_world), hosts=[host])), InvalidArgument)
    token = await sqlite_world.sql.token(line.token_id)
    assert token is not None
    assert not token.used_at_ms


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"certificate_request": b"garbage"}, CertificateRequestRefused),
        ({"signature": bytes(64)}, CertificateRequestRefused),
        ({"signature": b"short"}, CertificateRequestRefused),
        ({"ed25519_public_key": b"short"}, InvalidArgument),
        ({"ed25519_public_key": bytes(32)}, CertificateRequestRefused),
        ({"token_secret": b"short"}, InvalidArgument),
        ({"token_id": "'; drop table nodes; --"}, InvalidArgument),
        ({"hosts": [f"h{number}" for number in range(17)]}, InvalidArgument),
        ({"hardware_fingerprint": "x" * 65}, InvalidArgument),
    ],
)
async def test_what_is_malformed_is_refused_and_uses_nothing_up(
    sqlite_world: NodeWorld, changes: dict[str, object], kind: type[PenstockError]
) -> None:
    line, newcomer = await sqlite_world.invite(), Newcomer(sqlite_world)
    assert isinstance(await refusal(sqlite_world.enrol(line, newcomer, **changes)), kind)
    assert (await sqlite_world.enrol(line, newcomer)).node.node_id == newcomer.node_id


async def test_a_request_signed_for_another_token_is_refused(sqlite_world: NodeWorld) -> None:
    one, other = await sqlite_world.invite(), await sqlite_world.invite(Role.OPERATOR)
    newcomer = Newcomer(sqlite_world)
    overheard = newcomer.enrol_request(one)
    changes = {"signature": overheard.signature, "certificate_request": overheard.certificate_request}
    assert isinstance(await refusal(sqlite_world.enrol(other, newcomer, **changes)), CertificateRequestRefused)


async def test_a_node_has_one_role(sqlite_world: NodeWorld) -> None:
    newcomer = Newcomer(sqlite_world)
    await sqlite_world.enrol(await sqlite_world.invite(Role.WORKER), newcomer)
    refused = await refusal(sqlite_world.enrol(await sqlite_world.invite(Role.OPERATOR), newcomer))
    assert isinstance(refused, AnotherRole)
    again = await sqlite_world.enrol(await sqlite_world.invite(Role.WORKER, "acme"), newcomer)
    assert list(again.node.tenants) == ["acme"]


async def test_a_node_that_was_revoked_does_not_come_back_with_its_key(world: NodeWorld) -> None:
    newcomer = Newcomer(world)
    line = await world.invite()
    await world.enrol(line, newcomer)
    await (await world.as_role()).RevokeNode(nodes_pb2.RevokeNodeRequest(node_id=newcomer.node_id, reason="stolen"))
    assert isinstance(await refusal(world.enrol(line, newcomer)), NodeRevoked)
    assert isinstance(await refusal(world.enrol(await world.invite(), newcomer)), NodeRevoked)


@pytest.mark.parametrize("role", [role for role in Role if role not in (Role.OPERATOR, Role.ENVOY)])
async def test_operators_alone_invite(sqlite_world: NodeWorld, role: Role) -> None:
    stub = await sqlite_world.as_role(role)
    for call in (
        stub.CreateJoinToken(nodes_pb2.CreateJoinTokenRequest(role="operator")),
        stub.RevokeJoinToken(nodes_pb2.RevokeJoinTokenRequest(token_id="0" * 16)),
        stub.ListJoinTokens(nodes_pb2.ListJoinTokensRequest()),
        stub.ListNodes(nodes_pb2.ListNodesRequest()),
        stub.RevokeNode(nodes_pb2.RevokeNodeRequest(node_id="0" * 20)),
    ):
        assert (await refusal(call)).reason == "SCOPE_REQUIRED"
    # Reading that was refused is not written down.
    assert [outcome for _, _, outcome in await sqlite_world.ground.actions()] == ["refused"] * 3


async def test_strangers_may_enrol_and_nothing_else(sqlite_world: NodeWorld) -> None:
    stub = await sqlite_world.as_stranger()
    for call in (
        stub.ListNodes(nodes_pb2.ListNodesRequest()),
        stub.CreateJoinToken(nodes_pb2.CreateJoinTokenRequest(role="worker")),
        stub.RevokeNode(nodes_pb2.RevokeNodeRequest(node_id="0" * 20)),
    ):
        assert isinstance(await refusal(call), CredentialsMissing)


@pytest.mark.parametrize(
    ("wish", "kind"),
    [
        (nodes_pb2.CreateJoinTokenRequest(role="emperor"), InvalidArgument),
        (nodes_pb2.CreateJoinTokenRequest(), InvalidArgument),
        (nodes_pb2.CreateJoinTokenRequest(role="worker", lifetime_s=31 * 86_400), InvalidArgument),
        (nodes_pb2.CreateJoinTokenRequest(role="gateway", tenants=["acme"]), InvalidArgument),
        (nodes_pb2.CreateJoinTokenRequest(role="worker", tenants=["Acme!"]), InvalidArgument),
        (nodes_pb2.CreateJoinTokenRequest(role="worker", tenants=["nobody"]), NotFound),
    ],
)
async def test_invitations_that_make_no_sense(
    sqlite_world: NodeWorld, wish: nodes_pb2.CreateJoinTokenRequest, kind: type[PenstockError]
) -> None:
    assert isinstance(await refusal((await sqlite_world.as_role()).CreateJoinToken(wish)), kind)


async def test_a_registry_without_the_authority_says_so(sqlite_ground: Ground, identities: dict[Role, NodeIdentity]) -> None:
    async with node_world(sqlite_ground, identities, has_authority=False) as world:
        wish = nodes_pb2.CreateJoinTokenRequest(role="worker")
        assert isinstance(await refusal((await world.as_role()).CreateJoinToken(wish)), NoAuthority)
        assert isinstance(await refusal((await world.as_stranger()).Enrol(nodes_pb2.EnrolRequest())), NoAuthority)


@pytest.mark.parametrize(
    ("table", "change"), [("join_tokens", "role = 'operator'"), ("nodes", "revoked_at_ms = 0, role = 'worker'")]
)
async def test_a_row_that_was_edited_lets_nobody_in(world: NodeWorld, table: str, change: str) -> None:
    line, newcomer = await world.invite(), Newcomer(world)
    if table == "nodes":
        await world.enrol(line, newcomer)
        await (await world.as_role()).RevokeNode(nodes_pb2.RevokeNodeRequest(node_id=newcomer.node_id))
        line = await world.invite()
    await world.ground.execute(f"UPDATE {table} SET {change}")
    assert isinstance(await refusal(world.enrol(line, newcomer)), RowAltered)
    assert "tampering" in [action for action, _, _ in await world.ground.actions()]


async def test_strangers_are_slowed_down(sqlite_world: NodeWorld) -> None:
    stub = await sqlite_world.as_stranger()
    calls = [refusal(stub.Enrol(nodes_pb2.EnrolRequest())) for _ in range(120)]
    errors = await asyncio.gather(*calls)
    slowed = [error for error in errors if isinstance(error, EnrolmentsTooMany)]
    assert len(slowed) == 20
    assert all(error.retry_after_s for error in slowed)


async def test_of_fifty_who_show_one_token_at_once_one_gets_in(ground: Ground, identities: dict[Role, NodeIdentity]) -> None:
    """Through two registries on one database."""
    async with node_world(ground, identities) as world, ground_on(ground.address) as replica:
        line, rules = await world.invite(), EnrolmentRules()
        sql = SqlNodes(replica.database, replica.seals, replica.trail)
        other = Enrolment(sql, world.authority, rules, Revocations(), ground.clock)
        newcomers = [Newcomer(world) for _ in range(50)]

        async def enrol(number: int, newcomer: Newcomer) -> PenstockError | None:
            registry = (world.enrolment, other)[number % 2]
            signed = signed_request(newcomer.signing_key, newcomer.tls_key_pem, line.token_id)
            applicant = Applicant(newcomer.node_id, signed.ed25519_public_key, HOSTS, "")
            try:
                await registry.enrol(line.token_id, line.secret, applicant, check_request(signed, line.token_id), "")
            except PenstockError as error:
                return error
            return None

        answers = await asyncio.gather(*(enrol(*item) for item in enumerate(newcomers)))
        assert answers.count(None) == 1
        assert {type(answer) for answer in answers} == {type(None), JoinTokenRefused}
        winner = newcomers[answers.index(None)]
        assert [node.node_id for node in await world.sql.nodes()] == [winner.node_id]
        assert [action for action, _, _ in await ground.actions()] == ["node.invite", "node.enrol"]


async def test_old_tokens_are_forgotten_and_their_number_is_bounded(
    sqlite_world: NodeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry.nodes.sql.MAX_OPEN_TOKENS", 2)
    for _ in range(2):
        await sqlite_world.invite()
    wish = nodes_pb2.CreateJoinTokenRequest(role="worker")
    assert (await refusal((await sqlite_world.as_role()).CreateJoinToken(wish))).reason == "JOIN_TOKENS_TOO_MANY"
    sqlite_world.ground.clock.now_s += 31 * 86_400
    line = await sqlite_world.invite()
    assert [token.token_id for token in await sqlite_world.sql.tokens()] == [line.token_id]


def test_the_signature_is_over_what_the_contract_says(sqlite_world: NodeWorld) -> None:
    newcomer, token_id = Newcomer(sqlite_world), secrets.token_hex(8)
    signed = signed_request(newcomer.signing_key, newcomer.tls_key_pem, token_id)
    payload = b"penstock-enrolment-v1\n" + token_id.encode() + b"\n" + signed.certificate_request
    by_hand = SignedRequest(signed.certificate_request, signed.ed25519_public_key, newcomer.signing_key.sign(payload).signature)
    assert check_request(by_hand, token_id).node_id == newcomer.node_id
