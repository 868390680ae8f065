"""Tells the mesh what the database says: a loop that makes etcd's notices what they should be, and keeps them so.

Level-triggered: a commit, the outbox, a watch event only say where to look; what is written is read from the database then.
On start, and whenever etcd's history could not be followed (an etcd that came back empty among them), everything is compared. A
row of the outbox goes away once etcd has what it asks for: a replica may die at any moment, another tells. Never decides what a
notice says (`sql.py`), nor whether it has to be written (`policy.py`).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from registry.access.types import ActorKind
from registry.audit.trail import AuditTrail
from registry.audit.types import AuditNote, AuditOutcome
from registry.notices.marks import Marks
from registry.notices.outbox import NoticeKind
from registry.notices.policy import Verdict, judge
from registry.notices.reader import ToldReader, subject_at
from registry.notices.sql import NoticeSource
from registry.notices.types import Subject, Told, Truth, Waiting
from registry.seals import RowAltered, Seals
from runtime.backoff import Backoff, sleep_unless
from runtime.clock import Clock
from runtime.database import Database
from runtime.errors import Code, PenstockError
from runtime.identity import NodeIdentity
from runtime.ids import REGISTRY_PREFIX, KeyId, NodeId
from runtime.keyvalue import EtcdRequestRefused, KeyValue, KeyValueStore, Remove, Watch, Write, unchanged
from runtime.notice_records import KeyNotice, key_payload
from runtime.records import sign_record

_BACKOFF = Backoff(first_s=0.1, max_s=1.0)
_log = structlog.get_logger("penstock.notices")


class NoticeContended(PenstockError, code=Code.ABORTED, reason="NOTICE_CONTENDED"):
    """Others kept writing the same notice while it was to be written."""


@dataclass(frozen=True, slots=True)
class TellerTiming:
    """How often what, and how much at once."""

    poll_s: float = 0.5
    """For what other replicas committed and did not live to tell."""
    compare_s: float = 3600.0
    sweep_s: float = 30.0
    key_notice_s: float = 600.0
    aside_s: float = 5.0
    """How long a subject that cannot be told rests, while others go on."""
    backoff: Backoff = _BACKOFF
    leave_s: float = 2.0
    rows: int = 256
    models: int = 64
    at_once: int = 16
    attempts: int = 8


class Teller:
    """One per registry process; any number of them on one database and one etcd."""

    def __init__(
        self,
        database: Database,
        seals: Seals,
        trail: AuditTrail,
        store: KeyValueStore,
        identity: NodeIdentity,
        clock: Clock,
        timing: TellerTiming | None = None,
    ) -> None:
        self._database, self._trail, self._store, self._identity = database, trail, store, identity
        self._clock, self._timing = clock, timing or TellerTiming()
        self._source, self._reader = NoticeSource(database, seals), ToldReader(identity, clock)
        self._rng = random.Random()  # noqa: S311 (spreads attempts)
        self._woken, self._leaving = asyncio.Event(), asyncio.Event()
        self._marks = Marks(self._reader)
        self._aside: dict[Subject, float] = {}
        """Until when it rests."""
        self._compare_at_s = self._sweep_at_s = clock.monotonic_s()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Tell while the context lasts. Entering waits for nobody: what is to be told waits in the outbox.

        Leaving lets what was begun be told, for a moment: who is cancelled within a statement costs the pool a connection.
        """
        self._database.on_commit.append(self._woken.set)
        try:
            async with self._store.watch(REGISTRY_PREFIX) as watch:
                following = asyncio.create_task(self._follow(watch), name="notices-watch")
                telling = asyncio.create_task(self._keep_telling(), name="notices")
                try:
                    yield
                    self._leaving.set()
                    self._woken.set()
                    await asyncio.wait((telling,), timeout=self._timing.leave_s)
                finally:
                    following.cancel()
                    telling.cancel()
                    await asyncio.gather(following, telling, return_exceptions=True)
        finally:
            self._database.on_commit.remove(self._woken.set)

    async def _keep_telling(self) -> None:
        failures = 0
        while not self._leaving.is_set():
            self._woken.clear()
            try:
                await self._converge()
                failures = 0
            except Exception as error:
                failures += 1
                self._note_failure(error, failures)
            if failures:
                await sleep_unless(self._clock, self._timing.backoff.delay_s(failures, self._rng), self._leaving)
            elif not self._leaving.is_set():
                await sleep_unless(self._clock, self._timing.poll_s, self._woken)

    async def _converge(self) -> None:
        self._reader.check_own()
        await self._drain()
        marks, now_s = self._marks, self._clock.monotonic_s()
        if marks.subjects and not self._reader.silenced:
            await self._look_at(marks.take())
        if marks.everything or now_s >= self._compare_at_s:
            marks.everything = False
            try:
                await self._compare_all()
            except BaseException:
                marks.everything = True
                raise
            self._compare_at_s = now_s + self._timing.compare_s
        if now_s >= self._sweep_at_s:
            await self._sweep()
            self._sweep_at_s = now_s + self._timing.sweep_s

    async def _look_at(self, subjects: set[Subject]) -> None:
        done: set[Subject] = set()
        try:
            await self._each(subjects, lambda subject: self._settle(subject, whole=False), done)
        finally:
            self._marks.subjects |= subjects - done

    async def _drain(self) -> None:
        """Tell everything that is in the outbox now."""
        after, rows = 0, self._timing.rows
        while not self._reader.silenced and (waiting := await self._source.waiting(after, rows)):
            await self._tell(waiting)
            after = waiting[-1].notice
            if len(waiting) < rows:
                return

    async def _tell(self, waiting: Collection[Waiting]) -> None:
        by_subject: dict[Subject, list[int]] = {}
        unknown = [each.notice for each in waiting if each.subject is None]  # a newer replica tells these
        for each in waiting:
            if each.subject is not None:
                by_subject.setdefault(each.subject, []).append(each.notice)
        if unknown:
            _log.warning("notices_of_unknown_kind", rows=len(unknown))
        told: set[Subject] = set()
        try:
            await self._each(by_subject, lambda subject: self._settle(subject, whole=True), told)
        finally:
            if told:
                await self._source.told([notice for subject in told for notice in by_subject[subject]])

    async def _each(self, subjects: Iterable[Subject], act: Callable[[Subject], Awaitable[None]], done: set[Subject]) -> None:
        """`done` gets those with whom it went well. One that cannot be told rests and holds up nobody; raises where nobody can
        be told."""
        places, now_s = asyncio.Semaphore(self._timing.at_once), self._clock.monotonic_s()

        async def one(subject: Subject) -> None:
            async with places:
                await act(subject)
            self._aside.pop(subject, None)
            done.add(subject)

        chosen = [subject for subject in subjects if self._aside.get(subject, now_s) <= now_s]
        results = await asyncio.gather(*(one(subject) for subject in chosen), return_exceptions=True)
        failed = [(subject, error) for subject, error in zip(chosen, results, strict=True) if isinstance(error, Exception)]
        for subject, error in failed:
            if _is_its_own(error):
                await self._set_aside(subject, error)
        for _, error in failed:
            if not _is_its_own(error):
                raise error

    async def _settle(self, subject: Subject, *, whole: bool) -> None:
        """Make etcd say what the database says of this one."""
        if subject.kind is NoticeKind.KEY:
            notice = KeyNotice(KeyId(subject.name), int(self._clock.wall_s() * 1000))
            await self._store.put(subject.key, sign_record(self._identity, key_payload(notice)))
            return
        for _ in range(self._timing.attempts):
            told = self._reader.read(subject, await self._store.get(subject.key))
            if await self._carry_out(subject, told, await self._truth(subject), whole=whole):
                return
        raise NoticeContended(f"others wrote {subject.key} {self._timing.attempts} times meanwhile; it is tried again")

    async def _truth(self, subject: Subject) -> Truth | None:
        if subject.kind is NoticeKind.MODEL:
            return await self._source.model(subject.name)
        if subject.kind is NoticeKind.LIMITS:
            return await self._source.limits()
        return await self._source.node(subject.name)

    async def _carry_out(self, subject: Subject, told: Told, truth: Truth | None, *, whole: bool) -> bool:
        """False: etcd is another than it was read."""
        verdict = judge(told, truth, now_ms=int(self._clock.wall_s() * 1000), whole=whole)
        if verdict is Verdict.AHEAD:
            _log.error("database_older_than_told", key=subject.key, told=told.generation)
        if verdict is Verdict.WRITE and truth is not None:
            step: Write | Remove = Write(subject.key, sign_record(self._identity, truth.payload))
        elif verdict is Verdict.REMOVE:
            step = Remove(subject.key)
        else:
            return True
        done = (await self._store.txn((unchanged(subject.key, told.mod_revision),), (step,))).succeeded
        if done and truth is not None:
            self._marks.told(subject, truth.generation)
        return done

    async def _compare_all(self) -> None:
        """Everything against everything, a page at a time; what is new in the outbox goes first."""
        self._reader.look_ahead()
        found = {item.key: item for item in (await self._store.range(REGISTRY_PREFIX)).items}
        nodes = await self._source.revoked_nodes()
        self._reader.revoked.update(NodeId(node_id) for node_id, truth in nodes.items() if isinstance(truth, Truth))
        if self._reader.silenced:
            _log.error("revoked_registry_is_silent", node_id=self._identity.node_id)
            return
        await self._compare(NoticeKind.NODE, nodes, found)
        if (limits := await self._source.limits()) is not None:
            await self._compare(NoticeKind.LIMITS, {"": limits}, found)
        after, compared = "", 0
        while not self._leaving.is_set() and (page := await self._source.models(after, self._timing.models)):
            await self._compare(NoticeKind.MODEL, page, found)
            after, compared = list(page)[-1], compared + len(page)  # the database's last: it may sort in its own way
            if self._woken.is_set():
                self._woken.clear()
                await self._drain()
        _log.info("notices_compared", models=compared, nodes=len(nodes))

    async def _compare(self, kind: NoticeKind, truths: Mapping[str, Truth | RowAltered], found: Mapping[str, KeyValue]) -> None:
        async def one(subject: Subject) -> None:
            truth = truths[subject.name]
            if isinstance(truth, RowAltered):
                raise truth
            told = self._reader.read(subject, found.get(subject.key))
            if not await self._carry_out(subject, told, truth, whole=True):
                await self._settle(subject, whole=True)

        await self._each([Subject(kind, name) for name in truths], one, set())

    async def _sweep(self) -> None:
        """Take away what everybody has heard of long ago."""
        until_ms = (self._clock.wall_s() - self._timing.key_notice_s) * 1000
        for key, item in list(self._marks.fleeting.items()):
            subject = subject_at(key)
            if subject is not None and self._reader.read(subject, item).generation < until_ms:
                await self._store.txn((unchanged(key, item.mod_revision),), (Remove(key),))
                self._marks.fleeting.pop(key, None)

    async def _follow(self, watch: Watch) -> None:
        async for update in watch:
            self._marks.hear(update)
            self._woken.set()

    async def _set_aside(self, subject: Subject, error: Exception) -> None:
        if subject not in self._aside:
            shown = None if isinstance(error, PenstockError) else error
            _log.error("cannot_be_told", key=subject.key, why=str(error), exc_info=shown)
            if isinstance(error, RowAltered):
                what, who = f"{subject.kind.value} {subject.name}", self._identity.node_id
                await self._trail.note(
                    AuditNote(ActorKind.NODE, who, "tampering", what, outcome=AuditOutcome.FAILED, detail=error.message)
                )
        self._aside[subject] = self._clock.monotonic_s() + self._timing.aside_s

    def _note_failure(self, error: Exception, failures: int) -> None:
        if failures == 1 or not isinstance(error, PenstockError):
            _log.warning("telling_failed", why=str(error), exc_info=None if isinstance(error, PenstockError) else error)


def _is_its_own(error: Exception) -> bool:
    """Whether only this subject cannot be told: its rows were altered, its notice is too large, or we have a bug."""
    return isinstance(error, RowAltered | EtcdRequestRefused) or not isinstance(error, PenstockError)
