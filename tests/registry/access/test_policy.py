"""Rights: what roles have, and that nobody passes on more than it has."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.access.addresses import address_of
from registry.access.policy import ACCOUNT_SCOPES, NODE_SCOPES, require_as_much, scopes_of_key
from registry.access.tokens import TokenKind, kind_of, mint_key, mint_session, token_sha256
from registry.access.types import AccountRole, ActorKind, MoreThanOwn, Principal, Scope
from runtime.identity import Role
from runtime.ids import ModelName

MESH_WIDE = {Scope.TENANTS_WRITE, Scope.SIGNERS_WRITE, Scope.FILES_ADMIN, Scope.NODES_WRITE, Scope.KEYS_RESOLVE}
scopes = st.frozensets(st.sampled_from(Scope))
models = st.frozensets(st.sampled_from([ModelName(name) for name in "abc"]))


def test_every_role_has_its_rights_and_no_account_any_of_the_whole_mesh() -> None:
    assert set(NODE_SCOPES) == set(Role)
    assert set(ACCOUNT_SCOPES) == set(AccountRole)
    assert not MESH_WIDE & frozenset().union(*ACCOUNT_SCOPES.values())
    for role, granted in ACCOUNT_SCOPES.items():
        assert granted <= ACCOUNT_SCOPES[AccountRole.OWNER], role


def test_the_auditor_changes_nothing() -> None:
    assert all(scope.value.endswith(":read") for scope in ACCOUNT_SCOPES[AccountRole.AUDITOR])


@given(own=scopes, own_models=models, given_=scopes, given_models=models)
def test_what_is_handed_out_was_had(
    own: frozenset[Scope], own_models: frozenset[ModelName], given_: frozenset[Scope], given_models: frozenset[ModelName]
) -> None:
    principal = Principal(ActorKind.KEY, "k", own, allowed_models=own_models)
    may_call = own_models or {"a", "b", "c"}  # none named = every model
    would_call = given_models or {"a", "b", "c"}
    less = given_ <= own and would_call <= may_call and (bool(given_models) or not own_models)
    try:
        require_as_much(principal, given_, given_models)
    except MoreThanOwn:
        assert not less
    else:
        assert less


@given(role=st.sampled_from(AccountRole), granted=st.lists(st.sampled_from([scope.value for scope in Scope] + ["gone:now"])))
def test_a_key_never_may_more_than_its_role_nor_than_it_was_granted(role: AccountRole, granted: list[str]) -> None:
    assert {scope.value for scope in scopes_of_key(role, granted)} <= set(granted)
    assert scopes_of_key(role, granted) <= ACCOUNT_SCOPES[role]


def test_tokens_tell_their_kind_and_nothing_else_does() -> None:
    key, session = mint_key(), mint_session()
    assert (kind_of(key.secret), kind_of(session.token)) == (TokenKind.KEY, TokenKind.SESSION)
    assert token_sha256(key.secret) == key.secret_sha256
    for text in ("", key.secret + "\n", key.secret.upper(), session.token[:-1], "é" * 70):
        assert kind_of(text) is None
    assert key.secret not in repr(key)
    assert session.token not in repr(session)


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "address"),
    [
        ("ipv4:10.0.0.1:443", "", "10.0.0.1"),
        ("ipv6:%5B2001:db8:1:2:3::4%5D:443", "", "2001:db8:1:2::/64"),
        ("ipv6:%5B::ffff:10.0.0.1%5D:443", "", "10.0.0.1"),
        ("ipv4:10.0.0.1:443", "9.9.9.9, 8.8.8.8", "8.8.8.8"),
        ("ipv4:10.0.0.1:443", "8.8.8.8, not an address", "unknown"),
        ("unix:/tmp/socket", "", "unknown"),
        ("", "", "unknown"),
    ],
)
def test_where_a_call_comes_from(peer: str, forwarded_for: str, address: str) -> None:
    assert address_of(peer, forwarded_for) == address
