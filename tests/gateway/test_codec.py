"""What a key may do at the gateway, as the registry says it."""

from __future__ import annotations

import pytest
from penstock.registry.v1 import accounts_pb2, limits_pb2

from gateway.admission import AdminRequired, InferRequired, ModelNotAllowed
from gateway.codec import key_facts_of
from gateway.limits.types import Limit, Scope, WhenUnsure


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
    key = accounts_pb2.ApiKey(key_id="k", tenant="t", role=role, scopes=scopes)
    facts = key_facts_of(accounts_pb2.ResolveKeyResponse(key=key))
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
    rate = accounts_pb2.RateLimit(requests_per_s=2.5, burst=7)
    key = accounts_pb2.ApiKey(key_id="k", tenant="t", role="caller", allowed_models=["m"], rate_limit=rate, expires_at_ms=5000)
    limit = limits_pb2.Limit(
        limit_id="l",
        tenant="t",
        model="m",
        scope=limits_pb2.LIMIT_SCOPE_EACH_KEY,
        tokens_per_min=9,
        when_unsure=limits_pb2.WHEN_UNSURE_REFUSE,
        generation=3,
    )
    facts = key_facts_of(accounts_pb2.ResolveKeyResponse(key=key, limits=[limit]))
    assert (facts.key_id, facts.tenant, facts.expires_at_s) == ("k", "t", 5.0)
    assert facts.limits == (
        Limit("l", "t", "", "m", Scope.EACH_KEY, tokens_per_min=9, when_unsure=WhenUnsure.REFUSE, generation=3),
        Limit("key/k", key_id="k", requests_per_s=2.5, burst=7),
    ), "a key's own rate is a limit like any other"
    with pytest.raises(ModelNotAllowed):
        facts.authorise_call("n")
