"""The fleet as the scheduler believes it to be: members in, members out, and what that changed.

A snapshot replaces what was known, but not at once: when etcd came back without a worker (wiped, or restored from an older
backup), the worker may be well and about to register again, so it stays for one more lease. So does one whose newest record is
doubtful: what it said before holds until the lease that it had then would have ended. Only an ended lease that was seen to end
removes it immediately. What is refused is counted, and told once for each worker's key and kind of doubt.

Owns the members. Never does I/O: `scheduler.loop` feeds it, `scheduler.audience` tells of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import structlog

from placement.types import Worker
from runtime.ids import WorkerId
from runtime.keyvalue import Delete, Event, KeyValue, Put
from scheduler.presence import Doubt, PresenceReader, PresenceRefused
from scheduler.types import FleetDelta, Member

GRACE_S = 15.0
"""How long a member stays that a new snapshot lacks, or that is not believed any more: one presence lease, within which a
living worker is back."""

_TOLD_AT_MOST = 1_000
_log = structlog.get_logger("penstock.fleet")


class Fleet:
    """Members by worker id."""

    def __init__(self, reader: PresenceReader) -> None:
        self._reader = reader
        self._members: dict[WorkerId, Member] = {}
        self._missed_until_s: dict[WorkerId, float] = {}
        self._told: set[tuple[str, Doubt]] = set()
        self.refused: Counter[Doubt] = Counter()
        self.synced = False
        """Whether etcd was seen at all; before that an empty fleet means nothing."""

    @property
    def members(self) -> Mapping[WorkerId, Member]:
        return self._members

    @property
    def is_divided(self) -> bool:
        """Whether some worker is for some tenants alone."""
        return any(member.worker.tenants for member in self._members.values())

    def workers(self) -> list[Worker]:
        return [member.worker for member in self._members.values()]

    def replace(self, items: Iterable[KeyValue], *, now_s: float, now_wall_s: float) -> FleetDelta:
        """Everything that etcd holds now."""
        seen: dict[WorkerId, Member] = {}
        for item in items:
            if (member := self._believed(item, now_wall_s, live=False)) is not None:
                seen[member.worker_id] = member
        changed = [who for who, member in seen.items() if self._shows_news(member)]
        self._members.update(seen)
        for who in seen:
            self._missed_until_s.pop(who, None)
        for who in self._members.keys() - seen.keys():
            self._missed_until_s.setdefault(who, now_s + GRACE_S)
        self.synced = True
        return FleetDelta(changed=tuple(changed))

    def apply(self, events: Iterable[Event], *, now_s: float, now_wall_s: float) -> FleetDelta:
        """What happened, in order."""
        changed: dict[WorkerId, bool] = {}
        for event in events:
            if isinstance(event, Put):
                member = self._believed(event.item, now_wall_s, live=True)
                if member is None:
                    self._doubt(event.key, now_s)
                else:
                    news = self._shows_news(member)
                    self._members[member.worker_id] = member
                    self._missed_until_s.pop(member.worker_id, None)
                    if news:
                        changed[member.worker_id] = True
            elif (gone := self._leave(event)) is not None:
                changed[gone] = False
        return FleetDelta(
            tuple(who for who, there in changed.items() if there), tuple(who for who, there in changed.items() if not there)
        )

    def expire(self, now_s: float) -> FleetDelta:
        """Let those go who were missed, or doubted, and were not believed again."""
        gone = [who for who, until_s in self._missed_until_s.items() if now_s >= until_s]
        for who in gone:
            del self._missed_until_s[who], self._members[who]
        return FleetDelta(removed=tuple(gone))

    def drop(self, who: WorkerId) -> FleetDelta:
        """This worker was put out of the mesh: nobody is sent there from now on."""
        self._missed_until_s.pop(who, None)
        return FleetDelta(removed=(who,) if self._members.pop(who, None) is not None else ())

    def hold(self, now_s: float) -> None:
        """etcd is away: whoever is missed gets the whole grace again when it is back."""
        self._missed_until_s = dict.fromkeys(self._missed_until_s, now_s + GRACE_S)

    def _believed(self, item: KeyValue, now_wall_s: float, *, live: bool) -> Member | None:
        try:
            return self._reader.read(item, now_wall_s=now_wall_s, live=live)
        except PresenceRefused as refusal:
            self.refused[refusal.doubt] += 1
            if (item.key, refusal.doubt) not in self._told and len(self._told) < _TOLD_AT_MOST:
                self._told.add((item.key, refusal.doubt))
                _log.warning("presence_refused", key=item.key, doubt=refusal.doubt.value, why=refusal.message)
            return None

    def _doubt(self, key: str, now_s: float) -> None:
        """Another process under the same identity takes nothing from the one that is believed: that one is heard again."""
        who = WorkerId(key.rpartition("/")[2])
        if (member := self._members.get(who)) is not None and member.key == key:
            self._missed_until_s.setdefault(who, now_s + GRACE_S)

    def _shows_news(self, member: Member) -> bool:
        known = self._members.get(member.worker_id)
        return known is None or known.shown != member.shown

    def _leave(self, event: Delete) -> WorkerId | None:
        who = WorkerId(event.key.rpartition("/")[2])
        member = self._members.get(who)
        if member is None or member.key != event.key:
            return None
        del self._members[who]
        self._missed_until_s.pop(who, None)
        return who
