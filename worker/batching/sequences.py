"""Sequences: which one holds which row, and whose turn it is. Pure: time is an argument, nothing runs or waits here.

Theory of operation. A sequence begins with a request that has the START flag and ends with one that has the END flag. While
it is open it holds a place, which is a row of one of the engine's slots, and its requests run one after the other in the order
in which they came. A sequence that finds no place free waits for one in the backlog, with all its requests.

    none --START--> waiting --a place is free--> placed --END has run, or idle too long--> none

DIRECT: the place is the row of the batch, and every execution of the slot has all rows up to the highest that is held.
OLDEST: a place is the right to run on that slot; a batch is made of the sequences whose request has waited longest.

Five decisions beyond Triton's documents:
- Sequences belong to who sent them: no tenant can go on with another's.
- START on a sequence that is open begins it anew where it is, after the requests that came before.
- A request that leaves without having run (cancelled, expired) takes with it those that came after it, up to the next START:
  a sequence never runs with a hole. Where nothing is left the sequence is over.
- A request whose execution failed has run: the sequence goes on with the state before it.
- END followed by START with the same id is a new sequence, which waits for a place behind those that wait already.

Source: Triton's ModelSequenceBatching and sequence_batch_scheduler.cc for the rules.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Generic, TypeVar

import numpy as np

from runtime.errors import Code, InvalidArgument, PenstockError
from worker.batching.places import Place, Places, SequencePolicy
from worker.batching.queue import QueueFull, Waiting, allowed_wait_s, earlier
from worker.datatypes import DATATYPES
from worker.kserve.parameters import SequenceMark
from worker.types import SequenceStrategy, TimeoutAction

T = TypeVar("T")
Key = tuple[str, int | str]
"""Owner and id."""


class SequenceNotStarted(PenstockError, code=Code.INVALID_ARGUMENT, reason="SEQUENCE_NOT_STARTED"):
    """A request continues a sequence that is not open here."""


class SequenceBroken(PenstockError, code=Code.ABORTED, reason="SEQUENCE_BROKEN"):
    """An earlier request of the sequence left without having run."""


class SequencesFull(QueueFull, code=Code.RESOURCE_EXHAUSTED, reason="SEQUENCES_FULL"):
    """As many sequences wait for a place as may."""


@dataclass(slots=True, eq=False)
class Member(Waiting[T]):
    """A request that may belong to a sequence. What has no default is set by the sequences' queue, and there only."""

    mark: SequenceMark | None = None
    owner: str = ""
    """Whose sequence it is: the same id of another owner is another sequence."""
    sequence: OpenSequence = field(init=False)
    renews: bool = field(init=False)
    """Its sequence begins after another one with the same id has ended."""
    row: int = field(init=False)
    height: int = field(init=False)
    """Its row of the execution that it is in, and the rows of that."""


@dataclass(slots=True, eq=False)
class OpenSequence:
    key: Key
    waiting: deque[Any] = field(default_factory=deque)  # bounded by the queue's max_requests
    running: bool = False
    place: Place | None = None
    closed: bool = False
    """Only a START may come next."""
    touched_s: float = 0.0
    states: tuple[Any, ...] | None = None
    """What the engine's thread keeps for it; None = it has none yet. Only the thread that runs it looks at it."""


M = TypeVar("M", bound=Member[Any])


