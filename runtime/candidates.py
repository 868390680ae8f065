"""Who stands for election in which group, who leads, and who has claimed what: read from the keys that candidates leave.

Pure. Owns the names of claims and what a Term proves. Never writes: `runtime.election` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from runtime.ids import ELECTION_PREFIX
from runtime.keyvalue import Compare, Event, KeyValue, Put, created_at

_CLAIM = f"{ELECTION_PREFIX}claim:"


def claim_key(name: str) -> str:
    """Beside the groups, never among them: theirs have one more part."""
    return f"{_CLAIM}{name}"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One who stands in a group."""

    group: str
    key: str
    create_revision: int
    value: bytes


@dataclass(frozen=True, slots=True)
class Term:
    """One leadership: of this group, by this key, since this revision. True only where its fence holds."""

    group: str
    key: str
    create_revision: int

    def fence(self) -> tuple[Compare, ...]:
        """What every write of this leader is conditional on."""
        return (created_at(self.key, self.create_revision),)


@dataclass(slots=True)
class Candidates:
    """Who stands, and who has which claim, as etcd last showed it."""

    _known: dict[str, KeyValue] = field(default_factory=dict)

    def replace(self, items: Iterable[KeyValue]) -> None:
        self._known = {item.key: item for item in items}

    def apply(self, events: Iterable[Event]) -> None:
        for event in events:
            if isinstance(event, Put):
                self._known[event.key] = event.item
            else:
                self._known.pop(event.key, None)

    def at(self, key: str) -> KeyValue | None:
        return self._known.get(key)

    def standing(self) -> Iterator[Candidate]:
        """All of them, in no order."""
        for item in self._known.values():
            group, divided, _ = item.key.removeprefix(ELECTION_PREFIX).partition("/")
            if divided and item.lease_id:  # a key that no lease ends is nobody's
                yield Candidate(group, item.key, item.create_revision, item.value)

    def leaders(self) -> Mapping[str, Candidate]:
        """By group: the one that stands longest."""
        found: dict[str, Candidate] = {}
        for each in self.standing():
            if each.group not in found or each.create_revision < found[each.group].create_revision:
                found[each.group] = each
        return found

    def claims(self) -> Mapping[str, KeyValue]:
        """By name. A claim's value is the key of the leader that has it."""
        return {key.removeprefix(_CLAIM): item for key, item in self._known.items() if key.startswith(_CLAIM) and item.lease_id}
