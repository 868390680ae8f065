"""`penstock limits` against a real registry: as functions, and as processes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.registry.v1 import limits_pb2

from cli.limits import NewLimit, amounts_in_words, remove_limit, set_limit, short, show_limits, subject_in_words
from cli.profile import Profile
from tests.cli.commands import command
from tests.registry.accounts.rig import Office

KEY = "0123456789abcdef"


async def limit_ids(registry: Office) -> list[str]:
    answer = await (await registry.limits()).ListLimits(limits_pb2.ListLimitsRequest())
    return [limit.limit_id for limit in answer.limits]


async def test_a_limits_life(office: Office, profile: Profile, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = NewLimit("acme", model="sums", each_key=True, requests_per_s=50, burst=100, tokens_per_day=5_000_000, refuse=True)
    await set_limit(profile, wanted)
    assert (
        "each key of tenant acme, of model sums, may have 50 requests/s (100 at once), 5M tokens/day" in capsys.readouterr().out
    )
    await set_limit(profile, NewLimit(requests_per_s=0.5))
    await show_limits(profile, "")
    shown = capsys.readouterr().out
    for text in (
        "each key of tenant acme",
        "sums",
        "5M tokens/day",
        "refuse",
        "everybody together",
        "0.5 requests/s",
        "operator",
    ):
        assert text in shown
    await show_limits(profile, "acme")
    assert "everybody" not in capsys.readouterr().out
    for limit_id in await limit_ids(office):
        await remove_limit(profile, limit_id)
        assert f"removed limit {limit_id}" in capsys.readouterr().out
    await show_limits(profile, "")
    assert "there are no limits" in capsys.readouterr().out


async def test_as_commands(office: Office, profile: Profile, tmp_path: Path) -> None:
    data = ("--data", str(tmp_path))
    limited = (
        "--tenant",
        "acme",
        "--requests-per-s",
        "50",
        "--burst",
        "100",
        "--tokens-per-min",
        "100000",
        "--concurrent",
        "20",
    )
    made = await command("limits_commands", "app", "set", *limited, "--each-key", "--when-unsure", "refuse", *data)
    assert made[0] == 0, made
    (limit,) = (await (await office.limits()).ListLimits(limits_pb2.ListLimitsRequest())).limits
    assert (limit.scope, limit.when_unsure) == (limits_pb2.LIMIT_SCOPE_EACH_KEY, limits_pb2.WHEN_UNSURE_REFUSE)
    assert (limit.requests_per_s, limit.burst, limit.tokens_per_min, limit.concurrent_requests) == (50, 100, 100_000, 20)
    outcomes = await asyncio.gather(
        command("limits_commands", "app", "list", *data),
        command("limits_commands", "app", "set", "--tenant", "acme", *data),
        command("limits_commands", "app", "set", "--tenant", "initech", "--concurrent", "1", *data),
        command("limits_commands", "app", "set", "--each-key", "--each-tenant", "--concurrent", "1", *data),
        command("limits_commands", "app", "remove", "nothing", *data),
    )
    assert [status for status, _, _ in outcomes] == [0, 1, 1, 1, 1], outcomes
    assert "100k tokens/min, 20 running" in outcomes[0][1]
    for (_, _, err), says in zip(
        outcomes[1:], ("limits nothing", "no tenant initech", "--each-tenant and --each-key", "no limit 'nothing'"), strict=True
    ):
        assert says in err
        assert err.startswith("penstock: ")
        assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (limits_pb2.Limit(), "everybody together"),
        (limits_pb2.Limit(scope=limits_pb2.LIMIT_SCOPE_EACH_TENANT), "each tenant"),
        (limits_pb2.Limit(scope=limits_pb2.LIMIT_SCOPE_EACH_KEY, model="m"), "each key, of model m,"),
        (limits_pb2.Limit(tenant="acme"), "tenant acme"),
        (limits_pb2.Limit(tenant="acme", scope=limits_pb2.LIMIT_SCOPE_EACH_KEY), "each key of tenant acme"),
        (limits_pb2.Limit(tenant="acme", key_id=KEY), f"key {KEY} of tenant acme"),
    ],
)
def test_whom_a_limit_is_for_in_words(limit: limits_pb2.Limit, words: str) -> None:
    assert subject_in_words(limit) == words


def test_how_much_in_words() -> None:
    limit = limits_pb2.Limit(requests_per_s=0.25, concurrent_requests=3, requests_per_day=86_400, tokens_per_min=1_500)
    assert amounts_in_words(limit) == "0.25 requests/s, 1.5k tokens/min, 3 running, 86.4k requests/day"


@pytest.mark.parametrize(
    ("amount", "words"),
    [(0.5, "0.5"), (1, "1"), (999, "999"), (1_000, "1k"), (1_234_567, "1,234,567"), (5_000_000, "5M"), (10**15, "1000T")],
)
def test_a_number_as_people_say_it(amount: float, words: str) -> None:
    assert short(amount) == words


@given(st.integers(1, 10**15))
def test_a_number_as_people_say_it_is_the_same_number(amount: int) -> None:
    said = short(amount)
    factor = {"k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}.get(said[-1], 1)
    assert round(float(said.rstrip("kMGT").replace(",", "")) * factor) == amount
