"""The models that answer here: finding them, letting them go.

Owns the table of open copies. `copies.py` opens them; which ones are wanted is the reconciler's question.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import structlog

from runtime.errors import AlreadyExists, Code, PenstockError
from runtime.ids import ModelName, ModelVersion
from worker.copies import LoadedModel

_log = structlog.get_logger("penstock.models")


class UnknownModel(PenstockError, code=Code.NOT_FOUND, reason="MODEL_NOT_FOUND"):
    """No ready copy of that model or version is here."""


class ModelTable:
    """The copies that answer. Used on the loop; metrics may read it from their own thread."""

    def __init__(self) -> None:
        self._ready: dict[tuple[str, str], LoadedModel] = {}
        self._newest: dict[str, LoadedModel] = {}
        self._leaving: dict[tuple[str, str], LoadedModel] = {}

    def add(self, loaded: LoadedModel) -> None:
        """From now on it answers. Raises AlreadyExists."""
        key = (loaded.spec.model, loaded.spec.version)
        if key in self._ready:
            raise AlreadyExists(f"model {key[0]!r} version {key[1]} is open here already; remove that copy first")
        self._ready[key] = loaded
        self._settle(loaded.spec.model)

    async def remove(self, model: ModelName, version: ModelVersion, *, grace_s: float | None = None) -> None:
        """Take no more requests, let those in flight end (for at most the grace), free it. Raises UnknownModel."""
        loaded = self._ready.pop((model, version), None)
        if loaded is None:
            raise UnknownModel(f"model {model!r} version {version} is not open here")
        self._settle(model)
        self._leaving[model, version] = loaded
        try:
            async with asyncio.timeout(grace_s):
                await loaded.drained()
        except TimeoutError:
            _log.warning("drain_cut_short", model=model, version=version, grace_s=grace_s)
        finally:
            loaded.close()
            if self._leaving.get((model, version)) is loaded:
                del self._leaving[model, version]

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
        return list(self._leaving.values())

    @property
    def queued_rows(self) -> int:
        return sum(loaded.queued_rows for loaded in self._ready.values())

    def __iter__(self) -> Iterator[LoadedModel]:
        return iter(list(self._ready.values()))

    def __len__(self) -> int:
        return len(self._ready)

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
