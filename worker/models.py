"""The models that answer here: finding them, letting them go.

Owns the table of open copies. `copies.py` opens them; which ones are wanted is the reconciler's question.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping

import structlog

from runtime.errors import AlreadyExists, Code, PenstockError
from runtime.ids import ModelName, ModelVersion
from worker.copies import LoadedModel
from worker.life.memory import Usage

_log = structlog.get_logger("penstock.models")


class UnknownModel(PenstockError, code=Code.NOT_FOUND, reason="MODEL_NOT_FOUND"):
    """No ready copy of that model or version is here."""


class ModelTable:
    """The copies that answer. Used on the loop; metrics may read it from their own thread."""

    def __init__(self, wall_s: Callable[[], float] = time.time) -> None:
        self._wall_s = wall_s
        self._ready: dict[tuple[str, str], LoadedModel] = {}
        self._since_s: dict[tuple[str, str], float] = {}
        """When each copy began to answer."""
        self._newest: dict[str, LoadedModel] = {}
        self._leaving: list[LoadedModel] = []

    def add(self, loaded: LoadedModel) -> None:
        """From now on it answers. Raises AlreadyExists."""
        key = (loaded.spec.model, loaded.spec.version)
        if key in self._ready:
            raise AlreadyExists(f"model {key[0]!r} version {key[1]} is open here already; remove that copy first")
        self._put(key, loaded)

    def exchange(self, loaded: LoadedModel) -> LoadedModel | None:
        """From now on it answers in the place of the copy of that version, which the caller lets go of."""
        key = (loaded.spec.model, loaded.spec.version)
        before = self._ready.get(key)
        self._put(key, loaded)
        return before

    async def remove(self, model: ModelName, version: ModelVersion, *, grace_s: float | None = None) -> None:
        """Take no more requests, let those in flight end (for at most the grace), free it. Raises UnknownModel."""
        loaded = self._ready.pop((model, version), None)
        if loaded is None:
            raise UnknownModel(f"model {model!r} version {version} is not open here")
        self._since_s.pop((model, version), None)
        self._settle(model)
        await self.let_go(loaded, grace_s)

    def get(self, model: str, version: str = "") -> LoadedModel:
        """That version, or the newest. Raises UnknownModel."""
        loaded = self._ready.get((model, version)) if version else self._newest.get(model)
        if loaded is None:
            raise UnknownModel(self._unknown(model, version))
        return loaded

    def versions(self, model: str) -> list[str]:
        """Ready ones, oldest first."""
        return sorted((version for name, version in list(self._ready) if name == model), key=int)

    @property
    def leaving(self) -> list[LoadedModel]:
        """Copies that finish what they have."""
        return list(self._leaving)

    def usage(self) -> Mapping[tuple[ModelName, ModelVersion], Usage]:
        """How each copy is used; one that nobody used yet counts from when it began to answer."""
        return {
            (loaded.spec.model, loaded.spec.version): Usage(
                loaded.busy, max(self._since_s[key], loaded.statistics.last_inference_ms / 1000)
            )
            for key, loaded in self._ready.items()
        }

    @property
    def queued_rows(self) -> int:
        return sum(loaded.queued_rows for loaded in self._ready.values())

    def __iter__(self) -> Iterator[LoadedModel]:
        return iter(list(self._ready.values()))

    def __len__(self) -> int:
        return len(self._ready)

    def _put(self, key: tuple[str, str], loaded: LoadedModel) -> None:
        self._ready[key], self._since_s[key] = loaded, self._wall_s()
        self._settle(key[0])

    async def let_go(self, loaded: LoadedModel, grace_s: float | None) -> None:
        """Let the requests of a copy that answers no more end (for at most the grace), and free it."""
        self._leaving.append(loaded)
        try:
            async with asyncio.timeout(grace_s):
                await loaded.drained()
        except TimeoutError:
            _log.warning("drain_cut_short", model=loaded.spec.model, version=loaded.spec.version, grace_s=grace_s)
        finally:
            loaded.close()
            self._leaving.remove(loaded)

    def _settle(self, model: str) -> None:
        versions = self.versions(model)
        if versions:
            self._newest[model] = self._ready[model, versions[-1]]
        else:
            self._newest.pop(model, None)

    def _unknown(self, model: str, version: str) -> str:
        if model not in self._newest:
            return f"Request for unknown model: '{model}' is not found"
        ready = ", ".join(self.versions(model))
        return f"Request for unknown model: '{model}' version {version} is not found; ready here: {ready}"
