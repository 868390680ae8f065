"""Which models a key may see, as GET /v1/models lists them: those that answer, and those that will when somebody asks.

Owns a short memory of when versions were published. What the fleet serves is the fleet's to say: while the registry is away the
list stays whole, and a time that is not known is 0.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from gateway.openai.types import Fleet, Registry
from gateway.types import PublishedVersion
from placement.copies.wishes import Placement
from placement.types import CopyState, newest
from runtime.errors import Code, PenstockError
from runtime.ids import Digest, ModelVersion

_FRESH_S = 30.0
_OWNER = "penstock"


class ModelNotServed(PenstockError, code=Code.NOT_FOUND, reason="MODEL_NOT_SERVED"):
    """The fleet does not serve this model, or not to this key: which one is nobody's business."""


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model that answers; `digest` and `task` (empty: not known) are of its newest version."""

    model: str
    digest: Digest
    task: str
    capabilities: frozenset[str] = frozenset()
    """What it may be asked besides, as far as that is known."""
    context_tokens: int = 0
    """Prompt and answer together; 0 = not known."""


class Catalogue:
    def __init__(self, fleet: Fleet, registry: Registry, now_s: Callable[[], float]) -> None:
        self._fleet, self._registry, self._now_s = fleet, registry, now_s
        self._published: dict[Digest, PublishedVersion] = {}
        self._asked_at_s = -_FRESH_S

    async def all(self, allows: Callable[[str], bool]) -> bytes:
        ready = [each for each in self._listed(self._fleet.view.models) if allows(each.model)]
        names = {each.model for each in ready}
        listed = [*ready, *(each for each in self._on_demand() if each.model not in names and allows(each.model))]
        await self._learn(listed)
        listed.sort(key=lambda each: each.model)
        return json.dumps({"object": "list", "data": [self._shown(each) for each in listed]}).encode()

    async def one(self, name: str, model: str, version: str) -> bytes:
        """Under the name that the caller gave it. Raises ModelNotServed."""
        listed = self._listed([model], version) or [each for each in self._on_demand(version) if each.model == model]
        if not listed:
            raise not_served(name)
        await self._learn(listed)
        return json.dumps(self._shown(replace(listed[0], model=name))).encode()

    def _listed(self, models: Iterable[str], version: str = "") -> list[ListedModel]:
        found = []
        for model in sorted(models):
            ready = {copy.version: copy for _, copy in self._fleet.copies(model, version) if copy.state is CopyState.READY}
            if ready:
                copy = ready[newest(ready)]
                found.append(ListedModel(model, copy.digest, copy.task, copy.capabilities, copy.context_tokens))
        return found

    def _on_demand(self, version: str = "") -> list[ListedModel]:
        """Models of which no copy need be there until somebody asks; of each the newest version."""
        wishes: dict[str, dict[ModelVersion, Placement]] = {}
        for wish in self._fleet.wanted():
            if not wish.copies and version in ("", wish.version):
                wishes.setdefault(wish.model, {})[wish.version] = wish
        return [ListedModel(model, found[newest(found)].digest, "") for model, found in wishes.items()]

    async def _learn(self, listed: Iterable[ListedModel]) -> None:
        """Ask when these were published, unless that is known or was just asked."""
        now_s = self._now_s()
        if now_s < self._asked_at_s + _FRESH_S or all(each.digest in self._published for each in listed):
            return
        self._asked_at_s = now_s
        try:
            self._published = {each.digest: each for each in await self._registry.published()}
        except PenstockError:  # the registry is away
            return

    def _shown(self, each: ListedModel) -> dict[str, object]:
        known = self._published.get(each.digest)
        created, task = (known.published_at_s, known.task) if known is not None else (0, "")
        return {
            "id": each.model,
            "object": "model",
            "created": created,
            "owned_by": _OWNER,
            "task": each.task or task,
            "capabilities": sorted(each.capabilities),
            "context_tokens": each.context_tokens or None,
        }


def not_served(name: str) -> ModelNotServed:
    return ModelNotServed(f"the model {name[:200]!r} is not served here, or not to this key; GET /v1/models lists those")
