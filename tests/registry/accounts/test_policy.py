"""What accounts accept, and what becomes of a key in time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from registry.access.policy import ACCOUNT_SCOPES, is_live
from registry.access.types import AccountRole
from registry.accounts.policy import key_faults, key_of, password_faults, rotated, rotation_fault, to_the_minute, whole_password
from registry.accounts.types import KeyWish
from runtime.ids import KeyId, TenantId

times_ms = st.integers(1, 4_000_000_000_000)
wishes = st.builds(
    KeyWish,
    tenant=st.just(TenantId("acme")),
    name=st.just("app"),
    role=st.sampled_from(AccountRole),
    lifetime_s=st.integers(0, 10**6),
)


@given(wish=wishes, made_ms=times_ms, later_ms=st.integers(0, 10**9), overlap_s=st.integers(0, 10**6), ask_ms=times_ms)
def test_a_rotation_never_prolongs_the_old_key_and_ends_it_in_time(
    wish: KeyWish, made_ms: int, later_ms: int, overlap_s: int, ask_ms: int
) -> None:
    key = key_of(wish, KeyId("a"), made_ms)
    now_ms = made_ms + later_ms
    new, old = rotated(key, KeyId("b"), overlap_s, now_ms)
    assert not is_live(old.revoked_at_ms, old.expires_at_ms, ask_ms) or is_live(0, key.expires_at_ms, ask_ms)
    assert not is_live(0, old.expires_at_ms, now_ms + overlap_s * 1000)
    assert (new.role, new.scopes, new.allowed_models, new.rate_limit) == (
        key.role,
        key.scopes,
        key.allowed_models,
        key.rate_limit,
    )
    assert bool(new.expires_at_ms) == bool(key.expires_at_ms)
    assert rotation_fault(old, now_ms)


@given(role=st.sampled_from(AccountRole), data=st.data())
def test_a_key_has_what_it_was_granted_and_never_more_than_its_role(role: AccountRole, data: st.DataObject) -> None:
    scopes = frozenset(data.draw(st.sets(st.sampled_from(sorted(ACCOUNT_SCOPES[AccountRole.OWNER], key=lambda s: s.value)))))
    wish = KeyWish(TenantId("acme"), "app", role, scopes=scopes)
    if key_faults(wish):
        assert not scopes <= ACCOUNT_SCOPES[role]
    else:
        assert key_of(wish, KeyId("a"), 0).scopes == (scopes or ACCOUNT_SCOPES[role]) <= ACCOUNT_SCOPES[role]


def test_a_password_is_the_same_however_it_was_typed() -> None:
    assert whole_password("cafe\u0301 au lait") == whole_password("caf\u00e9 au lait")


def test_a_password_that_is_too_long_costs_nothing() -> None:
    """Marks are put in order by insertion: of a megabyte that would be minutes in which nobody is served."""
    endless = "a" + "\u0316\u0300" * 250_000
    assert whole_password(endless) is endless
    assert password_faults(whole_password(endless))
    assert len(whole_password("\ufdfa" * 1024)) > 1024, "what grows beyond the bound is refused by its new length"


@given(st.text(max_size=2000))
def test_a_password_that_is_refused_is_not_shown(password: str) -> None:
    for fault in password_faults(password, "ann"):
        assert len(password) < 5 or password not in fault


@given(times_ms)
def test_uses_are_noted_to_the_minute(at_ms: int) -> None:
    assert 0 <= at_ms - to_the_minute(at_ms) < 60_000
    assert to_the_minute(at_ms) % 60_000 == 0
