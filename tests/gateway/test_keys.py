"""Keys in memory: asked for once, forgotten when they change, kept while the registry is away."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace

import pytest

from gateway.admission import KeyFacts, KeyRefused
from gateway.keys import KeyLimits, Keys, KeysUnavailable
from gateway.limits.types import Limit
from runtime.ids import KeyId, TenantId
from tests.gateway.fakes import FakeDirectory

FACTS = KeyFacts(KeyId("k1"), TenantId("t"))


class Clock:
    """Time stands until somebody moves it; sleeping only lets the others run."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic_s(self) -> float:
        return self.now_s

    def wall_s(self) -> float:
        return self.now_s

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(0)


def digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


@pytest.fixture
def directory() -> FakeDirectory:
    return FakeDirectory({digest("sk-1"): FACTS})


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys(directory: FakeDirectory, clock: Clock) -> Keys:
    return Keys(directory, clock)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_key_is_asked_for_once(keys: Keys, directory: FakeDirectory) -> None:
    for _ in range(5):
        assert (await keys.find("sk-1")).facts is FACTS
    assert directory.asked == 1


async def test_many_at_once_ask_once(keys: Keys, directory: FakeDirectory) -> None:
    directory.gate = asyncio.Event()
    asking = [asyncio.create_task(keys.find("sk-1")) for _ in range(20)]
    await settle()
    asking[0].cancel()  # who goes away takes the answer from nobody
    directory.gate.set()
    results = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert all(not isinstance(result, BaseException) for result in results[1:])
    assert directory.asked == 1


async def test_a_wrong_key_is_refused_and_not_asked_for_again_and_again(
    keys: Keys, directory: FakeDirectory, clock: Clock
) -> None:
    for _ in range(5):
        with pytest.raises(KeyRefused):
            await keys.find("sk-2")
    assert directory.asked == 1
    clock.now_s += 10
    directory.keys[digest("sk-2")] = replace(FACTS, key_id=KeyId("k2"))
    assert (await keys.find("sk-2")).facts.key_id == "k2"


async def test_a_known_key_works_while_the_registry_is_away_and_an_unknown_one_does_not(
    keys: Keys, directory: FakeDirectory, clock: Clock
) -> None:
    await keys.find("sk-1")
    directory.away = True
    for _ in range(20):
        clock.now_s += 100
        assert (await keys.find("sk-1")).facts is FACTS
        await settle()
    with pytest.raises(KeysUnavailable):
        await keys.find("sk-2")


async def test_a_known_key_is_refreshed_beside_the_requests(keys: Keys, directory: FakeDirectory, clock: Clock) -> None:
    await keys.find("sk-1")
    clock.now_s += 61
    directory.gate = asyncio.Event()
    assert (await keys.find("sk-1")).facts is FACTS
    directory.gate.set()
    await settle()
    assert directory.asked == 2


async def test_an_expired_key_is_refused_without_asking(directory: FakeDirectory, clock: Clock) -> None:
    directory.keys[digest("sk-1")] = replace(FACTS, expires_at_s=1010.0)
    keys = Keys(directory, clock)
    await keys.find("sk-1")
    clock.now_s = 1010.0
    with pytest.raises(KeyRefused):
        await keys.find("sk-1")
    assert directory.asked == 1


async def test_a_revoked_key_is_forgotten_when_that_is_told(keys: Keys, directory: FakeDirectory) -> None:
    await keys.find("sk-1")
    del directory.keys[digest("sk-1")]
    keys.forget([KeyId("another")])
    assert (await keys.find("sk-1")).facts is FACTS
    keys.forget([KeyId("k1")])
    with pytest.raises(KeyRefused):
        await keys.find("sk-1")


async def test_a_revoked_key_does_not_come_back_with_an_answer_that_was_on_its_way(
    keys: Keys, directory: FakeDirectory
) -> None:
    directory.gate = asyncio.Event()
    asking = asyncio.create_task(keys.find("sk-1"))
    await settle()
    keys.forget([KeyId("k1")])
    directory.gate.set()
    await asking
    del directory.keys[digest("sk-1")]
    with pytest.raises(KeyRefused):
        await keys.find("sk-1")


async def test_what_may_have_been_missed_is_made_up_for(keys: Keys, directory: FakeDirectory) -> None:
    await keys.find("sk-1")
    del directory.keys[digest("sk-1")]
    keys.doubt_all()
    with pytest.raises(KeyRefused):
        await keys.find("sk-1")


async def test_a_doubted_key_serves_while_the_registry_is_away(keys: Keys, directory: FakeDirectory) -> None:
    await keys.find("sk-1")
    directory.away = True
    keys.doubt_all()
    assert (await keys.find("sk-1")).facts is FACTS


async def test_a_new_key_is_not_kept_out_by_what_was_refused_before(keys: Keys, directory: FakeDirectory) -> None:
    with pytest.raises(KeyRefused):
        await keys.find("sk-2")
    directory.keys[digest("sk-2")] = replace(FACTS, key_id=KeyId("k2"))
    keys.forget([KeyId("k2")])
    assert (await keys.find("sk-2")).facts.key_id == "k2"


async def test_a_flood_of_unknown_keys_is_bounded(directory: FakeDirectory, clock: Clock) -> None:
    keys = Keys(directory, clock, KeyLimits(known=2, refused=2, lookups=3))
    directory.gate = asyncio.Event()
    asking = [asyncio.create_task(keys.find(f"sk-{number}")) for number in range(10)]
    await settle()
    directory.gate.set()
    results = await asyncio.gather(*asking, return_exceptions=True)
    assert sum(isinstance(result, KeysUnavailable) for result in results) == 7
    for number in range(10):
        directory.keys[digest(f"sk-{number}")] = replace(FACTS, key_id=KeyId(f"k{number}"))
    clock.now_s += 60
    for number in range(10):
        await keys.find(f"sk-{number}")
    assert len(keys._known) == 2
    assert len(keys._digests) <= 4


async def test_when_limits_changed_a_key_serves_on_while_it_is_asked_for_anew(directory: FakeDirectory, clock: Clock) -> None:
    keys = Keys(directory, clock)
    await keys.find("sk-1")
    limited = replace(FACTS, limits=(Limit("l", requests_per_s=1.0),))
    directory.keys[digest("sk-1")], directory.gate = limited, asyncio.Event()
    keys.refresh_all()
    assert (await keys.find("sk-1")).facts is FACTS
    directory.gate.set()
    await settle()
    assert (await keys.find("sk-1")).facts is limited


async def test_an_answer_that_limits_passed_on_the_way_is_asked_for_again(directory: FakeDirectory, clock: Clock) -> None:
    keys = Keys(directory, clock)
    directory.gate = asyncio.Event()
    asking = asyncio.create_task(keys.find("sk-1"))
    await settle()
    keys.refresh_all()
    directory.gate.set()
    await asking
    await keys.find("sk-1")
    await settle()
    assert directory.asked == 2


async def test_closing_ends_what_is_under_way(keys: Keys, directory: FakeDirectory) -> None:
    directory.gate = asyncio.Event()
    asking = asyncio.create_task(keys.find("sk-1"))
    await settle()
    await keys.close()
    assert isinstance((await asyncio.gather(asking, return_exceptions=True))[0], asyncio.CancelledError)
