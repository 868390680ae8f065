"""Whether a caller may have the model it names, and which version of it is meant: what the registry told, ready to be used.

Owns a table for each model, made anew when a notice of it is heard. Where keys are asked for, a model that nobody has told of
is refused: every model that is served was published, so its notice is on its way. Where none are asked for, everybody may have
everything, and names are taken as they come until they are known. Never chooses a worker.
"""

from __future__ import annotations

import asyncio
import random
from typing import Protocol

from gateway.admission import KeyFacts
from gateway.refusals import unknown_model
from gateway.routes import Routes
from gateway.versions import VersionTable, roll_of, table_of
from placement.types import Copy, Worker
from runtime.errors import Code, DeadlineExceeded, PenstockError
from runtime.ids import ModelName, ModelVersion
from runtime.notices import NoticeBoard

TOLD_WAIT_S = 1.0
"""How soon the whole mesh is to have heard of a change."""


class NoticeMissing(PenstockError, code=Code.UNAVAILABLE, reason="MODEL_NOT_TOLD"):
    """Whose model this is was not heard here yet."""


class Fleet(Protocol):
    """Who serves what: gateway.fleet.Fleet."""

    @property
    def synced(self) -> bool: ...

    def copies(self, model: str, version: str = "") -> tuple[tuple[Worker, Copy], ...]: ...

    def placed(self, model: str, version: str = "") -> bool: ...


class Targets:
    """Belongs to one event loop. Without a board nothing is known and everything let through."""

    def __init__(
        self,
        board: NoticeBoard | None,
        fleet: Fleet,
        *,
        enforced: bool = True,
        wait_s: float = 10.0,
        rng: random.Random | None = None,
        routes: Routes | None = None,
    ) -> None:
        """Without routes, requests of one key that name nothing are shared out one by one, whatever rules say."""
        self._routes = routes
        self._board, self._fleet, self._wait_s = board, fleet, wait_s
        self._enforced = enforced and board is not None
        self._tables: dict[str, VersionTable] = {}
        self._roll = (rng or random.Random()).random  # noqa: S311 (shares requests out)
        self._changed = asyncio.Event()
        if board is not None:
            for model in board.models:
                self._hear(model)
            board.on_model.append(self._hear)
            board.on_resync.append(self._wake)

    def find(self, key: KeyFacts, model: str, wanted: str = "", session_key: str = "") -> ModelVersion | None:
        """The version that this request gets; empty: the newest. None: wait for `found`, the model is not known here yet.

        Raises ModelUnknown (of another tenant's model, too), VersionGone, AliasUnsettled.
        """
        table = self._tables.get(model)
        if table is None:
            return None if self._enforced else ModelVersion(wanted)
        if self._enforced and not table.allows(key.tenant):
            raise unknown_model(model, wanted)
        if not wanted and table.plain is not None:
            return table.plain
        return table.version(wanted, roll_of(model, session_key) if session_key else self._roll_for(key, model))

    async def found(
        self, key: KeyFacts, model: str, wanted: str = "", session_key: str = "", deadline_s: float | None = None
    ) -> ModelVersion:
        """Like `find`, once the model is known. Raises also ModelUnknown, and NoticeMissing or DeadlineExceeded."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + self._wait_s if deadline_s is None else min(loop.time() + self._wait_s, deadline_s)
        while (version := self.find(key, model, wanted, session_key)) is None:
            if self._is_nowhere(model):
                raise unknown_model(model, wanted)
            if not await self._change(until_s - loop.time()):
                missing = self._missing(model)
                if until_s == deadline_s:
                    raise DeadlineExceeded(f"no time is left: {missing.message}")
                raise missing
        return version

    async def is_told(self, key: KeyFacts, model: str) -> bool:
        """Whether the registry has told of this model, which this caller may have then. Raises ModelUnknown."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + (TOLD_WAIT_S if self._synced else self._wait_s)
        while self._enforced and model not in self._tables:
            if not await self._change(until_s - loop.time()):
                if not self._synced:
                    raise self._missing(model)
                return False
        if self._enforced and not self._tables[model].allows(key.tenant):
            raise unknown_model(model)
        return True

    def sees(self, key: KeyFacts, model: str) -> bool:
        """Whether this caller is to know that there is such a model."""
        if not key.allows(model):
            return False
        table = self._tables.get(model)
        return not self._enforced or (table is not None and table.allows(key.tenant))

    def is_known(self, model: str) -> bool:
        """Whether the registry has told of this model, whoever may have it."""
        return model in self._tables

    def pinned(self, key: KeyFacts, model: str, wanted: str) -> ModelVersion:
        """The number that is meant; empty stays empty. To others than its callers a model is unknown.

        Raises ModelUnknown, VersionGone, AliasUnsettled.
        """
        if not self.sees(key, model):
            raise unknown_model(model, wanted)
        table = self._tables.get(model)
        return ModelVersion(wanted) if table is None or not wanted else table.pinned(wanted)

    def mostly(self, key: KeyFacts, model: str, wanted: str) -> ModelVersion:
        """Like `pinned`; where nothing is named, what most of such requests get."""
        version = self.pinned(key, model, wanted)
        table = self._tables.get(model)
        return version if version or table is None else table.mostly()

    def _roll_for(self, key: KeyFacts, model: str) -> float:
        """A request without a session: its key's own roll, where a rule wants that and there is a key."""
        routes = self._routes
        if routes is None or not key.key_id or not routes.at_home(key.tenant, model).sticky_versions:
            return self._roll()
        return roll_of(model, key.key_id)

    @property
    def _synced(self) -> bool:
        return self._board is not None and self._board.synced

    def _is_nowhere(self, model: str) -> bool:
        fleet = self._fleet
        return self._synced and fleet.synced and not fleet.copies(model) and not fleet.placed(model)

    def _missing(self, model: str) -> NoticeMissing:
        if not self._synced:
            return NoticeMissing("this gateway has not heard from the registry through etcd yet; try again", retry_after_s=1.0)
        return NoticeMissing(f"whose model {model[:128]!r} is has not been heard here yet; try again", retry_after_s=1.0)

    async def _change(self, timeout_s: float) -> bool:
        """Return at the next change; False: there was none in time."""
        changed = self._changed
        try:
            async with asyncio.timeout(timeout_s):
                await changed.wait()
        except TimeoutError:
            return False
        return True

    def _hear(self, model: ModelName) -> None:
        notice = self._board.model(model) if self._board is not None else None
        if notice is not None:
            self._tables[model] = table_of(notice)
            self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
