"""The snapshot in force: only fit ones get out, and every watcher wakes."""

from __future__ import annotations

import asyncio

import pytest

from gateway.xds.holder import SnapshotHolder, SnapshotUnfit
from gateway.xds.snapshot import Resource, ResourceType, Snapshot
from tests.gateway.xds.test_snapshot import CLUSTER, WHOLE


async def test_watchers_wake_at_a_change_and_only_then() -> None:
    holder, wake, gone = SnapshotHolder(), asyncio.Event(), asyncio.Event()
    assert holder.current is None
    with holder.watching(gone):
        pass
    with holder.watching(wake):
        assert holder.publish(Snapshot.of(WHOLE))
        assert wake.is_set()
        wake.clear()
        assert not holder.publish(Snapshot.of(WHOLE))
        assert not wake.is_set()
    assert not gone.is_set()


async def test_an_unfit_snapshot_never_gets_out() -> None:
    holder = SnapshotHolder()
    holder.publish(Snapshot.of(WHOLE))
    with pytest.raises(SnapshotUnfit, match="ENDPOINTS c is referred to and absent"):
        holder.publish(Snapshot.of({ResourceType.CLUSTERS: [CLUSTER, Resource("d", b"")]}))
    assert holder.current == Snapshot.of(WHOLE)
