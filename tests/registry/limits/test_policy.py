"""What a limit may say, what it is called, and how many there may be: tables and invariants."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.access.types import ActorKind, OtherTenant, Principal, Scope, ScopeRequired
from registry.limits.policy import (
    MAX_IN_ALL,
    MAX_OF_ONE_KEYS_REQUESTS,
    MAX_OF_TENANT,
    MAX_ON_EVERYBODY,
    MAX_ON_KEY,
    MAX_ON_TENANT,
    MOST_A_TIME,
    MOST_BURST,
    described,
    fullness,
    id_fault,
    is_limit_id,
    limit_faults,
    limit_id_of,
)
from registry.limits.rights import model_fault, require_over, sees
from registry.limits.types import (
    Amounts,
    Counted,
    Limit,
    LimitScope,
    LimitSubject,
    LimitWish,
    OperatorsAlone,
    Setter,
    WhenUnsure,
)
from runtime.ids import KeyId, ModelName, TenantId

KEY = KeyId("0123456789abcdef")
ACME = LimitSubject(TenantId("acme"))
SOME = Amounts(requests_per_s=1.0)
NAMES = st.sampled_from(["", "a", "b", "acme", "a-b"])
SUBJECTS = st.builds(
    LimitSubject,
    NAMES.map(TenantId),
    NAMES.map(KeyId),
    NAMES.map(ModelName),
    st.sampled_from(LimitScope),
    st.sampled_from(Setter),
)
OPERATOR = Principal(ActorKind.NODE, "op", frozenset(Scope))
OWNER = Principal(ActorKind.USER, "ann", frozenset({Scope.ACCOUNTS_WRITE, Scope.ACCOUNTS_READ}), TenantId("acme"))


@given(SUBJECTS, SUBJECTS)
def test_two_limits_have_one_id_if_and_only_if_they_are_for_the_same(one: LimitSubject, other: LimitSubject) -> None:
    assert (limit_id_of(one) == limit_id_of(other)) == (one == other)
    assert is_limit_id(limit_id_of(one))


@pytest.mark.parametrize(
    "amounts",
    [
        Amounts(requests_per_s=0.5),
        Amounts(requests_per_s=1e9, burst=MOST_BURST),
        Amounts(tokens_per_min=MOST_A_TIME),
        Amounts(concurrent_requests=1),
        Amounts(requests_per_day=1),
        Amounts(tokens_per_day=1),
    ],
)
def test_any_one_amount_makes_a_limit(amounts: Amounts) -> None:
    assert limit_faults(LimitWish(ACME, amounts)) == []


@pytest.mark.parametrize(
    ("subject", "amounts", "says"),
    [
        (ACME, Amounts(), "limits nothing"),
        (ACME, Amounts(burst=5, tokens_per_day=1), "a burst of 5 without a rate"),
        (ACME, Amounts(requests_per_s=-1.0), "-1 requests/s"),
        (ACME, Amounts(requests_per_s=math.nan), "nan requests/s"),
        (ACME, Amounts(requests_per_s=math.inf), "inf requests/s"),
        (ACME, Amounts(requests_per_s=1e-6), "0.0001 to 1e+09"),
        (ACME, Amounts(requests_per_s=1.0, burst=MOST_BURST + 1), f"burst {MOST_BURST + 1}: at most"),
        (ACME, Amounts(concurrent_requests=2**32 - 1), "concurrent_requests 4294967295: at most"),
        (ACME, Amounts(tokens_per_day=2**64 - 1), f"tokens_per_day {2**64 - 1}: at most"),
        (LimitSubject(TenantId("ACME")), SOME, "tenant 'ACME'"),
        (LimitSubject(TenantId("a\0b")), SOME, "tenant 'a\\x00b'"),
        (LimitSubject(key_id=KeyId("nothing")), SOME, "key_id 'nothing': 16 hex digits"),
        (LimitSubject(model=ModelName("a b")), SOME, "model name 'a b'"),
        (LimitSubject(model=ModelName("m" * 129)), SOME, "up to 128"),
        (replace(ACME, scope=LimitScope.EACH_TENANT), SOME, "a limit on one tenant for each tenant"),
        (LimitSubject(key_id=KEY, scope=LimitScope.EACH_KEY), SOME, "a limit on one key for each key"),
        (LimitSubject(key_id=KEY, scope=LimitScope.EACH_TENANT), SOME, "a limit on one key for each tenant"),
    ],
)
def test_what_is_wrong_is_said_with_the_value_seen(subject: LimitSubject, amounts: Amounts, says: str) -> None:
    (fault,) = limit_faults(LimitWish(subject, amounts))
    assert says in fault


def test_an_id_that_names_another_limit_is_noticed() -> None:
    found = limit_id_of(ACME)
    assert id_fault(LimitWish(ACME, SOME), found) is None
    assert id_fault(LimitWish(ACME, SOME, limit_id=found), found) is None
    assert found in (id_fault(LimitWish(ACME, SOME, limit_id="f" * 16), found) or "")


@pytest.mark.parametrize(
    ("subject", "last", "full"),
    [
        (LimitSubject(), Counted(side_by_side=MAX_ON_EVERYBODY - 1), Counted(side_by_side=MAX_ON_EVERYBODY)),
        (LimitSubject(), Counted(of_tenant=MAX_OF_TENANT), Counted(in_all=MAX_IN_ALL)),
        (ACME, Counted(side_by_side=MAX_ON_TENANT - 1), Counted(side_by_side=MAX_ON_TENANT)),
        (ACME, Counted(of_tenant=MAX_OF_TENANT - 1), Counted(of_tenant=MAX_OF_TENANT)),
        (ACME, Counted(in_all=MAX_IN_ALL - 1), Counted(in_all=MAX_IN_ALL)),
        (replace(ACME, key_id=KEY), Counted(side_by_side=MAX_ON_KEY - 1), Counted(side_by_side=MAX_ON_KEY)),
    ],
)
def test_there_is_room_until_a_bound_is_reached(subject: LimitSubject, last: Counted, full: Counted) -> None:
    assert fullness(subject, last) is None
    assert "remove some" in (fullness(subject, full) or "")


def test_what_one_key_falls_under_and_what_a_tenant_has_stays_within_the_contract() -> None:
    assert MAX_OF_ONE_KEYS_REQUESTS == 256
    assert 2 * MAX_OF_TENANT == 1_000
    assert 2 * MAX_IN_ALL == 10_000


@pytest.mark.parametrize(
    ("principal", "subject", "error"),
    [
        (OPERATOR, LimitSubject(), None),
        (OPERATOR, ACME, None),
        (OWNER, ACME, None),
        (OWNER, LimitSubject(key_id=KEY), None),
        (OWNER, LimitSubject(), OperatorsAlone),
        (OWNER, LimitSubject(scope=LimitScope.EACH_TENANT), OperatorsAlone),
        (OWNER, LimitSubject(model=ModelName("m")), OperatorsAlone),
        (OWNER, LimitSubject(TenantId("globex")), OtherTenant),
        (replace(OWNER, tenant=TenantId("default")), LimitSubject(), OperatorsAlone),
        (replace(OWNER, scopes=frozenset({Scope.ACCOUNTS_READ})), ACME, ScopeRequired),
    ],
)
def test_who_may_limit_whom(principal: Principal, subject: LimitSubject, error: Any) -> None:
    if error is None:
        require_over(principal, subject)
        return
    with pytest.raises(error):
        require_over(principal, subject)


@pytest.mark.parametrize(
    ("subject", "seen"),
    [
        (ACME, True),
        (LimitSubject(TenantId("globex")), False),
        (LimitSubject(), True),
        (LimitSubject(model=ModelName("own")), True),
        (LimitSubject(model=ModelName("shared")), True),
        (LimitSubject(model=ModelName("secret")), False),
        (LimitSubject(model=ModelName("nothing")), False),
        (replace(ACME, model=ModelName("secret")), True),
    ],
)
def test_a_tenant_sees_its_own_and_what_is_on_everybody_but_no_models_of_others(subject: LimitSubject, seen: bool) -> None:
    owners = {
        ModelName("own"): (TenantId("acme"), frozenset[str]()),
        ModelName("shared"): (TenantId("globex"), frozenset({"acme"})),
        ModelName("secret"): (TenantId("globex"), frozenset({"initech"})),
    }
    limit = Limit(limit_id_of(subject), subject, SOME, WhenUnsure.SHARE, 1)
    assert sees(OWNER, limit, owners) is seen
    assert sees(OPERATOR, limit, {})


def test_who_may_have_some_models_alone_limits_those_alone() -> None:
    lesser = replace(OWNER, allowed_models=frozenset({ModelName("letters")}))
    assert model_fault(lesser, replace(ACME, model=ModelName("letters"))) is None
    for model in ("", "digits"):
        assert "1 models alone" in (model_fault(lesser, replace(ACME, model=ModelName(model))) or "")
    assert model_fault(OWNER, ACME) is None


def test_the_trail_says_whom_and_how_much() -> None:
    on_key = replace(ACME, key_id=KEY, model=ModelName("sums"))
    assert described(on_key, Amounts(tokens_per_day=5_000_000)) == (
        f"key {KEY} of tenant acme, model sums: tokens_per_day 5000000"
    )
    each = LimitSubject(scope=LimitScope.EACH_KEY)
    assert described(each, Amounts(0.5, 3)) == "everybody, each key: requests_per_s 0.5, burst 3"
