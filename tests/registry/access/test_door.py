"""Who is let in as whom: over mTLS, through Envoy, by sessions and keys; and who is not."""

from __future__ import annotations

import pytest
from penstock.registry.v1 import accounts_pb2

from registry.access.types import CredentialsMissing, CredentialsRefused
from runtime.identity import Role
from runtime.revocations import NodeRevoked
from tests.registry.accounts.rig import Metadata, Office, bearing
from tests.registry.harness import refusal

WHO = accounts_pb2.WhoAmIRequest()
NODE = "a" * 20


def forwarded(header: str) -> Metadata:
    return (("x-forwarded-client-cert", header),)


def through_envoy(role: str) -> Metadata:
    return forwarded(f"By=penstock://envoy/{'e' * 20};Hash={'0' * 64};URI=penstock://{role}/{NODE}")


@pytest.fixture
async def office(sqlite_office: Office) -> Office:
    return sqlite_office


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.ENVOY])
async def test_a_node_is_who_its_certificate_says(office: Office, role: Role) -> None:
    me = await (await office.accounts(role)).WhoAmI(WHO)
    assert (me.kind, me.id, me.role, me.tenant) == ("node", office.identities[role].node_id, role.value, "")


@pytest.mark.parametrize("role", [Role.OPERATOR, Role.WORKER, Role.SCHEDULER, Role.REGISTRY])
async def test_a_nodes_certificate_counts_and_not_what_it_sends_beside(office: Office, role: Role) -> None:
    key = await office.key()
    for metadata in (bearing(key.secret), bearing("nonsense"), through_envoy("operator")):
        me = await (await office.accounts(role)).WhoAmI(WHO, metadata=metadata)
        assert (me.kind, me.id) == ("node", office.identities[role].node_id)


@pytest.mark.parametrize("role", [Role.ENVOY, Role.GATEWAY])
async def test_envoy_and_gateways_speak_for_those_whose_keys_they_pass_on(office: Office, role: Role) -> None:
    key = await office.key()
    stub = await office.accounts(role)
    for metadata in (bearing(key.secret), (("authorization", f"bearer {key.secret}"),), (("x-api-key", key.secret),)):
        me = await stub.WhoAmI(WHO, metadata=metadata)
        assert (me.kind, me.id, me.tenant, list(me.scopes)) == ("key", key.key.key_id, "acme", ["infer", "models:read"])


async def test_without_a_certificate_it_takes_a_session_or_a_key(office: Office) -> None:
    ann = await office.user()
    public, token = await office.public(), await office.session()
    assert (await public.WhoAmI(WHO, metadata=bearing(token))).id == ann.user_id
    assert isinstance(await refusal(public.WhoAmI(WHO)), CredentialsMissing)
    assert isinstance(await refusal(public.WhoAmI(WHO, metadata=through_envoy("operator"))), CredentialsMissing)


async def test_envoy_itself_is_nobody(office: Office) -> None:
    """Else whoever it lets through without a certificate could renew Envoy's."""
    assert isinstance(await refusal((await office.accounts(Role.ENVOY)).WhoAmI(WHO)), CredentialsMissing)


@pytest.mark.parametrize("role", ["operator", "worker", "gateway", "scheduler"])
async def test_a_node_behind_envoy_is_that_node(office: Office, role: str) -> None:
    me = await (await office.accounts(Role.ENVOY)).WhoAmI(WHO, metadata=through_envoy(role))
    assert (me.kind, me.id, me.role) == ("node", NODE, role)


async def test_behind_envoy_certificates_and_keys_count_as_they_do_before_it(office: Office) -> None:
    key = await office.key()
    stub = await office.accounts(Role.ENVOY)
    worker = await stub.WhoAmI(WHO, metadata=(*through_envoy("worker"), *bearing(key.secret)))
    gateway = await stub.WhoAmI(WHO, metadata=(*through_envoy("gateway"), *bearing(key.secret)))
    assert (worker.kind, gateway.kind) == ("node", "key")


