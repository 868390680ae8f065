"""That the limits are others, as a signed notice and as a board hears it: once for each change, and from a registry alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.clock import SystemClock
from runtime.identity import Authority, NodeIdentity, Role
from runtime.ids import LIMITS_NOTICE_KEY, KeyId, key_notice_key
from runtime.memory_store import MemoryStore
from runtime.notice_records import (
    KeyNotice,
    LimitsNotice,
    NoticeRefused,
    key_payload,
    limits_notice_of,
    limits_payload,
)
from runtime.notices import NoticeBoard
from runtime.records import RecordVerifier, VerifiedRecord, sign_record
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> dict[Role, NodeIdentity]:
    folder: Path = tmp_path_factory.mktemp("limits")
    authority = Authority.open(folder / "ca")
    return {role: authority.enrol(folder / role.value, role) for role in (Role.REGISTRY, Role.WORKER)}


def record_of(identity: NodeIdentity, payload: bytes) -> VerifiedRecord:
    return RecordVerifier(identity.authority_pem).open(sign_record(identity, payload), now_wall_s=SystemClock().wall_s())


@given(st.lists(st.integers(1, 5), max_size=12))
def test_a_board_tells_of_each_newer_generation_once(generations: list[int]) -> None:
    board, told = NoticeBoard(), list[int]()
    board.on_limits.append(lambda: told.append(board.limits_generation))
    for generation in generations:
        board.hear_limits(LimitsNotice(generation))
    newest = [each for number, each in enumerate(generations) if each > max(generations[:number], default=0)]
    assert told == newest


def test_a_notice_is_read_as_it_was_written(identities: dict[Role, NodeIdentity]) -> None:
    written = LimitsNotice(1_800_000_000_000)
    assert limits_notice_of(LIMITS_NOTICE_KEY, record_of(identities[Role.REGISTRY], limits_payload(written))) == written


def test_what_is_none_is_refused(identities: dict[Role, NodeIdentity]) -> None:
    registry, payload = identities[Role.REGISTRY], limits_payload(LimitsNotice(1))
    for key, record in (
        (LIMITS_NOTICE_KEY, record_of(identities[Role.WORKER], payload)),
        (LIMITS_NOTICE_KEY, record_of(registry, b"")),
        (LIMITS_NOTICE_KEY, record_of(registry, b"\xff")),
        (LIMITS_NOTICE_KEY, record_of(registry, key_payload(KeyNotice(KeyId("k"), 0)))),
        (key_notice_key(KeyId("k")), record_of(registry, payload)),
    ):
        with pytest.raises(NoticeRefused):
            limits_notice_of(key, record)


async def test_a_board_that_follows_hears_a_registry_and_nobody_else(identities: dict[Role, NodeIdentity]) -> None:
    board, told = NoticeBoard(), list[int]()
    board.on_limits.append(lambda: told.append(board.limits_generation))
    registry, worker = identities[Role.REGISTRY], identities[Role.WORKER]
    async with MemoryStore() as store:
        await store.put(LIMITS_NOTICE_KEY, sign_record(registry, limits_payload(LimitsNotice(3))))
        async with board.following(store, RecordVerifier(registry.authority_pem)):
            await eventually(lambda: told == [3])
            await store.put(LIMITS_NOTICE_KEY, sign_record(worker, limits_payload(LimitsNotice(9))))
            await store.put(LIMITS_NOTICE_KEY, sign_record(registry, limits_payload(LimitsNotice(4))))
            await eventually(lambda: told == [3, 4])
            await store.delete(LIMITS_NOTICE_KEY)
            await store.put(LIMITS_NOTICE_KEY, sign_record(registry, limits_payload(LimitsNotice(5))))
            await eventually(lambda: told == [3, 4, 5])
