"""Folders that a worker serves as they lie, for one that serves alone: loaded, unloaded and read anew when somebody asks.

Theory of operation. An entry is a folder and what became of it: READY, let go of, or failed with a reason. Loading one that is
READY reads its folder anew and opens the new copy before the old one drains; if that fails, the old one goes on answering and
its entry says why. Work that was begun is finished, also if the caller leaves. An entry does one thing at a time; several load
side by side up to a limit.

Owns the entries and the tasks. Nothing here is signed or verified: who may write into the folders decides what runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from runtime.errors import Code, PenstockError, Unavailable
from worker.copies import LoadedModel
from worker.files.folders import VERSION, find_folders, read_spec
from worker.life.lifecycle import Copy, Holdings, LifeEvent
from worker.models import ModelTable
from worker.threads import in_thread
from worker.types import CopyState, ModelSpec, RepositoryRow

UNLOADED = "unloaded"
"""Triton's word for the reason of a model that was let go of."""

OpenModel = Callable[[ModelSpec, Path], Awaitable[LoadedModel]]
_log = structlog.get_logger("penstock.repository")


class UnknownFolder(PenstockError, code=Code.NOT_FOUND, reason="MODEL_FOLDER_NOT_FOUND"):
    """No folder here holds a model of that name."""


class FolderTaken(PenstockError, code=Code.FAILED_PRECONDITION, reason="MODEL_FOLDER_TAKEN"):
    """A folder describes a model that another folder, or another model that this one, answers for."""


class LoadBroke(PenstockError, code=Code.INTERNAL, reason="LOAD_BROKE"):
    """It ended on a bug; the worker's log has it."""


@dataclass(slots=True, eq=False)
class Entry:
    """One folder."""

    folder: Path
    name: str
    state: CopyState = CopyState.UNAVAILABLE
    reason: str = ""
    copy: Copy | None = None
    """The one that answers."""
    alone: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(frozen=True, slots=True)
class FolderFailure:
    folder: Path
    error: PenstockError


