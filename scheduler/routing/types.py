"""What is asked of an explanation, and what is answered."""

from __future__ import annotations

from dataclasses import dataclass

from placement.routing.explain import Considered
from placement.types import Decision, Strategy
from runtime.ids import ModelName, ModelVersion, Region, TenantId, WorkerId


@dataclass(frozen=True, slots=True)
class Question:
    """A request that may never be sent."""

    model: ModelName
    version: ModelVersion
    region: Region
    """Empty: the scheduler's own."""
    tenant: TenantId
    session_key: str
    """As the application names it."""
    prompt: str
    exclude: frozenset[WorkerId]
    strategy: Strategy | None
    """None: what the policy says."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What would become of it, by everybody's word."""

    decision: Decision
    strategy: Strategy
    rules: tuple[str, ...]
    considered: tuple[Considered, ...]
    shadow_strategy: Strategy | None
    shadow: Decision | None
