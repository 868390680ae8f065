"""A node renews its own certificate with the one it has; nobody else's, and not once it is out."""

from __future__ import annotations

import random
import time
from pathlib import Path

import grpc.aio
import pytest
from cryptography import x509
from penstock.registry.v1 import nodes_pb2

from registry.access.types import CredentialsMissing, ScopeRequired
from registry.nodes.types import EnrolmentsTooMany
from registry.seals import RowAltered
from runtime.certificates import NodeCertificate, Peer, hosts_of
from runtime.channel import inner_channel
from runtime.enrolment import CertificateRequestRefused
from runtime.errors import Unavailable
from runtime.identity import LOOPBACK_HOSTS, Authority, NodeIdentity, Role, load_identity, public_key_of, write_public
from runtime.renewal import Renewal
from runtime.revocations import NodeRevoked, Revocations
from tests.registry.harness import refusal
from tests.registry.nodes.world import HOSTS, Newcomer, NodeWorld, renew_request

DAY_S = 86_400


async def joined(world: NodeWorld, role: Role = Role.WORKER, *tenants: str) -> NodeIdentity:
    newcomer = Newcomer(world)
    return newcomer.identity(await world.enrol(await world.invite(role, *tenants), newcomer))


def renewal_of(world: NodeWorld, identity: NodeIdentity) -> Renewal:
    def open_registry() -> grpc.aio.Channel:
        return inner_channel(world.address, identity, Role.REGISTRY)

    return Renewal(identity, open_registry, world.ground.clock, random.Random(1))


async def test_same_names_and_a_new_lifetime(world: NodeWorld) -> None:
    identity = await joined(world, Role.WORKER, "acme")
    before = identity.certificate
    world.ground.clock.now_s += 10 * DAY_S
    after = await renewal_of(world, identity).renew()
    assert after.peer == before.peer
    assert after.peer.tenants == {"acme"}
    assert after.expires_wall_s == pytest.approx(before.expires_wall_s + 10 * DAY_S, abs=2)
    assert hosts_of(x509.load_pem_x509_certificate(after.pem)) == HOSTS
    assert identity.certificate is after
    assert load_identity(identity.folder).certificate == after
    (node,) = (await (await world.as_role()).ListNodes(nodes_pb2.ListNodesRequest())).nodes
    assert node.certificate_expires_at_ms == int(after.expires_wall_s * 1000)
    assert (await world.ground.actions())[-1] == ("node.renew", identity.node_id, "done")


async def test_nothing_happens_before_it_is_due(sqlite_world: NodeWorld) -> None:
    identity = await joined(sqlite_world)
    renewal, before = renewal_of(sqlite_world, identity), identity.certificate
    sqlite_world.ground.clock.now_s += 50 * DAY_S
    assert not await renewal.step()
    sqlite_world.ground.clock.now_s += 20 * DAY_S
    assert await renewal.step()
    assert not await renewal.step()
    assert identity.certificate.expires_wall_s > before.expires_wall_s


async def test_a_node_that_was_certified_elsewhere_is_known_from_then_on(world: NodeWorld, tmp_path: Path) -> None:
    identity = world.authority.enrol(tmp_path / "worker", Role.WORKER, hosts=("gpu9", "10.9.9.9"), tenants={*()})
    before = identity.certificate
    after = await renewal_of(world, identity).renew()
    assert after.peer == before.peer
    (node,) = await world.sql.nodes()
    assert (node.node_id, node.role, node.hosts) == (identity.node_id, Role.WORKER, ("gpu9", "10.9.9.9"))
    # The first one lasts longer, and a revocation has to be remembered for as long.
    assert node.certificate_expires_at_ms == int(before.expires_wall_s * 1000) > int(after.expires_wall_s * 1000)


async def test_nobody_renews_for_another(sqlite_world: NodeWorld) -> None:
    one, other = await joined(sqlite_world), await joined(sqlite_world, Role.OPERATOR)
    stub = await sqlite_world.as_node(one)
    assert isinstance(await refusal(stub.RenewCertificate(renew_request(other))), CertificateRequestRefused)
    wanted = renew_request(one)
    theirs = renew_request(other)
    wanted.ed25519_public_key = theirs.ed25519_public_key
    assert isinstance(await refusal(stub.RenewCertificate(wanted)), CertificateRequestRefused)
    signed_by_other = other.sign(b"penstock-enrolment-v1\n" + one.node_id.encode() + b"\n" + theirs.certificate_request)
    theirs.signature = signed_by_other
    assert isinstance(await refusal(stub.RenewCertificate(theirs)), ScopeRequired)


async def test_without_a_certificate_nothing_is_renewed(sqlite_world: NodeWorld) -> None:
    identity = await joined(sqlite_world)
    error = await refusal((await sqlite_world.as_stranger()).RenewCertificate(renew_request(identity)))
    assert isinstance(error, CredentialsMissing)


async def test_a_revoked_node_is_not_renewed_even_where_nobody_heard_of_it(world: NodeWorld) -> None:
    identity = await joined(world)
    world.enrolment._revocations = Revocations()  # this replica heard nothing
    await (await world.as_role()).RevokeNode(nodes_pb2.RevokeNodeRequest(node_id=identity.node_id))
    with pytest.raises(NodeRevoked):
        await renewal_of(world, identity).renew()


