"""Guessing keys is slow from one address, and from nowhere else."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from gateway.admission import KeyFacts, KeyRefused, TooManyGuesses
from gateway.callers import Callers
from gateway.guesses import GUESSES, WINDOW_S, Guesses
from gateway.keys import Keys
from gateway.metrics import GatewayMetrics
from runtime.clock import SystemClock
from runtime.ids import KeyId, TenantId
from tests.gateway.fakes import FakeDirectory


def test_after_so_many_an_address_waits_until_its_window_is_over() -> None:
    guesses = Guesses()
    for number in range(GUESSES):
        assert guesses.wait_s("192.0.2.1", number * 0.1) == 0
        guesses.refused("192.0.2.1", number * 0.1)
    assert guesses.wait_s("192.0.2.1", 2.0) == pytest.approx(WINDOW_S - 2.0)
    assert guesses.wait_s("192.0.2.2", 2.0) == 0
    assert guesses.wait_s("192.0.2.1", WINDOW_S) == 0


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("", "", True),
        ("not:an:address", "not:an:address", True),
    ],
)
def test_who_counts_as_one(one: str, other: str, same: bool) -> None:
    guesses = Guesses(guesses=1)
    guesses.refused(one, 0.0)
    assert (guesses.wait_s(other, 0.0) > 0) is same


def test_a_flood_of_addresses_is_bounded_and_forgotten() -> None:
    guesses = Guesses(max_addresses=10)
    for number in range(100):
        guesses.refused(f"192.0.2.{number}", 0.0)
    assert len(guesses._refused) == 10
    for number in range(10):
        guesses.refused("198.51.100.1", 2 * WINDOW_S + number)
    assert len(guesses._refused) == 1


async def test_a_guesser_is_refused_without_asking_and_a_known_key_is_let_in_from_there() -> None:
    secret = "sk-good"
    directory = FakeDirectory({hashlib.sha256(secret.encode()).digest(): KeyFacts(KeyId("k"), TenantId("t"))})
    keys, context = Keys(directory, SystemClock()), cast("Any", object())

    def guesser_of(_: Any, headers: Mapping[str, str | bytes]) -> str:
        return str(headers.get("from", ""))

    def bearing(key: str, address: str = "192.0.2.1") -> dict[str, str | bytes]:
        return {"authorization": f"Bearer {key}", "from": address}

    callers = Callers(keys, GatewayMetrics(CollectorRegistry()), guesser_of=guesser_of)
    assert (await callers.identify(bearing(secret), context)).key_id == "k"
    for number in range(GUESSES):
        with pytest.raises(KeyRefused):
            await callers.identify(bearing(f"sk-{number}"), context)
    asked = directory.asked
    with pytest.raises(TooManyGuesses) as slowed:
        await callers.identify(bearing("sk-another"), context)
    assert directory.asked == asked
    assert slowed.value.retry_after_s is not None
    assert 0 < slowed.value.retry_after_s <= WINDOW_S
    assert (await callers.identify(bearing(secret), context)).key_id == "k"
    with pytest.raises(KeyRefused):
        await callers.identify(bearing("sk-another", "192.0.2.2"), context)
    await keys.close()
