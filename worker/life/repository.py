"""Folders that a worker serves as they lie, for one that serves alone: loaded, unloaded and read anew when somebody asks.

Theory of operation. An entry is a folder and what became of it: READY, let go of, or failed with a reason. Loading one that is
READY reads its folder anew and opens the new copies before the old ones drain; if that fails, the old ones go on answering and
its entry says why. A folder has one version, or several where it is one of a Triton repository. Work that was begun is
finished, also if the caller leaves. An entry does one thing at a time; several load side by side up to a limit.

A load may bring a configuration and files. They hold until the next load without any, as with Triton: `uploads.py` keeps the
files, a model of which there is no folder exists for as long as they do, and a failed load changes nothing.

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
from runtime.ids import ModelVersion
from runtime.load_overrides import LoadOverride
from runtime.model_description import checked_name
from worker.copies import LoadedModel
from worker.life.lifecycle import Copy, Holdings, LifeEvent
from worker.life.served_folders import Served, find_folders, read_served
from worker.life.uploads import Uploads
from worker.models import ModelTable
from worker.threads import in_thread
from worker.types import CopyState, ModelSpec, RepositoryRow

UNLOADED = "unloaded"
"""Triton's word for the reason of a model that was let go of."""

OpenModel = Callable[[ModelSpec, Path], Awaitable[LoadedModel]]
_NONE = ModelVersion("")
_log = structlog.get_logger("penstock.repository")


class UnknownFolder(PenstockError, code=Code.NOT_FOUND, reason="MODEL_FOLDER_NOT_FOUND"):
    """No folder here holds a model of that name."""


class FolderTaken(PenstockError, code=Code.FAILED_PRECONDITION, reason="MODEL_FOLDER_TAKEN"):
    """A folder describes a model that another folder, or another model that this one, answers for."""


class LoadBroke(PenstockError, code=Code.INTERNAL, reason="LOAD_BROKE"):
    """It ended on a bug; the worker's log has it."""


