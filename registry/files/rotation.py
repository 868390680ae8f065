"""A new master key takes over: every data key is wrapped under it, every row sealed under it. Objects stay as they are.

Goes over the tables in bounded batches, each read, worked and written by itself, beside whatever else the registry does: a row
is written only if it still is what was read, for who changed it meanwhile put it under the newest key already. Stopping
anywhere leaves a database that every registry with both keys can use, and starting again goes on with what is left. What does
not open under its old key was altered: it is noted, left as it is, and told at the end, because its old key has to stay until
it was restored. Never adds or removes a master key.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog
from sqlalchemy import Column, ColumnElement, LargeBinary, Row, Table, and_, bindparam, func, select, tuple_, update

from registry.access.types import ActorKind, Principal
from registry.audit.trail import AuditTrail
from registry.audit.types import AuditNote, AuditOutcome, note_of
from registry.files.data_keys import DataKeyAltered, DataKeys, WrappedKey
from registry.master_keys import ID_BYTES
from registry.schema import files, metadata, uploads
from registry.seals import RowAltered, Seals
from registry.threads import in_thread
from runtime.database import Database
from runtime.errors import Code, PenstockError, Unavailable

BATCH_ROWS = 200
_SWEEPS = 10
_NOTED_AT_MOST = 100
_LEFT_AT_MOST = 10_000
"""Altered rows after which it is not worth going on: the key file is another database's."""

_ACTION = "master_key.rotate"
_log = structlog.get_logger("penstock.rotation")

Change = dict[str, Any]
"""New values by column name."""


class RotationIncomplete(PenstockError, code=Code.DATA_LOSS, reason="ROTATION_INCOMPLETE"):
    """Some of what lies under an old master key was altered, and could not be taken over."""


@dataclass(frozen=True, slots=True)
class Course:
    """One table, and how a row of it is taken over."""

    table: Table
    proof: Column[Any]
    """Changes whenever the row's key, or what it covers, does."""
    is_old: ColumnElement[bool]
    taken_over: Callable[[Row[Any]], Change]
    """Raises RowAltered, DataKeyAltered."""

    @property
    def key(self) -> tuple[Column[Any], ...]:
        return tuple(self.table.primary_key.columns)


@dataclass(slots=True)
class _Left:
    """What could not be taken over."""

    subjects: set[str] = field(default_factory=set)
    causes: list[tuple[str, PenstockError]] = field(default_factory=list)
    """Those that nobody was told of yet."""

    def add(self, subject: str, error: PenstockError) -> None:
        if subject not in self.subjects:
            self.subjects.add(subject)
            self.causes.append((subject, error))