class FolderRepository:
    """Implements `worker.types.Repository`. Used on the loop, while `running`."""

    def __init__(
        self,
        folders: Iterable[Path],
        repositories: Iterable[Path],
        table: ModelTable,
        holdings: Holdings,
        open_model: OpenModel,
        *,
        loads_at_once: int = 2,
        drain_grace_s: float | None = None,
    ) -> None:
        self._folders, self._repositories = tuple(folders), tuple(repositories)
        self._table, self._holdings, self._open_model = table, holdings, open_model
        self._places, self._drain_grace_s = asyncio.Semaphore(loads_at_once), drain_grace_s
        self._entries: dict[Path, Entry] = {}
        self._working: set[asyncio.Task[PenstockError | None]] = set()
        self._is_running = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Take calls while the context lasts. Leaving breaks off what is under way."""
        self._is_running = True
        try:
            yield
        finally:
            self._is_running = False
            for task in self._working:
                task.cancel()
            await asyncio.gather(*self._working, return_exceptions=True)

    async def load_all(self) -> list[FolderFailure]:
        """Load what the folders hold; those that could not be, with the reason."""
        await self._scan()
        entries = list(self._entries.values())
        outcomes = await asyncio.gather(*(self._begun(self._load(entry)) for entry in entries))
        return [FolderFailure(entry.folder, error) for entry, error in zip(entries, outcomes, strict=True) if error is not None]

    async def load(self, name: str) -> None:
        """Open the model anew from its folder. Raises UnknownFolder, and why it cannot be opened."""
        await self._scan()
        await self._done(self._load(self._entry(name)))

    async def unload(self, name: str) -> None:
        """Let the model go; returns when its requests have ended. Raises UnknownFolder."""
        await self._done(self._unload(self._entry(name)))

    def rows(self) -> Sequence[RepositoryRow]:
        """What is here, by name."""
        rows = [
            RepositoryRow(entry.name, "" if entry.state is CopyState.FAILED else VERSION, entry.state, entry.reason)
            for entry in self._entries.values()
        ]
        return sorted(rows, key=lambda row: (row.name, row.version))

    def _entry(self, name: str) -> Entry:
        for entry in self._entries.values():
            if entry.name == name:
                return entry
        known = ", ".join(sorted({entry.name for entry in self._entries.values()})) or "none"
        raise UnknownFolder(f"Request for unknown model: '{name}' is not found; folders here hold: {known}")

    async def _scan(self) -> None:
        """Take in folders that came, and forget those that went and answer nothing."""
        known = {folder: entry.name for folder, entry in self._entries.items() if entry.copy is not None}
        found = await in_thread(find_folders, self._folders, self._repositories, known)
        entries = {each.folder: self._entries.get(each.folder) or Entry(each.folder, each.name) for each in found}
        for each in found:
            entries[each.folder].name = each.name
        kept = {folder: entry for folder, entry in self._entries.items() if entry.copy or entry.alone.locked()}
        self._entries = {**kept, **entries}

    async def _load(self, entry: Entry) -> None:
        async with entry.alone, self._places:
            if entry.copy is None:
                entry.state, entry.reason = CopyState.LOADING, ""
            try:
                spec = await in_thread(read_spec, entry.folder)
                self._check_name(entry, spec.model)
                loaded = await self._open_model(spec, entry.folder)
            except asyncio.CancelledError:
                self._fail(entry, "the load was broken off")
                raise
            except PenstockError as error:
                self._fail(entry, error.message)
                raise
            except Exception:
                self._fail(entry, "the load broke on a bug; the worker's log has it")
                raise
            self._answer(entry, spec, loaded)

    def _check_name(self, entry: Entry, name: str) -> None:
        """A model answers from the first folder that holds it, and a folder that answers keeps its name."""
        first = next((other for other in self._entries.values() if other.name == name), entry)
        if first is not entry:
            raise FolderTaken(f"{entry.folder} holds model {name!r}, which {first.folder} is there for; rename one of them")
        if entry.copy is not None and entry.name != name:
            raise FolderTaken(f"{entry.folder} holds model {name!r} now; unload {entry.name!r} first")
        entry.name = name

    def _answer(self, entry: Entry, spec: ModelSpec, loaded: LoadedModel) -> None:
        """The new copy answers from here on; the one before it, if any, drains beside."""
        before = self._table.exchange(loaded)
        copy = entry.copy
        if copy is None:
            copy = entry.copy = self._holdings.add(Copy(spec.model, spec.version, spec.digest, 0))
            for event in (LifeEvent.LOAD_BEGUN, LifeEvent.LOADED):
                self._holdings.move(copy, event)
        copy.digest, copy.reason = spec.digest, ""
        self._holdings.describe(copy, task=spec.task, max_batch_size=spec.max_batch_size)
        entry.state, entry.reason = CopyState.READY, ""
        if before is not None:
            self._begun(self._table.let_go(before, self._drain_grace_s))
        _log.info("model_ready", model=spec.model, version=spec.version, folder=str(entry.folder))

    def _fail(self, entry: Entry, reason: str) -> None:
        _log.error("model_failed", model=entry.name, folder=str(entry.folder), error=reason)
        if entry.copy is None:
            entry.state, entry.reason = CopyState.FAILED, reason
        else:
            entry.reason = f"it could not be loaded anew, and answers as it was: {reason}"
            self._holdings.explain(entry.copy, entry.reason)

    async def _unload(self, entry: Entry) -> None:
        async with entry.alone:
            copy, entry.copy = entry.copy, None
            if copy is not None:
                entry.state, entry.reason = CopyState.UNLOADING, "finishing its requests"
                self._holdings.move(copy, LifeEvent.RETIRED)
                try:
                    await self._table.remove(copy.model, copy.version, grace_s=self._drain_grace_s)
                finally:
                    for event in (LifeEvent.DRAINED, LifeEvent.FREED):
                        self._holdings.move(copy, event)
                    _log.info("model_unloaded", model=copy.model, version=copy.version)
            entry.state, entry.reason = CopyState.UNAVAILABLE, UNLOADED

    async def _done(self, work: Coroutine[None, None, None]) -> None:
        """Its end, also if the caller leaves before it. Raises what it ended with."""
        error = await asyncio.shield(self._begun(work))
        if error is not None:
            raise error

    def _begun(self, work: Coroutine[None, None, None]) -> asyncio.Task[PenstockError | None]:
        if not self._is_running:
            work.close()
            raise Unavailable("this worker is ending, and loads nothing any more")
        task = asyncio.create_task(_outcome(work), name="repository")
        self._working.add(task)
        task.add_done_callback(self._working.discard)
        return task


async def _outcome(work: Coroutine[None, None, None]) -> PenstockError | None:
    """A task's failure is an answer, not something that nobody looks at."""
    try:
        await work
    except PenstockError as error:
        return error
    except Exception as error:
        _log.error("repository_broke", exc_info=error)
        return LoadBroke("it broke on a bug; the worker's log has it")
    return None
