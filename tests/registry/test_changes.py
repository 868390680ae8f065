"""The fan-out of key changes: nothing lost, nothing unbounded, nobody waited for."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.changes import KeyChanges, WatchClosed, WatchesFull, WatchLagged
from runtime.ids import KeyId


def key(number: int) -> KeyId:
    return KeyId(f"key{number}")


async def test_changes_while_nobody_reads_are_told_together_and_once() -> None:
    changes = KeyChanges()
    with changes.watch() as watch:
        for number in (1, 2, 1):
            changes.publish(key(number))
        assert await watch.changed() == (key(1), key(2))
        waiting = asyncio.ensure_future(watch.changed())
        await asyncio.sleep(0)
        assert not waiting.done()
        changes.publish(key(1))
        assert await waiting == (key(1),)


async def test_a_watcher_that_lags_is_ended_and_the_others_go_on() -> None:
    changes = KeyChanges(backlog=2)
    with changes.watch() as slow, changes.watch() as quick:
        for number in range(5):
            changes.publish(key(number))
            assert await quick.changed() == (key(number),)
        with pytest.raises(WatchLagged):
            await slow.changed()
        changes.publish(key(9))
        with pytest.raises(WatchLagged):
            await slow.changed()
        assert await quick.changed() == (key(9),)
    with changes.watch() as anew:
        changes.publish(key(1))
        assert await anew.changed() == (key(1),)


async def test_closing_ends_every_watch_and_lets_none_begin() -> None:
    changes = KeyChanges()
    with changes.watch() as watch:
        waiting = asyncio.ensure_future(watch.changed())
        await asyncio.sleep(0)
        changes.close()
        with pytest.raises(WatchClosed):
            await waiting
    with pytest.raises(WatchClosed), changes.watch():
        pass


def test_watches_are_counted() -> None:
    changes = KeyChanges(max_watches=1)
    with changes.watch():
        with pytest.raises(WatchesFull), changes.watch():
            pass
    with changes.watch():
        pass


@given(st.lists(st.integers(0, 8) | st.none(), max_size=60), st.integers(1, 6))
def test_a_watcher_hears_of_every_change_or_is_told_that_it_did_not(steps: list[int | None], backlog: int) -> None:
    async def walk() -> None:
        changes = KeyChanges(backlog=backlog)
        unread: set[KeyId] = set()
        with changes.watch() as watch:
            for step in steps:
                if step is not None:
                    changes.publish(key(step))
                    unread.add(key(step))
                elif len(unread) > backlog:
                    with pytest.raises(WatchLagged):
                        await watch.changed()
                    return
                elif unread:
                    assert set(await watch.changed()) == unread
                    unread.clear()

    asyncio.run(walk())