@dataclass(slots=True, eq=False)
class Entry:
    """One folder. `folder` is None for a model of which there is only what a load brought."""

    folder: Path | None
    name: str
    state: CopyState = CopyState.UNAVAILABLE
    reason: str = ""
    last_version: ModelVersion = _NONE
    """The newest of those that answered last, or that would."""
    copies: dict[ModelVersion, Copy] = field(default_factory=dict)
    """Those that answer."""
    upload: Path | None = None
    """Where the files of the override lie that it was loaded with."""
    alone: asyncio.Lock = field(default_factory=asyncio.Lock)
    works: int = 0
    """Loads and unloads of it that were begun and have not ended."""

    def ended(self) -> None:
        self.works -= 1


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
        uploads: Uploads | None = None,
    ) -> None:
        self._folders, self._repositories = tuple(folders), tuple(repositories)
        self._table, self._holdings, self._open_model = table, holdings, open_model
        self._places, self._drain_grace_s = asyncio.Semaphore(loads_at_once), drain_grace_s
        self._entries: list[Entry] = []
        """Those that were named or found first come first."""
        self.uploads = uploads or Uploads()
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
            await in_thread(self.uploads.remove_all)

    async def load_all(self) -> list[FolderFailure]:
        """Load what the folders hold; those that could not be, with the reason."""
        await self._scan()
        entries = list(self._entries)
        outcomes = await asyncio.gather(*(self._begun(self._load(entry), entry) for entry in entries))
        pairs = zip(entries, outcomes, strict=True)
        return [FolderFailure(entry.folder or Path(entry.name), error) for entry, error in pairs if error is not None]

    async def load(self, name: str, override: LoadOverride | None = None) -> None:
        """Open the model anew, from its folder or as the override has it. Raises UnknownFolder, and why it cannot be opened."""
        await self._scan()
        if override is not None and override.files and not any(entry.name == name for entry in self._entries):
            self._entries.append(Entry(None, checked_name("the model's name", name)))
        entry = self._entry(name)
        await self._done(self._load(entry, override), entry)

    async def unload(self, name: str) -> None:
        """Let the model go; returns when its requests have ended. Raises UnknownFolder."""
        entry = self._entry(name)
        await self._done(self._unload(entry), entry)

    def rows(self) -> Sequence[RepositoryRow]:
        """What is here, by name: a row for each version that answers, or one for a model of which none does."""
        rows: list[RepositoryRow] = []
        for entry in self._entries:
            versions = list(entry.copies) or [ModelVersion("" if entry.state is CopyState.FAILED else entry.last_version)]
            rows += [RepositoryRow(entry.name, version, entry.state, entry.reason) for version in versions]
        return sorted(rows, key=lambda row: (row.name, len(row.version), row.version))

    def _entry(self, name: str) -> Entry:
        for entry in self._entries:
            if entry.name == name:
                return entry
        known = ", ".join(sorted({entry.name for entry in self._entries})) or "none"
        raise UnknownFolder(f"Request for unknown model: '{name}' is not found; folders here hold: {known}")

    async def _scan(self) -> None:
        """Take in folders that came, and forget those that went and answer nothing."""
        by_folder = {entry.folder: entry for entry in self._entries if entry.folder is not None}
        known = {folder: entry.name for folder, entry in by_folder.items() if entry.copies}
        found = await in_thread(find_folders, self._folders, self._repositories, known)
        for each in found:
            if (entry := by_folder.get(each.folder)) is None:
                entry = by_folder[each.folder] = self._without_folder(each.name) or Entry(each.folder, each.name)
            entry.folder, entry.name = each.folder, each.name
            if not entry.copies and not entry.works:
                entry.last_version = each.version
        here = [by_folder[each.folder] for each in found]
        kept = [entry for entry in self._entries if entry not in here and (entry.copies or entry.works)]
        self._entries = kept + here

    def _without_folder(self, name: str) -> Entry | None:
        """A model that had no folder, and got one."""
        return next((entry for entry in self._entries if entry.folder is None and entry.name == name), None)

    async def _load(self, entry: Entry, override: LoadOverride | None = None) -> None:
        async with entry.alone, self._places:
            if not entry.copies:
                entry.state, entry.reason = CopyState.LOADING, ""
            upload: Path | None = None
            try:
                if override is not None and override.files:
                    upload = await in_thread(self.uploads.keep, override)
                opened = await self._opened(entry, upload, override)
            except BaseException as error:
                if upload is not None:
                    await in_thread(self.uploads.remove, upload)
                self._fail(entry, _why(error))
                raise
            before, entry.upload = entry.upload, upload
            await self._answer(entry, opened)
            if before is not None:
                await in_thread(self.uploads.remove, before)

    async def _opened(
        self, entry: Entry, upload: Path | None, override: LoadOverride | None
    ) -> list[tuple[Served, LoadedModel]]:
        """Every version, or none: if one cannot be opened, those before it are closed again."""
        folder = upload or entry.folder
        if folder is None:
            raise UnknownFolder(
                f"failed to load '{entry.name}', there is no folder of it here; what answers was brought by a load, and goes on"
            )
        served = await in_thread(read_served, folder, override, entry.name)
        for each in served:
            self._check_name(entry, each.spec.model)
        opened: list[tuple[Served, LoadedModel]] = []
        try:
            for each in served:
                opened.append((each, await self._open_model(each.spec, each.root)))  # noqa: PERF401  # what is open counts
        except BaseException:
            for _, loaded in opened:
                loaded.close()
            raise
        return opened

    def _check_name(self, entry: Entry, name: str) -> None:
        """A model answers from the first folder that holds it, and a folder that answers keeps its name."""
        first = next((other for other in self._entries if other.name == name), entry)
        if first is not entry:
            raise FolderTaken(f"{entry.folder} holds model {name!r}, which {first.folder} is there for; rename one of them")
        if entry.copies and entry.name != name:
            raise FolderTaken(f"{entry.folder} holds model {name!r} now; unload {entry.name!r} first")
        entry.name = name

    async def _answer(self, entry: Entry, opened: Sequence[tuple[Served, LoadedModel]]) -> None:
        """The new copies answer from here on; those before them drain beside, and versions that are gone drain first."""
        for served, loaded in opened:
            self._take_over(entry, served.spec, loaded)
        gone = [entry.copies[version] for version in entry.copies.keys() - {served.spec.version for served, _ in opened}]
        entry.state, entry.reason, entry.last_version = CopyState.READY, "", opened[-1][0].spec.version
        for copy in gone:
            del entry.copies[copy.version]
            await self._let_go(copy)

    def _take_over(self, entry: Entry, spec: ModelSpec, loaded: LoadedModel) -> None:
        before = self._table.exchange(loaded)
        copy = entry.copies.get(spec.version)
        if copy is None:
            copy = entry.copies[spec.version] = self._holdings.add(Copy(spec.model, spec.version, spec.digest, 0))
            for event in (LifeEvent.LOAD_BEGUN, LifeEvent.LOADED):
                self._holdings.move(copy, event)
        copy.digest, copy.reason = spec.digest, ""
        self._holdings.describe(copy, task=spec.task, max_batch_size=spec.max_batch_size, traits=loaded.spec.traits)
        if before is not None:
            self._begun(self._table.let_go(before, self._drain_grace_s))
        _log.info("model_ready", model=spec.model, version=spec.version, folder=str(entry.folder))

    def _fail(self, entry: Entry, reason: str) -> None:
        _log.error("model_failed", model=entry.name, folder=str(entry.folder), error=reason)
        if not entry.copies:
            entry.state, entry.reason = CopyState.FAILED, reason
        else:
            entry.reason = f"it could not be loaded anew, and answers as it was: {reason}"
            for copy in entry.copies.values():
                self._holdings.explain(copy, entry.reason)

    async def _unload(self, entry: Entry) -> None:
        async with entry.alone:
            copies, upload = list(entry.copies.values()), entry.upload
            if copies:
                entry.state, entry.reason = CopyState.UNLOADING, "finishing its requests"
            entry.upload = None
            try:
                await asyncio.gather(*(self._let_go(copy) for copy in copies))
            finally:
                entry.copies.clear()
                if upload is not None:
                    await in_thread(self.uploads.remove, upload)
            entry.state, entry.reason = CopyState.UNAVAILABLE, UNLOADED

    async def _let_go(self, copy: Copy) -> None:
        self._holdings.move(copy, LifeEvent.RETIRED)
        try:
            await self._table.remove(copy.model, copy.version, grace_s=self._drain_grace_s)
        finally:
            for event in (LifeEvent.DRAINED, LifeEvent.FREED):
                self._holdings.move(copy, event)
            _log.info("model_unloaded", model=copy.model, version=copy.version)

    async def _done(self, work: Coroutine[None, None, None], entry: Entry) -> None:
        """Its end, also if the caller leaves before it. Raises what it ended with."""
        error = await asyncio.shield(self._begun(work, entry))
        if error is not None:
            raise error

    def _begun(self, work: Coroutine[None, None, None], entry: Entry | None = None) -> asyncio.Task[PenstockError | None]:
        if not self._is_running:
            work.close()
            raise Unavailable("this worker is ending, and loads nothing any more")
        task = asyncio.create_task(_outcome(work), name="repository")
        self._working.add(task)
        task.add_done_callback(self._working.discard)
        if entry is not None:  # counted from now on: a scan between this and the task's first step must not forget it
            entry.works += 1
            task.add_done_callback(lambda _: entry.ended())
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


def _why(error: BaseException) -> str:
    if isinstance(error, PenstockError):
        return error.message
    if isinstance(error, asyncio.CancelledError):
        return "the load was broken off"
    return "the load broke on a bug; the worker's log has it"
