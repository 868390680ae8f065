"""The snapshot in force, in this process, and who wakes when it changes.

Owns that an unfit snapshot never gets out. Never knows who reads it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from gateway.xds.snapshot import Snapshot
from runtime.errors import Code, PenstockError


class SnapshotUnfit(PenstockError, code=Code.INTERNAL, reason="EDGE_SNAPSHOT_UNFIT"):
    """The parts of a snapshot do not fit together; Envoy keeps the one before."""


class SnapshotHolder:
    """One current snapshot, none at first. Belongs to one event loop."""

    def __init__(self) -> None:
        self._current: Snapshot | None = None
        self._watchers: set[asyncio.Event] = set()

    @property
    def current(self) -> Snapshot | None:
        return self._current

    def publish(self, snapshot: Snapshot) -> bool:
        """Put a snapshot in force; False where nothing changed. Raises SnapshotUnfit and keeps the one before."""
        faults = snapshot.faults()
        if faults:
            raise SnapshotUnfit(f"the edge snapshot does not fit together, the one before stays: {'; '.join(sorted(faults))}")
        if self._current is not None and snapshot.versions == self._current.versions:
            return False
        self._current = snapshot
        for watcher in self._watchers:
            watcher.set()
        return True

    @contextmanager
    def watching(self, wake: asyncio.Event) -> Iterator[None]:
        """Have this event set at every change until left. Changes run together: the reader takes what is current then."""
        self._watchers.add(wake)
        try:
            yield
        finally:
            self._watchers.discard(wake)
