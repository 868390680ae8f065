"""Leads the limits of the whole mesh, or stands by: one election of its own among all schedulers, whatever regions they lead.

Owns the book of its leadership: begun anew with each term, from what was written down of days and what gateways say that they
hold. A term is proven where it matters: budgets of a day are given out only after a fenced write. Never decides who gets how
much: `placement.limits` does.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import structlog

from placement.limits.book import Book
from placement.limits.types import Ask, Grant, HolderId, Moment
from runtime.candidates import Term
from runtime.clock import Clock
from runtime.election import Election
from runtime.errors import Aborted, NotLeader, PenstockError, ResourceExhausted
from runtime.ids import NodeId
from runtime.keyvalue import KeyValueStore
from scheduler.leading.codec import leader_bytes, leader_of
from scheduler.leading.types import LIMITS, Leader
from scheduler.limits.spending import Records

MAX_PROCESSES = 2_000
"""Gateway processes that share at once."""

PROCESSES_OF_ONE = 64
"""Of one gateway."""

_TIDY_S = 1.0
_AGAIN_S = 0.5
_log = structlog.get_logger("penstock.limits")


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """One gateway process, in one term."""

    holder: HolderId
    node_id: NodeId
    book: Book


class LimitsRoom:
    """Of one scheduler. Belongs to one event loop."""

    def __init__(self, store: KeyValueStore, clock: Clock, rng: random.Random, scheduler_id: NodeId, *, ttl_s: int = 5) -> None:
        self._clock, self._scheduler_id, self._records = clock, scheduler_id, Records(store)
        self._election = Election(store, clock, rng, LIMITS, ttl_s=ttl_s)
        self._changed, self._writing = asyncio.Event(), asyncio.Lock()
        self._election.on_change.append(self._changed.set)
        self._led: tuple[Term, Book] | None = None
        """The last term, and its book."""
        self._streams: dict[HolderId, Stream] = {}
        self.granted = 0

    @property
    def book(self) -> Book | None:
        """What this scheduler gives out of; None: it does not lead."""
        return self._led[1] if self._led is not None and self._led[0] == self._election.term() else None

    @property
    def leader_address(self) -> str:
        """Where another one leads, as far as is known here; empty: nobody is known to, or this one does."""
        candidate = self._election.candidates.leaders().get(LIMITS)
        leader = None if candidate is None else leader_of(candidate.value, (), 0)
        return "" if leader is None or leader.scheduler_id == self._scheduler_id else leader.address

    def __len__(self) -> int:
        """Gateway processes that share now."""
        return len(self._streams)

    @asynccontextmanager
    async def running(self, address: str) -> AsyncIterator[None]:
        """Stand, reachable at this host:port, while the context lasts; leaving resigns."""
        value = leader_bytes(Leader(self._scheduler_id, address, (), 0))
        async with (
            self._election.watching(),
            self._election.standing(value, is_former=self._is_own),
            asyncio.TaskGroup() as group,
        ):
            tasks = [
                group.create_task(self._lead(), name="limits-leading"),
                group.create_task(self._tidy(), name="limits-tidying"),
            ]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()

    @contextmanager
    def sharing(self, node_id: NodeId, process: str) -> Iterator[Stream]:
        """A gateway process shares for as long as the context lasts. Raises NotLeader, ResourceExhausted.

        An older stream of the same process is over: whoever it was has gone, and nobody noticed yet.
        """
        stream = Stream(HolderId(f"{node_id}/{process}"), node_id, self._required())
        if stream.holder not in self._streams:
            self._check_room(node_id)
        self._streams[stream.holder] = stream
        stream.book.joined(stream.holder, self._clock.monotonic_s())
        try:
            yield stream
        finally:
            if self._streams.get(stream.holder) is stream:
                del self._streams[stream.holder]
                stream.book.left(stream.holder, self._clock.monotonic_s())

    async def answer(self, stream: Stream, asks: Sequence[Ask]) -> list[Grant]:
        """What this one gets; where this term has just begun, once everybody was heard. Raises NotLeader, Aborted."""
        book, holder = stream.book, stream.holder
        self._check(stream)
        book.hear(holder, asks, self._moment())
        if (settling_s := book.settling_s(self._clock.monotonic_s())) > 0:
            await self._clock.sleep(settling_s)
        if book.due(asks):
            await self._write_down(book, asks)
        self._check(stream)
        grants = book.answer(holder, asks, self._moment())
        self.granted += sum(each.granted for each in grants)
        return grants

    def _check(self, stream: Stream) -> None:
        """Raises NotLeader, Aborted."""
        if self._required() is not stream.book:
            raise NotLeader("this scheduler leads the limits anew: what it gave out before is to be told again")
        if self._streams.get(stream.holder) is not stream:
            raise Aborted("this process shares limits on a newer stream")

    def _check_room(self, node_id: NodeId) -> None:
        """Raises ResourceExhausted."""
        of_one = sum(each.node_id == node_id for each in self._streams.values())
        if len(self._streams) >= MAX_PROCESSES or of_one >= PROCESSES_OF_ONE:
            raise ResourceExhausted(
                f"{len(self._streams)} processes of gateways share limits here, {of_one} of them of this gateway; at most"
                f" {MAX_PROCESSES} do, and {PROCESSES_OF_ONE} of one",
                retry_after_s=10.0,
            )

    def _required(self) -> Book:
        """Raises NotLeader."""
        if (book := self.book) is None:
            raise NotLeader(
                "this scheduler does not lead the limits, or has not read what was given out", retry_after_s=_AGAIN_S
            )
        return book

    async def _write_down(self, book: Book, asks: Sequence[Ask]) -> None:
        """One at a time, so that no older number is written over a newer one."""
        async with self._writing:
            due, led = book.due(asks), self._led
            if not due or led is None or led[1] is not book:
                return
            try:
                book.wrote(await self._records.write(led[0], due))
            except NotLeader:
                raise
            except PenstockError as error:  # nothing is given of these until it is written
                _log.warning("limits_not_written", budgets=len(due), why=error.message)

    async def _lead(self) -> None:
        """Begin a book with each term."""
        while True:
            self._changed.clear()
            term = self._election.term()
            if term is not None and (self._led is None or self._led[0] != term):
                try:
                    spent = await self._records.read()
                except PenstockError as error:
                    _log.warning("limits_not_read", why=error.message)
                    await self._clock.sleep(_AGAIN_S)
                    continue
                self._led = term, Book(self._clock.monotonic_s(), spent)
                _log.info("leads_limits", term=term.create_revision, budgets=len(spent))
                continue
            await self._changed.wait()

    async def _tidy(self) -> None:
        day = 0
        while True:
            await self._clock.sleep(_TIDY_S)
            book, led, moment = self.book, self._led, self._moment()
            if book is None or led is None:
                continue
            book.tidy(moment)
            if moment.day != day:
                try:
                    await self._records.prune(led[0], moment.day)
                    day = moment.day
                except PenstockError as error:
                    _log.warning("limits_not_pruned", why=error.message)

    def _moment(self) -> Moment:
        return Moment(self._clock.monotonic_s(), self._clock.wall_s())

    def _is_own(self, value: bytes) -> bool:
        leader = leader_of(value, (), 0)
        return leader is not None and leader.scheduler_id == self._scheduler_id
