"""What a model's names mean: numbers, aliases, shares, and what was withdrawn."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.versions import NEWEST, AliasUnsettled, VersionGone, roll_of, split_name, table_of
from runtime.ids import Digest, ModelName, ModelVersion, TenantId
from runtime.notices import STABLE, AliasTarget, ModelNotice, PendingTarget
from tests.gateway.fakes import notice_of

aliases = st.dictionaries(
    st.sampled_from([STABLE, "canary", "blue", "green", "next"]),
    st.tuples(st.sampled_from(["", "1", "2", "3", "4"]), st.integers(0, 100)),
)
rolls = st.floats(0, 1, exclude_max=True)


def test_without_aliases_the_newest_is_meant() -> None:
    table = table_of(notice_of("m"))
    assert (table.plain, table.version("", 0.5), table.version("3", 0.5)) == (NEWEST, NEWEST, "3")


def test_stable_gets_what_names_nothing() -> None:
    table = table_of(notice_of("m", aliases={STABLE: ("2", 0)}))
    assert (table.plain, table.version("", 0.99), table.mostly()) == ("2", "2", "2")


def test_weights_share_and_stable_gets_the_rest() -> None:
    table = table_of(notice_of("m", aliases={STABLE: ("2", 0), "canary": ("3", 10), "next": ("4", 5)}))
    assert table.plain is None
    assert [table.version("", roll) for roll in (0, 0.099, 0.1, 0.149, 0.15, 0.999)] == ["3", "3", "4", "4", "2", "2"]


def test_without_stable_the_rest_goes_to_the_newest() -> None:
    table = table_of(notice_of("m", aliases={"canary": ("3", 10)}))
    assert (table.version("", 0.05), table.version("", 0.5)) == ("3", NEWEST)


def test_a_name_means_its_target_and_a_number_itself() -> None:
    table = table_of(notice_of("m", aliases={STABLE: ("2", 0), "canary": ("3", 0)}))
    assert [table.version(name, 0) for name in (STABLE, "canary", "1", "nobody")] == ["2", "3", "1", "nobody"]


def test_what_was_withdrawn_is_refused_however_it_is_called() -> None:
    table = table_of(notice_of("m", aliases={STABLE: ("2", 0), "canary": ("3", 0)}, withdrawn=["2", "3"]))
    for wanted in ("2", "3", STABLE, "canary", ""):
        with pytest.raises(VersionGone, match=r"^Request for unknown model: 'm' version . is not found: it was withdrawn"):
            table.version(wanted, 0.5)
    assert table.version("1", 0.5) == "1"


def test_a_withdrawn_canary_gives_its_share_back() -> None:
    table = table_of(notice_of("m", aliases={STABLE: ("2", 0), "canary": ("3", 50)}, withdrawn=["3"]))
    assert {table.version("", roll) for roll in (0, 0.2, 0.8)} == {"2"}
    assert table.plain == "2"


def test_an_alias_whose_first_target_is_being_warmed() -> None:
    table = table_of(notice_of("m", aliases={"canary": ("", 50), "blue": ("1", 0)}))
    with pytest.raises(AliasUnsettled):
        table.version("canary", 0)
    assert table.version("", 0.1) == NEWEST


def test_a_pending_move_changes_nothing() -> None:
    target = AliasTarget(STABLE, ModelVersion("1"), Digest("d"), 0, 1)
    moving = replace(target, pending=PendingTarget(ModelVersion("2"), Digest("e"), 100, 5))
    notice = ModelNotice(ModelName("m"), TenantId("t"), frozenset(), (target,))
    assert table_of(replace(notice, aliases=(moving,))) == table_of(notice)


@given(aliases, rolls)
def test_every_request_gets_a_version_that_an_alias_names_or_the_newest(named: dict[str, tuple[str, int]], roll: float) -> None:
    assert table_of(notice_of("m", aliases=named)).version("", roll) in {version for version, _ in named.values()} | {NEWEST}


@given(aliases)
def test_shares_are_what_the_weights_say(named: dict[str, tuple[str, int]]) -> None:
    table = table_of(notice_of("m", aliases=named))
    weights = {alias: weight for alias, (version, weight) in named.items() if version and alias != STABLE}
    ends = [end for end, _ in table.shares]
    assert ends == sorted(ends)
    assert all(0 < end <= 1 for end in ends)
    assert (ends[-1] if ends else 0) == min(100, sum(weights.values())) / 100


@given(aliases, st.sets(st.sampled_from(["1", "2", "3", "4"])), st.sampled_from(["", "1", "2", STABLE, "canary"]), rolls)
def test_nobody_is_ever_sent_to_a_withdrawn_version(
    named: dict[str, tuple[str, int]], withdrawn: set[str], wanted: str, roll: float
) -> None:
    table = table_of(notice_of("m", aliases=named, withdrawn=sorted(withdrawn)))
    with contextlib.suppress(VersionGone, AliasUnsettled):
        assert table.version(wanted, roll) not in withdrawn
    assert table.plain is None or table.plain == table.version("", roll)


@given(st.text(min_size=1, max_size=40))
def test_a_session_keeps_its_version_while_the_canary_grows(session: str) -> None:
    roll = roll_of("m", session)
    assert 0 <= roll < 1
    chosen = [
        table_of(notice_of("m", aliases={STABLE: ("1", 0), "canary": ("2", weight)})).version("", roll)
        for weight in range(1, 101)
    ]
    assert chosen == sorted(chosen), "from stable to the canary, once, and never back"


def test_sessions_are_spread_as_the_weights_say() -> None:
    table = table_of(notice_of("m", aliases={STABLE: ("1", 0), "canary": ("2", 10)}))
    chosen = [table.version("", roll_of("m", f"session-{number}")) for number in range(5000)]
    assert 0.08 < chosen.count(ModelVersion("2")) / 5000 < 0.12


@pytest.mark.parametrize(
    ("shared_with", "tenant", "allowed"),
    [((), "t", True), ((), "u", False), (("u",), "u", True), (("*",), "anybody", True), (("v",), "u", False)],
)
def test_who_may_call(shared_with: tuple[str, ...], tenant: str, allowed: bool) -> None:
    notice = notice_of("m", "t", shared_with=shared_with)
    assert table_of(notice).allows(tenant) is allowed is notice.allows(TenantId(tenant))


@pytest.mark.parametrize(
    ("name", "split"),
    [("m", ("m", "")), ("m@canary", ("m", "canary")), ("m@3", ("m", "3")), ("m@a@b", ("m", "a@b")), ("@", ("", ""))],
)
def test_a_name_with_its_version(name: str, split: tuple[str, str]) -> None:
    assert split_name(name) == split
