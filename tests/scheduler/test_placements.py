"""Wishes: checked, numbered, fenced."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from runtime.errors import Aborted, InvalidArgument, VersionWithdrawn
from runtime.ids import DEFAULT_TENANT, placement_key
from runtime.keyvalue import KeyValueStore, TxnResult
from runtime.memory_store import MemoryStore
from runtime.notices import ModelNotice, NoticeBoard
from scheduler.codec import placement_from
from scheduler.control import Control
from scheduler.placements import Placements
from tests.scheduler.mesh import DIGEST, HERE, wish

KEY = placement_key(HERE, wish(1).model, wish(1).version)


async def test_generations_grow_and_the_region_is_ours() -> None:
    async with MemoryStore() as store:
        placements = Placements(store, Control(), HERE)
        first = await placements.place(wish(2, region=""))
        second = await placements.place(wish(0, region="", digest=""))
        stored = await store.get(KEY)
        assert stored is not None
        assert placement_from(stored.value) == second
        assert (first.region, first.generation, second.generation) == (HERE, 1, 2)


async def test_wishes_at_once_get_a_generation_each() -> None:
    async with MemoryStore() as store:
        placements = Placements(store, Control(), HERE)
        made = await asyncio.gather(*(placements.place(wish(copies)) for copies in range(4)))
        assert sorted(each.generation for each in made) == [1, 2, 3, 4]


async def test_a_wish_that_etcd_forgot_still_counts() -> None:
    async with MemoryStore() as store:
        control = Control()
        placements = Placements(store, control, HERE)
        for _ in range(3):
            await placements.place(wish(1))
        control.replace((await store.range("/penstock/control/")).items)
        await store.delete_prefix("/penstock/")
        assert (await placements.place(wish(1))).generation == 4


class _Contended(MemoryStore):
    """A store in which somebody else is always faster."""

    async def txn(self, compares, success, failure=()):  # type: ignore[no-untyped-def]
        result: TxnResult = await super().txn((), ()) if compares else await super().txn(compares, success, failure)
        return TxnResult(False, result.revision) if compares else result


async def test_who_never_wins_is_told_to_try_again() -> None:
    async with _Contended() as store:
        contended: KeyValueStore = store
        with pytest.raises(Aborted, match="try again"):
            await Placements(contended, Control(), HERE).place(wish(1))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (wish(1, "a/b"), "'a/b' is no model name"),
        (wish(1, ""), "'' is no model name"),
        (wish(1, version="latest"), "'latest' is no version"),
        (wish(1, version=""), "'' is no version"),
        (wish(1, digest="abc"), "'abc' is no digest"),
        (wish(1, digest=""), "'' is no digest"),
        (wish(1, digest=DIGEST.upper()), "is no digest"),
        (wish(1, region="../x"), "'../x' is no region"),
        (wish(10_001), "10001 copies are too many"),
        (replace(wish(0), max_copies=10_001), "10001 copies are too many"),
        (replace(wish(3), max_copies=2), "max_copies is 2, and copies 3"),
        (replace(wish(0, digest=""), max_copies=2), "'' is no digest"),
        (replace(wish(1), idle_s=604_801), "idle_s is 604801"),
        (replace(wish(1), memory_bytes=(1 << 50) + 1), "a pebibyte"),
        (replace(wish(1), tier="a tier"), "'a tier' is no tier"),
        (replace(wish(1), tier="t" * 64), "is no tier"),
        (replace(wish(1), labels=frozenset({"rack=7", "rack="})), "'rack=' is no label"),
        (replace(wish(1), labels=frozenset({"l" * 64})), "is no label"),
        (replace(wish(1), labels=frozenset({"l\n"})), "is no label"),
        (replace(wish(1), labels=frozenset(f"l{number}" for number in range(33))), "33 labels are too many"),
    ],
)
async def test_what_cannot_be_wished_for_is_said(wrong: object, said: str) -> None:
    async with MemoryStore() as store:
        with pytest.raises(InvalidArgument, match=said):
            await Placements(store, Control(), HERE).place(wrong)  # type: ignore[arg-type]
        assert not (await store.range("/")).items


async def test_all_of_a_wish_is_written_down() -> None:
    async with MemoryStore() as store:
        full = replace(
            wish(0), max_copies=4, tier="A", labels=frozenset({"spot", "rack=7", "zone/a"}), memory_bytes=7, idle_s=60
        )
        made = await Placements(store, Control(), HERE).place(full)
        assert made == replace(full, generation=1)
        stored = await store.get(KEY)
        assert stored is not None
        assert placement_from(stored.value) == made


async def test_a_withdrawn_version_is_not_placed_on_demand_either() -> None:
    board = NoticeBoard()
    board.hear_model(ModelNotice(wish(1).model, DEFAULT_TENANT, frozenset(), withdrawn=frozenset({DIGEST}), generation=1))
    async with MemoryStore() as store:
        placements = Placements(store, Control(), HERE, board)
        with pytest.raises(VersionWithdrawn):
            await placements.place(replace(wish(0), max_copies=1))
        await placements.place(wish(0))
