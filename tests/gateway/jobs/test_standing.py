"""Whether a key that submitted something earlier is still good, as far as a gateway can tell."""

from __future__ import annotations

import hashlib

import pytest

from gateway.admission import KeyFacts, KeyRefused
from gateway.keys import Keys
from runtime.ids import KeyId, TenantId
from tests.gateway.fakes import FakeDirectory
from tests.support.manual_clock import ManualClock

KEY, SECRET = KeyId("k1"), "sk-1"
DIGEST = hashlib.sha256(SECRET.encode()).digest()


@pytest.fixture
def directory() -> FakeDirectory:
    return FakeDirectory({DIGEST: KeyFacts(KEY, TenantId("t"))})


async def test_a_key_in_use_stands_without_a_question(directory: FakeDirectory) -> None:
    keys = Keys(directory, ManualClock())
    await keys.find(SECRET)
    assert [await keys.stands(KEY) for _ in range(3)] == [True, True, True]
    assert directory.asked == 1


async def test_a_key_that_changed_is_asked_for_and_stands_if_it_is_there(directory: FakeDirectory) -> None:
    keys = Keys(directory, ManualClock())
    await keys.find(SECRET)
    keys.forget([KEY])
    assert [await keys.stands(KEY) for _ in range(3)] == [True, True, True]
    assert directory.asked == 2


async def test_a_key_that_was_revoked_stands_no_more_and_costs_one_question_for_many_jobs(directory: FakeDirectory) -> None:
    keys = Keys(directory, ManualClock())
    await keys.find(SECRET)
    directory.keys.clear()
    keys.forget([KEY])
    assert [await keys.stands(KEY) for _ in range(100)] == [False] * 100
    assert directory.asked == 2
    with pytest.raises(KeyRefused):
        await keys.find(SECRET)


async def test_a_key_that_expired_stands_no_more() -> None:
    clock = ManualClock()
    keys = Keys(FakeDirectory({DIGEST: KeyFacts(KEY, TenantId("t"), expires_at_s=clock.wall_s() + 10)}), clock)
    await keys.find(SECRET)
    assert await keys.stands(KEY) is True
    await clock.advance(11)
    assert await keys.stands(KEY) is False


async def test_of_a_key_that_was_not_used_here_nobody_can_tell(directory: FakeDirectory) -> None:
    keys = Keys(directory, ManualClock())
    keys.forget([KEY])
    assert await keys.stands(KEY) is None


async def test_nobody_can_tell_while_the_registry_is_away(directory: FakeDirectory) -> None:
    keys = Keys(directory, ManualClock())
    await keys.find(SECRET)
    directory.away = True
    keys.forget([KEY])
    assert await keys.stands(KEY) is None