@pytest.mark.parametrize(
    "header", ["nonsense", "URI=penstock://operator/", "URI=https://operator/x", "Hash=00", "URI=penstock://x/y"]
)
async def test_what_no_envoy_writes_lets_nobody_in(office: Office, header: str) -> None:
    key = await office.key()
    stub = await office.accounts(Role.ENVOY)
    assert isinstance(await refusal(stub.WhoAmI(WHO, metadata=forwarded(header))), CredentialsRefused)
    both = (*forwarded(header), *bearing(key.secret))
    assert isinstance(await refusal(stub.WhoAmI(WHO, metadata=both)), CredentialsRefused)


@pytest.mark.parametrize("role", [Role.GATEWAY, Role.WORKER, Role.OPERATOR])
async def test_only_envoy_is_believed_whose_certificate_it_saw(office: Office, role: Role) -> None:
    me = await (await office.accounts(role)).WhoAmI(WHO, metadata=through_envoy("operator"))
    assert me.id == office.identities[role].node_id


async def test_a_revoked_node_is_let_in_nowhere(office: Office) -> None:
    worker, envoy = await office.accounts(Role.WORKER), await office.accounts(Role.ENVOY)
    await worker.WhoAmI(WHO)
    office.revocations.add(office.identities[Role.WORKER].node_id)
    assert isinstance(await refusal(worker.WhoAmI(WHO)), NodeRevoked)
    await envoy.WhoAmI(WHO, metadata=through_envoy("worker"))
    office.revocations.add(NODE)  # type: ignore[arg-type]
    assert isinstance(await refusal(envoy.WhoAmI(WHO, metadata=through_envoy("worker"))), NodeRevoked)
    key = await office.key()
    office.revocations.add(office.identities[Role.ENVOY].node_id)
    for metadata in (through_envoy("scheduler"), bearing(key.secret)):
        assert isinstance(await refusal(envoy.WhoAmI(WHO, metadata=metadata)), NodeRevoked)


@pytest.mark.parametrize(
    "metadata",
    [
        (("authorization", "Basic dXNlcjpwYXNz"),),
        (("authorization", "Bearer"),),
        (("authorization", "Bearer "),),
        bearing("sk-pn-" + "0" * 16 + "-" + "0" * 64),
        bearing("ss-pn-" + "0" * 64),
        bearing("ss-pn-" + "0" * 63),
        bearing("'; DROP TABLE keys; --"),
        (("x-api-key", "x" * 4000),),
        (("x-api-key", "sk-pn-one"), ("x-api-key", "sk-pn-two")),
    ],
)
async def test_what_proves_nothing_is_refused(office: Office, metadata: Metadata) -> None:
    assert isinstance(await refusal((await office.public()).WhoAmI(WHO, metadata=metadata)), CredentialsRefused)


async def test_two_that_call_at_once_are_refused_and_one_named_twice_is_not(office: Office) -> None:
    one, two = await office.key(), await office.key()
    public = await office.public()
    twice = (*bearing(one.secret), ("x-api-key", one.secret))
    assert (await public.WhoAmI(WHO, metadata=twice)).id == one.key.key_id
    both = (*bearing(one.secret), ("x-api-key", two.secret))
    assert isinstance(await refusal(public.WhoAmI(WHO, metadata=both)), CredentialsRefused)


async def test_keys_are_not_taken_in_the_clear(office: Office) -> None:
    key = await office.key()
    plaintext = await office.plaintext()
    assert isinstance(await refusal(plaintext.WhoAmI(WHO, metadata=bearing(key.secret))), CredentialsRefused)
    assert isinstance(await refusal(plaintext.WhoAmI(WHO)), CredentialsMissing)


async def test_a_key_that_has_ended_opens_nothing(office: Office) -> None:
    expiring, revoked = await office.key(lifetime_s=60), await office.key()
    await (await office.accounts()).RevokeKey(accounts_pb2.RevokeKeyRequest(key_id=revoked.key.key_id))
    office.ground.clock.now_s += 60
    public = await office.public()
    for key in (expiring, revoked):
        assert isinstance(await refusal(public.WhoAmI(WHO, metadata=bearing(key.secret))), CredentialsRefused)
