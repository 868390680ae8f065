"""The keys of the in-memory store and what became of them: one revision after another, as far back as it is kept.

Decides what a write does to revisions and versions, as etcd does. Never knows of leases' time, watches or waiting.
Source for the rules: etcd's mvcc (revision 1 is the empty store; one revision for all steps of a transaction).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import takewhile

from runtime.keyvalue import (
    Changes,
    Compare,
    Delete,
    EtcdRequestRefused,
    Event,
    KeyValue,
    Put,
    Read,
    Remove,
    RevisionGone,
    Step,
    Write,
)


class History:
    """A value per key, and the changes that led there."""

    def __init__(self, kept_revisions: int) -> None:
        self._kept_revisions = kept_revisions
        self._items: dict[str, KeyValue] = {}
        self._base: dict[str, KeyValue] = {}
        self._changes: deque[Changes] = deque()
        self.revision = 1
        self.compacted = 0

    def get(self, key: str) -> KeyValue | None:
        return self._items.get(key)

    def under(self, prefix: str) -> tuple[KeyValue, ...]:
        return _under(self._items, prefix)

    def carrying(self, lease_id: int) -> frozenset[str]:
        return frozenset(item.key for item in self._items.values() if item.lease_id == lease_id)

    def under_at(self, prefix: str, revision: int) -> tuple[KeyValue, ...]:
        """As it was. Raises RevisionGone."""
        if not self.compacted <= revision <= self.revision:
            raise RevisionGone(
                f"revision {revision} is not in this history, which goes from {self.compacted} to {self.revision}; "
                "read everything again"
            )
        items = dict(self._base)
        for changes in self._changes:
            if changes.revision > revision:
                break
            _apply(items, changes.events)
        return _under(items, prefix)

    def since(self, revision: int, prefix: str) -> Changes:
        """What happened under a prefix after that revision. Raises RevisionGone."""
        if revision < self.compacted:
            raise RevisionGone(f"what happened before revision {self.compacted} is forgotten; read everything again")
        recent = tuple(takewhile(lambda changes: changes.revision > revision, reversed(self._changes)))
        events = tuple(event for changes in reversed(recent) for event in changes.events if event.key.startswith(prefix))
        return Changes(events, self.revision)

    def hold(self, compares: Iterable[Compare]) -> bool:
        """Whether every condition holds."""
        return all(self._holds(compare) for compare in compares)

    def take(self, steps: tuple[Step, ...]) -> tuple[KeyValue | None, ...]:
        """Take the steps as one revision, and return what its Read steps found."""
        reads, events = self._play(steps)
        self._record(events)
        return tuple(reads)

    def delete(self, keys: Iterable[str]) -> int:
        """Delete as one revision, and say how many keys were there."""
        _, events = self._play(tuple(Remove(key) for key in sorted(keys)))
        self._record(events)
        return len(events)

    def compact(self, revision: int) -> None:
        """Forget the changes up to the revision. Raises RevisionGone for one that is past or to come."""
        if not self.compacted < revision <= self.revision:
            raise RevisionGone(f"cannot compact at {revision}; the history goes from {self.compacted} to {self.revision}")
        while self._changes and self._changes[0].revision <= revision:
            _apply(self._base, self._changes.popleft().events)
        self.compacted = revision

    def _holds(self, compare: Compare) -> bool:
        item = self._items.get(_named(compare.key))
        found: int = getattr(item, compare.aspect.value) if item is not None else 0
        return found == compare.equals

    def _play(self, steps: tuple[Step, ...]) -> tuple[list[KeyValue | None], list[Event]]:
        """What the steps read and do, in order; nothing is changed yet but the view they read from."""
        writes = [_named(step.key) for step in steps if not isinstance(step, Read)]
        if len(writes) != len(set(writes)):
            raise EtcdRequestRefused("a transaction may change each key only once")
        view, revision = dict(self._items), self.revision + 1
        reads: list[KeyValue | None] = []
        events: list[Event] = []
        for step in steps:
            before = view.get(_named(step.key))
            match step:
                case Read():
                    reads.append(before)
                case Remove() if before is not None:
                    events.append(Delete(step.key, revision))
                case Write():
                    created, version = (before.create_revision, before.version) if before is not None else (revision, 0)
                    events.append(Put(KeyValue(step.key, step.value, created, revision, version + 1, step.lease_id)))
            _apply(view, events[-1:])
        return reads, events

    def _record(self, events: list[Event]) -> None:
        if not events:
            return
        self.revision += 1
        _apply(self._items, events)
        self._changes.append(Changes(tuple(events), self.revision))
        if len(self._changes) > self._kept_revisions:
            self.compact(self._changes[0].revision)


def _named(key: str) -> str:
    if not key:
        raise EtcdRequestRefused("a key needs a name; an empty one was given")
    return key


def _apply(items: dict[str, KeyValue], events: Iterable[Event]) -> None:
    for event in events:
        if isinstance(event, Put):
            items[event.key] = event.item
        else:
            items.pop(event.key, None)


def _under(items: dict[str, KeyValue], prefix: str) -> tuple[KeyValue, ...]:
    return tuple(items[key] for key in sorted(items) if key.startswith(prefix))
