"""What has to be looked at again, as the watch of etcd tells it: what is gone, is not to be believed, or is older than it was.

Owns those names, in bounded number, and the key notices that are to be swept away. Never looks itself. What another replica has
just written is believed: its contents are not compared, so two releases do not correct each other for ever.
"""

from __future__ import annotations

from registry.notices.outbox import NoticeKind
from registry.notices.reader import ToldReader, subject_at
from registry.notices.types import Subject
from runtime.ids import NodeId
from runtime.keyvalue import Changes, Event, KeyValue, Put, Snapshot

_AT_MOST = 10_000
"""Names; beyond that everything is looked at."""


class Marks:
    """Belongs to one event loop."""

    def __init__(self, reader: ToldReader, at_most: int = _AT_MOST) -> None:
        self._reader, self._at_most = reader, at_most
        self.subjects: set[Subject] = set()
        self.everything = True
        self.fleeting: dict[str, KeyValue] = {}
        """Key notices by their keys."""
        self._generations: dict[str, int] = {}
        """By key: the newest that is known to have been told."""

    def hear(self, update: Snapshot | Changes) -> None:
        if isinstance(update, Snapshot):
            self.everything = True
            self.fleeting = {item.key: item for item in update.items if _is_fleeting(subject_at(item.key))}
            return
        for event in update.events:
            self._hear_one(event)
        if len(self.subjects) > self._at_most:
            self.subjects.clear()
            self.everything = True

    def take(self) -> set[Subject]:
        """The names, which are not marked any more: what happens to one from now on marks it again."""
        taken, self.subjects = self.subjects, set()
        return taken

    def told(self, subject: Subject, generation: int) -> None:
        """This process wrote it."""
        self._generations[subject.key] = max(generation, self._generations.get(subject.key, 0))
        if subject.kind is NoticeKind.NODE:
            self._revoked(NodeId(subject.name))

    def _hear_one(self, event: Event) -> None:
        subject = subject_at(event.key)
        if subject is None:
            return
        if _is_fleeting(subject):
            if isinstance(event, Put):
                self.fleeting[event.key] = event.item
            else:
                self.fleeting.pop(event.key, None)
        elif not isinstance(event, Put) or not self._is_good(subject, event.item):
            self.subjects.add(subject)

    def _is_good(self, subject: Subject, item: KeyValue) -> bool:
        told = self._reader.read(subject, item)
        if told.payload is None or told.generation < self._generations.get(item.key, 0):
            return False
        self.told(subject, told.generation)
        return True

    def _revoked(self, node_id: NodeId) -> None:
        if node_id not in self._reader.revoked:
            self._reader.revoked.add(node_id)
            self.everything = True  # if it is a registry, what it signed has to be said by somebody else


def _is_fleeting(subject: Subject | None) -> bool:
    return subject is not None and subject.kind is NoticeKind.KEY
