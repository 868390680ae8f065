"""What a key may do at the gateway, as the registry says it."""

from __future__ import annotations

import pytest
from penstock.registry.v1 import accounts_pb2

from gateway.admission import AdminRequired, InferRequired, ModelNotAllowed
from gateway.codec import key_facts_of


@pytest.mark.parametrize(
    ("role", "scopes", "may_infer", "may_load"),
    [
        ("owner", [], True, True),
        ("publisher", [], True, True),
        ("caller", [], True, False),
        ("auditor", [], False, False),
        ("somebody", [], False, False),
        ("owner", ["infer"], True, False),
        ("owner", ["models:read", "models:load"], False, True),
        ("publisher", ["infer", "models:load"], True, True),
        ("auditor", ["audit:read"], False, False),
    ],
)
def test_what_a_key_may(role: str, scopes: list[str], may_infer: bool, may_load: bool) -> None:
    facts = key_facts_of(accounts_pb2.ApiKey(key_id="k", tenant="t", role=role, scopes=scopes))
    assert (facts.may_infer, facts.admin) == (may_infer, may_load)
    if may_infer:
        facts.authorise_call("m")
    else:
        with pytest.raises(InferRequired):
            facts.authorise_call("m")
    if not may_load:
        with pytest.raises(AdminRequired):
            facts.require_admin("loading a model")


def test_the_other_facts() -> None:
    limit = accounts_pb2.RateLimit(requests_per_s=2.5, burst=7)
    message = accounts_pb2.ApiKey(
        key_id="k", tenant="t", role="caller", allowed_models=["m"], rate_limit=limit, expires_at_ms=5000
    )
    facts = key_facts_of(message)
    assert (facts.key_id, facts.tenant, facts.requests_per_s, facts.burst, facts.expires_at_s) == ("k", "t", 2.5, 7, 5.0)
    with pytest.raises(ModelNotAllowed):
        facts.authorise_call("n")