class SequenceQueue(Generic[M]):
    """The requests of one model's sequences that wait for the engine, and the places that sequences hold."""

    def __init__(self, policy: SequencePolicy) -> None:
        self.requests = 0
        self.earliest_s = math.inf
        """No request has its time up, and no sequence was idle for too long, before this."""
        self._policy = policy
        self._sequences: dict[Key, OpenSequence] = {}
        self._backlog: OrderedDict[int, OpenSequence] = OrderedDict()
        self._renewals = 0
        self._places = Places(policy)
        self._ready: list[OrderedDict[int, OpenSequence]] = [OrderedDict() for _ in range(policy.slots)]
        """By slot: placed sequences whose next request can run, those longest ready first."""
        self._leaving = False

    @property
    def rows(self) -> int:
        return self.requests

    @property
    def sequences(self) -> int:
        """Open ones, with or without a place."""
        return len(self._sequences)

    @property
    def waiting_sequences(self) -> int:
        return len(self._backlog) + self._renewals

    def offer(self, member: M, timeout_s: float | None = None) -> None:
        """Take a place at the end of its sequence. Raises InvalidArgument, SequenceNotStarted, QueueFull, SequencesFull."""
        mark = self._checked(member)
        key = (member.owner, mark.sequence_id)
        sequence = self._sequences.get(key)
        renews = sequence is not None and sequence.closed
        self._admit(mark, begins=sequence is None or renews, renews=renews)
        policy = self._policy.queue
        member.priority = 0
        timeout_s = allowed_wait_s(policy, timeout_s)
        if timeout_s is not None and policy.timeout_action is TimeoutAction.REJECT:
            member.expires_s = earlier(member.expires_s, member.arrived_s + timeout_s)
        self._watch(member)
        if sequence is None:
            sequence = self._sequences[key] = OpenSequence(key, place=self._places.take())
            if sequence.place is None:
                self._backlog[id(sequence)] = sequence
        self._renewals += renews
        member.renews = renews
        member.sequence = sequence
        member.queued = True
        sequence.closed = mark.end
        sequence.waiting.append(member)
        self.requests += 1
        if len(sequence.waiting) == 1:
            self._make_ready(sequence)

    def abandon(self, member: M) -> Sequence[M]:
        """Withdraw it and what cannot run without it, which is returned."""
        if not member.queued:
            return ()
        sequence = member.sequence
        waiting = sequence.waiting
        first = waiting.index(member)
        end = first + 1
        while end < len(waiting) and not waiting[end].mark.start:
            end += 1
        gone: list[M] = list(islice(waiting, first, end))
        kept = [*islice(waiting, first), *islice(waiting, end, None)]
        if end == len(waiting):
            sequence.closed = True
            self._renewals -= member.renews
        elif member.renews:
            if waiting[end].renews:
                self._renewals -= 1
            waiting[end].renews = True
        waiting.clear()
        waiting.extend(kept)
        for each in gone:
            each.queued = False
        self.requests -= len(gone)
        if first == 0 and not sequence.running:
            self._settle(sequence)
        return gone[1:]

    def overdue(self, now_s: float) -> Sequence[M]:
        """The requests whose time is up; the caller abandons them. Sequences that were idle for too long are over."""
        self.earliest_s = math.inf
        for sequence in list(self._sequences.values()):
            if not sequence.waiting and not sequence.running:
                if sequence.touched_s + self._policy.max_idle_s <= now_s:
                    self._end(sequence)
                else:
                    self._watch_idle(sequence)
        self._promote()
        overdue: list[M] = []
        for member in self:
            if any(limit_s is not None and limit_s <= now_s for limit_s in (member.deadline_s, member.expires_s)):
                overdue.append(member)
            else:
                self._watch(member)
        return overdue

    def take(self, now_s: float, slot: int = 0) -> Sequence[M]:
        """Withdraw and return the slot's next execution; empty while it is better to wait, or nothing can run.

        What is overdue has to be abandoned before.
        """
        chosen: list[M] = []
        front = self._choose(now_s, slot)
        direct = self._policy.strategy is SequenceStrategy.DIRECT
        height = self._places.height(slot) if direct else len(front)
        for row, sequence in _rows(front) if direct else enumerate(front):
            del self._ready[slot][id(sequence)]
            member: M = sequence.waiting.popleft()
            sequence.running = True
            member.queued = False
            member.row, member.height = row, height
            chosen.append(member)
        self.requests -= len(chosen)
        return chosen

    def finished(self, batch: Sequence[M], now_s: float) -> None:
        """An execution has ended, well or not: its sequences go on, or end and make room."""
        for member in batch:
            sequence = member.sequence
            sequence.running = False
            sequence.touched_s = now_s
            self._settle(sequence)

    def leave(self) -> None:
        """Nothing more will be offered: sequences that have nothing waiting make room for those that wait."""
        self._leaving = True
        for sequence in list(self._sequences.values()):
            if not sequence.waiting and not sequence.running:
                self._end(sequence)
        self._promote()

    def due_s(self, slots: Sequence[int] = (0,)) -> float | None:
        """When `take` will give something for one of these slots; None where nothing can run on them."""
        oldest_s = [min(each.waiting[0].arrived_s for each in front) for slot in slots if (front := self._front(slot))]
        return min(oldest_s) + self._policy.delay_s if oldest_s else None

    def __iter__(self) -> Iterator[M]:
        return (member for sequence in self._sequences.values() for member in sequence.waiting)

    def _checked(self, member: M) -> SequenceMark:
        model = self._policy.model
        if member.mark is None:
            raise InvalidArgument(
                f"model {model!r} works on sequences: set sequence_id to a number above 0 or a text, and sequence_start with"
                " the first request of each"
            )
        if member.rows != 1:
            raise InvalidArgument(
                f"the request has {member.rows} rows; model {model!r} works on sequences and takes 1 in a request"
            )
        if not _fits(member.mark.sequence_id, self._policy.id_datatype):
            datatype = self._policy.id_datatype
            raise InvalidArgument(
                f"sequence_id {member.mark.sequence_id!r} cannot be given to model {model!r}, which takes it as {datatype};"
                f" send {'a text' if datatype == 'BYTES' else 'a number in its range'}"
            )
        return member.mark

    def _admit(self, mark: SequenceMark, *, begins: bool, renews: bool) -> None:
        policy = self._policy
        if begins and not mark.start:
            raise SequenceNotStarted(
                f"sequence {mark.sequence_id!r} is not open on model {policy.model!r}: it was not begun here, has ended, or had"
                f" no request for {policy.max_idle_s:g} s; set the START flag on the first request of the sequence"
            )
        limit = min(policy.max_requests, policy.queue.max_queue_size or policy.max_requests)
        if self.requests >= limit:
            raise QueueFull(
                f"Exceeds maximum queue size: {self.requests} of {limit} requests wait; back off", retry_after_s=0.1
            )
        if begins and (renews or not self._places.free) and self.waiting_sequences >= policy.max_waiting:
            raise SequencesFull(
                f"{policy.places} sequences are open on model {policy.model!r} and {self.waiting_sequences} of"
                f" {policy.max_waiting} wait for one of them to end; back off",
                retry_after_s=0.1,
            )

    def _settle(self, sequence: OpenSequence) -> None:
        """Its head has changed and it does not run: what it is now."""
        head = sequence.waiting[0] if sequence.waiting else None
        if head is None and (sequence.closed or self._leaving):
            self._end(sequence)
        elif head is None:
            self._watch_idle(sequence)
        elif head.renews:
            head.renews = False
            self._renewals -= 1
            self._give_up_place(sequence)
            self._backlog[id(sequence)] = sequence
        else:
            self._make_ready(sequence)
        self._promote()

    def _make_ready(self, sequence: OpenSequence) -> None:
        if sequence.place is not None and not sequence.running:
            self._ready[sequence.place.slot].setdefault(id(sequence), sequence)

    def _end(self, sequence: OpenSequence) -> None:
        self._give_up_place(sequence)
        self._backlog.pop(id(sequence), None)
        del self._sequences[sequence.key]

    def _give_up_place(self, sequence: OpenSequence) -> None:
        if sequence.place is not None:
            self._ready[sequence.place.slot].pop(id(sequence), None)
            self._places.give_back(sequence.place)
            sequence.place = None

    def _promote(self) -> None:
        while self._backlog and self._places.free:
            _, sequence = self._backlog.popitem(last=False)
            sequence.place = self._places.take()
            self._make_ready(sequence)

    def _choose(self, now_s: float, slot: int) -> Sequence[OpenSequence]:
        policy, front = self._policy, self._front(slot)
        # Nobody who could join is missing: every sequence of the slot is in it, or every row is taken.
        if not front or policy.delay_s <= 0 or len(front) in (policy.rows, self._places.held(slot)):
            return front
        preferred = max((size for size in policy.preferred_rows if size <= len(front)), default=0)
        if preferred and policy.strategy is SequenceStrategy.OLDEST:
            return front[:preferred]
        oldest_s = min(sequence.waiting[0].arrived_s for sequence in front)
        return front if now_s >= oldest_s + policy.delay_s else ()

    def _front(self, slot: int) -> list[OpenSequence]:
        """The sequences that may go together with the one that is ready longest."""
        ready = self._ready[slot]
        if not ready:
            return []
        shape = next(iter(ready.values())).waiting[0].shape
        same = (sequence for sequence in ready.values() if sequence.waiting[0].shape == shape)
        return list(islice(same, self._policy.rows))

    def _watch(self, member: M) -> None:
        for limit_s in (member.deadline_s, member.expires_s):
            if limit_s is not None and limit_s < self.earliest_s:
                self.earliest_s = limit_s

    def _watch_idle(self, sequence: OpenSequence) -> None:
        self.earliest_s = min(self.earliest_s, sequence.touched_s + self._policy.max_idle_s)


def _rows(sequences: Sequence[OpenSequence]) -> list[tuple[int, OpenSequence]]:
    """By the rows that they hold."""
    held = [(sequence.place.row, sequence) for sequence in sequences if sequence.place is not None]
    return sorted(held, key=lambda each: each[0])


def _fits(sequence_id: int | str, datatype: str) -> bool:
    if not datatype:
        return True
    if isinstance(sequence_id, str) or datatype == "BYTES":
        return isinstance(sequence_id, str) and datatype == "BYTES"
    return sequence_id <= np.iinfo(DATATYPES[datatype].dtype).max
