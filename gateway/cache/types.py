"""The nouns of the response cache: what an answer is kept under, what is kept, and how much of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from runtime.ids import Digest

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class CacheSettings:
    max_bytes: int = 64 * MIB
    """Keys, answers and what it takes to keep them."""
    ttl_s: float = 3600.0
    """How long an answer is given again; 0 = as long as there is room."""
    waiting: int = 1024
    """Requests that wait for an equal one at once; more are sent to workers themselves."""

    @property
    def answer_bytes(self) -> int:
        """Of one answer at most: no answer takes the place of many."""
        return self.max_bytes // 16


class Key(NamedTuple):
    """Under what an answer is kept. Tenants share no answers, whatever else they share."""

    tenant: str
    digest: Digest
    """Of the model's version, by its signed manifest."""
    method: str
    """The value of a `gateway.links.types.Method`; an enum's member takes longer to hash."""
    request: bytes
    """sha256 of its canonical form."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, whole, as a worker gave it; without the request's own id."""

    messages: tuple[bytes, ...]
    size_bytes: int


def answer_of(messages: list[bytes]) -> Answer:
    return Answer(tuple(messages), sum(map(len, messages)))


@dataclass(slots=True)
class CacheCounts:
    """What one model version's requests found here, as Triton's statistics have it."""

    hits: int = 0
    hit_ns: int = 0
    """From looking to having it, added up."""
    misses: int = 0
    miss_ns: int = 0
    """For looking and keeping; the worker's time is the worker's."""