class Rotation:
    """Run by one who asks; two that run at once do the same work twice and no harm."""

    def __init__(self, database: Database, seals: Seals, data_keys: DataKeys, trail: AuditTrail) -> None:
        self._database, self._seals, self._data_keys, self._trail = database, seals, data_keys, trail

    @property
    def master_key_id(self) -> str:
        """What everything is put under."""
        return self._data_keys.newest_key_id

    async def run(self, by: Principal | None = None) -> AsyncIterator[tuple[int, int]]:
        """Rows taken over so far, and how many there are in all. Raises RotationIncomplete, Unavailable."""
        target, done, left = self.master_key_id, 0, _Left()
        courses = self._courses(target)
        total = await self._count(courses)
        yield 0, total
        for _ in range(_SWEEPS):
            for course in courses:
                async for count in self._swept(course, left):
                    done += count
                    yield done, max(total, done)
            await self._note_left(left, by)
            if len(left.subjects) >= _LEFT_AT_MOST or await self._count(courses) <= len(left.subjects):
                break
        else:
            raise Unavailable(
                f"rows are still put under an older master key than {target!r}; give every registry the same key file, and"
                " rotate again"
            )
        await self._note_end(target, done, left, by)

    def _courses(self, target: str) -> list[Course]:
        sealed = [table for table in metadata.sorted_tables if "seal" in table.columns]
        return [
            *(self._wrapped(table, target) for table in (files, uploads)),
            *(self._sealed(table) for table in sealed),
        ]

    def _wrapped(self, table: Table, target: str) -> Course:
        def taken_over(row: Row[Any]) -> Change:
            kept = WrappedKey(bytes(row.wrapped_key), row.master_key_id)
            anew = self._data_keys.wrapped_anew(bytes(row.object_id), row.sha256, kept)
            return {"wrapped_key": anew.wrapped, "master_key_id": anew.master_key_id}

        return Course(table, table.c.wrapped_key, table.c.master_key_id != target, taken_over)

    def _sealed(self, table: Table) -> Course:
        def taken_over(row: Row[Any]) -> Change:
            return {"seal": self._seals.sealed_anew(table, row)}

        prefix = func.substr(table.c.seal, 1, ID_BYTES, type_=LargeBinary)
        return Course(table, table.c.seal, prefix != self._seals.newest_prefix, taken_over)

    async def _count(self, courses: Sequence[Course]) -> int:
        async with self._database.reading() as connection:
            counts = [
                await connection.scalar(select(func.count()).select_from(course.table).where(course.is_old))
                for course in courses
            ]
        return sum(count or 0 for count in counts)

    async def _swept(self, course: Course, left: _Left) -> AsyncIterator[int]:
        """One table from its first row to its last; how many rows each batch took over."""
        after: tuple[Any, ...] | None = None
        while rows := await self._batch(course, after):
            if len(left.subjects) >= _LEFT_AT_MOST:
                return
            after = tuple(rows[-1]._mapping[column.name] for column in course.key)
            changes = await in_thread(_worked, course, rows, left)
            await self._written(course, changes)
            yield len(changes)

    async def _batch(self, course: Course, after: tuple[Any, ...] | None) -> Sequence[Row[Any]]:
        asked = select(course.table).where(course.is_old).order_by(*course.key).limit(BATCH_ROWS)
        if after is not None:
            asked = asked.where(tuple_(*course.key) > tuple_(*_typed(course.key, after)))
        async with self._database.reading() as connection:
            return (await connection.execute(asked)).all()

    async def _written(self, course: Course, changes: Sequence[Change]) -> None:
        if not changes:
            return
        columns = [name for name in changes[0] if not name.startswith("was_")]
        is_same = [column == bindparam(f"was_{column.name}", type_=column.type) for column in (*course.key, course.proof)]
        changed = update(course.table).where(and_(*is_same)).values({name: bindparam(f"now_{name}") for name in columns})
        given = [
            {name if name.startswith("was_") else f"now_{name}": value for name, value in each.items()} for each in changes
        ]
        async with self._database.writing() as connection:
            await connection.execute(changed, given)

    async def _note_left(self, left: _Left, by: Principal | None) -> None:
        causes, left.causes = left.causes, []
        for subject, error in causes[:_NOTED_AT_MOST]:
            _log.error("row_left_under_old_master_key", subject=subject, error=error.message)
            await self._trail.note(_note(by, "tampering", subject, AuditOutcome.FAILED, error.message))

    async def _note_end(self, target: str, done: int, left: _Left, by: Principal | None) -> None:
        count = len(left.subjects)
        outcome = AuditOutcome.FAILED if count else AuditOutcome.DONE
        await self._trail.note(_note(by, _ACTION, target, outcome, f"{done} rows taken over, {count} left"))
        if count:
            raise RotationIncomplete(
                f"{done} rows lie under master key {target!r} now; {count} were altered and stay under an older one, such as"
                f" {min(left.subjects)}: restore them and rotate again before you remove that key"
            )


def _worked(course: Course, rows: Sequence[Row[Any]], left: _Left) -> list[Change]:
    """What is to be written, with what the row was (`was_…`). Blocking."""
    changes: list[Change] = []
    for row in rows:
        try:
            change = course.taken_over(row)
        except (RowAltered, DataKeyAltered) as error:
            left.add(_subject(course, row), error)
        else:
            was = {f"was_{column.name}": row._mapping[column.name] for column in (*course.key, course.proof)}
            changes.append({**change, **was})
    return changes


def _typed(columns: Sequence[Column[Any]], values: Sequence[Any]) -> list[Any]:
    return [bindparam(None, value, type_=column.type) for column, value in zip(columns, values, strict=True)]


def _subject(course: Course, row: Row[Any]) -> str:
    names = [row._mapping[column.name] for column in course.key]
    shown = [bytes(name).hex()[:16] if isinstance(name, bytes | memoryview) else str(name) for name in names]
    return "/".join((course.table.name, *shown))


def _note(by: Principal | None, action: str, subject: str, outcome: AuditOutcome, detail: str) -> AuditNote:
    if by is None:
        return AuditNote(ActorKind.NOBODY, "", action, subject, outcome=outcome, detail=detail)
    return note_of(by, action, subject, outcome=outcome, detail=detail)
