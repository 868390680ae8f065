"""Who is let in, whatever the rows say: one node for a token, no way back for who was put out."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import example, given
from hypothesis import strategies as st

from registry.nodes.policy import (
    applicant_faults,
    enrolled,
    invitation_faults,
    is_node_id,
    is_token_id,
    node_refusal,
    renewed,
    revocation_refusal,
    revoked,
    token_refusal,
    used,
)
from registry.nodes.types import AnotherRole, Applicant, Certified, Invitation, JoinToken, JoinTokenRefused, Node, NotItself
from runtime.identity import Peer, Role
from runtime.ids import NodeId, TenantId
from runtime.revocations import NodeRevoked

NOW_MS = 1_000_000
SECRET, OTHER = b"s" * 32, b"o" * 32
NODE_IDS = st.sampled_from([NodeId(f"{number:020x}") for number in range(3)])
TENANTS = st.frozensets(st.sampled_from([TenantId("acme"), TenantId("globex")]))
MOMENTS = st.sampled_from([NOW_MS + 1, 2 * NOW_MS, NOW_MS, NOW_MS - 1, 0])
ROLES = st.sampled_from(Role)
TOKENS = st.builds(
    JoinToken,
    st.just("0" * 16),
    st.sampled_from([SECRET, SECRET, OTHER]),
    ROLES,
    TENANTS,
    st.just(0),
    MOMENTS,
    st.sampled_from([5, 0]),
    st.one_of(st.just(""), NODE_IDS),
    st.sampled_from([0, 0, 7]),
)
NODES = st.builds(
    Node,
    NODE_IDS,
    st.one_of(st.none(), ROLES),
    TENANTS,
    enrolled_at_ms=MOMENTS,
    certificate_expires_at_ms=MOMENTS,
    revoked_at_ms=st.sampled_from([0, 7]),
)


@given(TOKENS, NODE_IDS)
@example(JoinToken("0" * 16, SECRET, Role.WORKER, frozenset(), 0, NOW_MS + 1, 5, "1" * 20), NodeId("2" * 20))
@example(JoinToken("0" * 16, SECRET, Role.WORKER, frozenset(), 0, NOW_MS + 1, 5, "1" * 20), NodeId("1" * 20))
def test_a_token_lets_in_only_who_knows_it_while_it_lasts_and_nobody_after_another(token: JoinToken, node_id: NodeId) -> None:
    lets_in = token_refusal(token, SECRET, node_id, NOW_MS) is None
    fits = token.secret_sha256 == SECRET and not token.revoked_at_ms and token.expires_at_ms > NOW_MS
    assert lets_in == (fits and (not token.used_at_ms or token.node_id == node_id))


@given(TOKENS, st.lists(NODE_IDS, max_size=6))
def test_of_all_who_come_one_by_one_only_one_node_gets_in(token: JoinToken, comers: list[NodeId]) -> None:
    let_in = set()
    token = replace(token, used_at_ms=0, node_id="")
    for comer in comers:
        if token_refusal(token, SECRET, comer, NOW_MS) is None:
            token = used(token, comer, NOW_MS)
            let_in.add(comer)
    assert len(let_in) <= 1


@given(TOKENS, NODE_IDS)
def test_who_does_not_know_the_secret_hears_the_same_of_every_token(token: JoinToken, node_id: NodeId) -> None:
    unknown = token_refusal(None, SECRET, node_id, NOW_MS)
    wrong = token_refusal(replace(token, secret_sha256=OTHER), SECRET, node_id, NOW_MS)
    assert isinstance(unknown, JoinTokenRefused)
    assert str(unknown) == str(wrong)


@given(NODES, ROLES)
def test_who_was_revoked_or_is_something_else_gets_no_certificate(node: Node, role: Role) -> None:
    refused = node_refusal(node, node.node_id, role)
    if node.revoked_at_ms:
        assert isinstance(refused, NodeRevoked)
    elif node.role not in (None, role):
        assert isinstance(refused, AnotherRole)
    else:
        assert refused is None
    assert node_refusal(None, node.node_id, role) is None


@given(TOKENS, st.one_of(st.none(), NODES), TENANTS, MOMENTS)
def test_a_row_knows_the_certificate_that_lasts_longest(
    token: JoinToken, known: Node | None, tenants: frozenset[TenantId], expires_at_ms: int
) -> None:
    node_id = known.node_id if known else NodeId("0" * 20)
    applicant = Applicant(node_id, b"k" * 32, ("here",), "")
    one = enrolled(token, known, applicant, NOW_MS, expires_at_ms)
    assert (one.role, one.tenants, one.node_id) == (token.role, token.tenants, node_id)
    assert one.certificate_expires_at_ms == max(expires_at_ms, known.certificate_expires_at_ms if known else 0)
    assert one.enrolled_at_ms
    two = renewed(one, Certified(Peer(Role.ENVOY, node_id, tenants), ("there",), 3), b"k" * 32, NOW_MS + 1, 5)
    assert replace(two, renewed_at_ms=0, certificate_expires_at_ms=0) == replace(
        one, renewed_at_ms=0, certificate_expires_at_ms=0
    )
    assert two.certificate_expires_at_ms >= one.certificate_expires_at_ms


def test_a_node_of_elsewhere_keeps_the_names_of_its_certificate_at_each_renewal() -> None:
    peer = Peer(Role.WORKER, NodeId("0" * 20), frozenset({TenantId("acme")}))
    first = renewed(None, Certified(peer, ("here",), 9), b"k" * 32, NOW_MS, 5)
    seen = renewed(Node(peer.node_id, Role.WORKER), Certified(peer, ("here",), 9), b"k" * 32, NOW_MS, 5)
    for node in (first, seen):
        assert (node.role, node.tenants, node.hosts) == (Role.WORKER, frozenset({TenantId("acme")}), ("here",))
        assert (node.enrolled_at_ms, node.certificate_expires_at_ms) == (0, 9)


@given(NODES, NODE_IDS)
def test_nobody_puts_itself_out_and_who_is_out_puts_nobody_out(caller: Node, node_id: NodeId) -> None:
    refused = revocation_refusal(node_id, caller)
    if caller.revoked_at_ms:
        assert isinstance(refused, NodeRevoked)
    elif caller.node_id == node_id:
        assert isinstance(refused, NotItself)
    else:
        assert refused is None


@given(st.one_of(st.none(), NODES), st.text(max_size=20))
def test_a_revocation_is_remembered_until_its_certificates_have_ended(node: Node | None, because: str) -> None:
    node_id = node.node_id if node else NodeId("0" * 20)
    gone = revoked(node, node_id, because, NOW_MS)
    assert (gone.node_id, gone.revoked_at_ms, gone.revoked_because) == (node_id, NOW_MS, because)
    if node and node.certificate_expires_at_ms:
        assert gone.certificate_expires_at_ms == node.certificate_expires_at_ms
    else:
        assert gone.certificate_expires_at_ms > NOW_MS + 396 * 86_400_000


@given(st.text(max_size=30))
def test_ids_are_hex_and_nothing_else(text: str) -> None:
    for known, size in ((is_node_id, 20), (is_token_id, 16)):
        assert known(text) == (len(text) == size and all(letter in "0123456789abcdef" for letter in text))


def test_faults_say_what_is_wrong() -> None:
    worker = Invitation(Role.WORKER, frozenset({TenantId("acme")}), 60)
    assert invitation_faults(worker) == []
    assert invitation_faults(replace(worker, role=Role.OPERATOR))
    assert invitation_faults(replace(worker, tenants=frozenset({TenantId("../etc")})))
    assert invitation_faults(replace(worker, tenants=frozenset(TenantId(f"t{n}") for n in range(65))))
    assert invitation_faults(replace(worker, lifetime_s=0))
    assert applicant_faults(["gpu1"], "a" * 64) == []
    assert applicant_faults(["gpu1"], "a" * 63)
    assert applicant_faults(["gpu1:1"], "")