async def test_an_edited_row_renews_nobody(sqlite_world: NodeWorld) -> None:
    world = sqlite_world
    identity = await joined(world)
    await world.ground.execute("UPDATE nodes SET role = 'operator'")
    with pytest.raises(RowAltered):
        await renewal_of(world, identity).renew()


async def test_a_node_cannot_have_certificates_without_end(sqlite_world: NodeWorld) -> None:
    stub, identity = await sqlite_world.as_role(Role.GATEWAY), sqlite_world.identities[Role.GATEWAY]
    for _ in range(10):
        await stub.RenewCertificate(renew_request(identity))
    assert isinstance(await refusal(stub.RenewCertificate(renew_request(identity))), EnrolmentsTooMany)


async def test_strangers_through_envoy_do_not_use_up_its_turns(sqlite_world: NodeWorld) -> None:
    """Without a certificate of their own they are taken for Envoy, until it turns out who signed."""
    stub, envoy = await sqlite_world.as_role(Role.ENVOY), sqlite_world.identities[Role.ENVOY]
    forged = renew_request(envoy, signature=bytes(64))
    for _ in range(20):
        assert isinstance(await refusal(stub.RenewCertificate(forged)), CertificateRequestRefused)
    assert (await stub.RenewCertificate(renew_request(envoy))).certificate_pem


async def test_an_expired_certificate_opens_nothing_until_the_node_joins_anew(sqlite_world: NodeWorld) -> None:
    world, newcomer = sqlite_world, Newcomer(sqlite_world)
    identity = newcomer.identity(await world.enrol(await world.invite(), newcomer))
    peer, key = Peer(Role.WORKER, identity.node_id), public_key_of(identity.tls_key_pem)
    expired = world.authority.certify(key, peer, HOSTS, time.time() - 2 * DAY_S, DAY_S)
    write_public(identity.files.certificate, expired.pem)
    late = load_identity(identity.folder)
    renewal = renewal_of(world, late)
    with pytest.raises(Unavailable):
        await renewal.renew()
    answer = await world.enrol(await world.invite(), newcomer)
    write_public(identity.files.certificate, answer.certificate_pem)  # as `penstock join` does, beside the running process
    assert await renewal.step()
    assert late.certificate.pem == answer.certificate_pem
    assert (await renewal.renew()).peer == peer


async def test_a_foreign_certificate_opens_nothing(sqlite_world: NodeWorld, tmp_path: Path) -> None:
    foreign = Authority.open(tmp_path / "ca").enrol(tmp_path / "node", Role.OPERATOR)
    mixed = foreign.folder / "ca.pem"
    write_public(mixed, sqlite_world.authority.certificate_pem)  # it believes the registry; the registry does not believe it
    with pytest.raises(Unavailable):
        await renewal_of(sqlite_world, load_identity(foreign.folder)).renew()
    assert hosts_of(x509.load_pem_x509_certificate(foreign.certificate_pem)) == LOOPBACK_HOSTS
    assert NodeCertificate.read(foreign.certificate_pem).peer.role is Role.OPERATOR


def through_envoy(identity: NodeIdentity) -> tuple[tuple[str, str], ...]:
    """As Envoy says whose certificate it saw."""
    peer = identity.certificate.peer
    uris = [f"URI=penstock://{peer.role.value}/{peer.node_id}", *(f"URI=penstock-tenant://{name}" for name in peer.tenants)]
    return (("x-forwarded-client-cert", ";".join(uris)),)


async def test_a_node_renews_through_envoy_with_the_names_it_was_enrolled_with(sqlite_world: NodeWorld) -> None:
    identity = await joined(sqlite_world, Role.WORKER, "acme")
    envoy = await sqlite_world.as_role(Role.ENVOY)
    answer = await envoy.RenewCertificate(renew_request(identity), metadata=through_envoy(identity))
    renewed = NodeCertificate.read(answer.certificate_pem)
    assert renewed.peer == identity.certificate.peer
    assert hosts_of(x509.load_pem_x509_certificate(answer.certificate_pem)) == HOSTS


async def test_through_envoy_the_hosts_of_a_node_of_elsewhere_are_the_machines_own(
    sqlite_world: NodeWorld, tmp_path: Path
) -> None:
    identity = sqlite_world.authority.enrol(tmp_path / "worker", Role.WORKER, hosts=("gpu9",))
    envoy = await sqlite_world.as_role(Role.ENVOY)
    answer = await envoy.RenewCertificate(renew_request(identity), metadata=through_envoy(identity))
    assert NodeCertificate.read(answer.certificate_pem).peer == identity.certificate.peer
    assert hosts_of(x509.load_pem_x509_certificate(answer.certificate_pem)) == LOOPBACK_HOSTS


async def test_envoy_renews_its_own_certificate_and_nobody_through_it_does(sqlite_world: NodeWorld) -> None:
    envoy, worker = sqlite_world.identities[Role.ENVOY], await joined(sqlite_world)
    assert (await renewal_of(sqlite_world, envoy).renew()).peer.role is Role.ENVOY
    stub = await sqlite_world.as_role(Role.ENVOY)
    assert isinstance(await refusal(stub.RenewCertificate(renew_request(worker))), CertificateRequestRefused)
    forged = renew_request(envoy)
    error = await refusal(stub.RenewCertificate(forged, metadata=through_envoy(worker)))
    assert isinstance(error, CertificateRequestRefused)
