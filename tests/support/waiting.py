"""Waiting in tests: for a condition, up to a time at which the test has failed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from runtime.keyvalue import Changes, Delete, Put, Snapshot, Watch

PATIENCE_S = 15.0


async def eventually(condition: Callable[[], bool], *, patience_s: float = PATIENCE_S) -> None:
    """Return once the condition holds."""
    async with asyncio.timeout(patience_s):
        while not condition():
            await asyncio.sleep(0.01)


async def update_of(watch: Watch, *, patience_s: float = PATIENCE_S) -> Snapshot | Changes:
    """The next update, of whichever kind."""
    async with asyncio.timeout(patience_s):
        return await watch.__anext__()


async def snapshot_of(watch: Watch) -> dict[str, bytes]:
    """The next update, which is to be a snapshot, as keys and values."""
    update = await update_of(watch)
    assert isinstance(update, Snapshot), f"a snapshot was due; this came: {update}"
    return {item.key: item.value for item in update.items}


async def events_of(watch: Watch, number: int) -> list[tuple[str, bytes | None]]:
    """The next events, which are to be that many, as keys and values; None: deleted."""
    found: list[tuple[str, bytes | None]] = []
    while len(found) < number:
        update = await update_of(watch)
        assert isinstance(update, Changes), f"changes were due; this came: {update}"
        found.extend(_pair(event) for event in update.events)
    return found


def _pair(event: Put | Delete) -> tuple[str, bytes | None]:
    return (event.key, event.item.value) if isinstance(event, Put) else (event.key, None)
