"""API keys in memory: asked of the registry on a miss, forgotten when a notice says that they changed.

A key that is known keeps working while the registry is away, until it expires by itself; one that is not known cannot be let in
then. Only hashes are kept. Owns the cache and its look-ups: one at a time for each key, a bounded number for all. Notices that
may have been missed while etcd was away are made up for: every key is asked for anew at its next use.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import structlog

from gateway.admission import KeyFacts, KeyRefused
from runtime.clock import Clock
from runtime.errors import Code, NotFound, PenstockError
from runtime.ids import KeyId

_log = structlog.get_logger("penstock.keys")
K = TypeVar("K")
V = TypeVar("V")


class KeysUnavailable(PenstockError, code=Code.UNAVAILABLE, reason="KEYS_UNAVAILABLE"):
    """Whether this key is good cannot be found out now."""


class KeyDirectory(Protocol):
    """Who knows the keys."""

    async def resolve(self, secret_sha256: bytes) -> KeyFacts:
        """Raises NotFound where there is no live key with this hash, Unavailable and the like where nobody can tell."""
        ...


@dataclass(frozen=True, slots=True)
class KeyLimits:
    known: int = 100_000
    refused: int = 10_000
    lookups: int = 64
    fresh_s: float = 60.0
    refused_s: float = 5.0
    retry_s: float = 5.0
    """How long a known key is left alone after the registry could not be asked about it."""


@dataclass(slots=True)
class KnownKey:
    """A key that was good when it was last asked for."""

    facts: KeyFacts
    fresh_until_s: float
    doubted: bool = False
    """A change may have been missed: ask before it is used, if anybody answers."""


class Keys:
    """Belongs to one event loop; `close` ends look-ups that are under way."""

    def __init__(self, directory: KeyDirectory, clock: Clock, limits: KeyLimits | None = None) -> None:
        self._directory, self._clock, self._limits = directory, clock, limits or KeyLimits()
        self._known: OrderedDict[bytes, KnownKey] = OrderedDict()
        self._digests: dict[KeyId, bytes] = {}
        """Of known keys; may name some that are known no more."""
        self._changed: OrderedDict[KeyId, bytes] = OrderedDict()
        """Of keys that were known before they changed."""
        self._refused: OrderedDict[bytes, float] = OrderedDict()
        self._lookups: dict[bytes, asyncio.Task[KnownKey]] = {}
        self._changes = self._refreshes = 0

    async def find(self, secret: str) -> KnownKey:
        """Raises KeyRefused, KeysUnavailable."""
        digest = hashlib.sha256(secret.encode()).digest()
        known, now_s = self._known.get(digest), self._clock.monotonic_s()
        if known is None:
            if self._refused.get(digest, 0.0) > now_s:
                raise _refusal()
            return await self._ask(digest)
        if known.facts.expires_at_s and self._clock.wall_s() >= known.facts.expires_at_s:
            raise _refusal()
        if now_s >= known.fresh_until_s:
            if known.doubted:
                return await self._ask(digest)
            self._begin(digest)  # changes are pushed: this one serves meanwhile
        self._known.move_to_end(digest)
        return known

    def forget(self, key_ids: Sequence[KeyId]) -> None:
        """These changed: the next to use one has to ask."""
        self._changes += 1
        self._refused.clear()
        for key_id in key_ids:
            digest = self._digests.pop(key_id, None)
            if digest is not None:
                self._known.pop(digest, None)
                _remember(self._changed, key_id, digest, self._limits.known)

    async def stands(self, key_id: KeyId) -> bool | None:
        """Whether this key is still good: the registry is asked by its hash once it was told that the key changed.

        None: nobody can tell, because the key was not used at this gateway since it began, or the registry is away.
        """
        digest = self._digests.get(key_id) or self._changed.get(key_id)
        if digest is None:
            return None
        if self._refused.get(digest, 0.0) > self._clock.monotonic_s():
            return False
        try:
            known = self._known.get(digest) or await self._ask(digest)
            if known.doubted:
                known = await self._ask(digest)
        except KeyRefused:
            return False
        except KeysUnavailable:
            return None
        return not known.facts.expires_at_s or self._clock.wall_s() < known.facts.expires_at_s

    async def close(self) -> None:
        for task in self._lookups.values():
            task.cancel()
        await asyncio.gather(*self._lookups.values(), return_exceptions=True)

    def refresh_all(self) -> None:
        """What limits them changed: each key is asked for anew at its next use, and serves meanwhile."""
        self._refreshes += 1
        for known in self._known.values():
            known.fresh_until_s = 0.0

    def knows(self, secret: str) -> bool:
        """Whether this key was good when it was last asked for."""
        return hashlib.sha256(secret.encode()).digest() in self._known

    def doubt_all(self) -> None:
        """Changes may have been missed: each key is asked for before it is used again, if anybody answers."""
        self._changes += 1
        self._refused.clear()
        for known in self._known.values():
            known.fresh_until_s, known.doubted = 0.0, True

    async def _ask(self, digest: bytes) -> KnownKey:
        return await asyncio.shield(self._begin(digest))

    def _begin(self, digest: bytes) -> asyncio.Task[KnownKey]:
        task = self._lookups.get(digest)
        if task is None:
            if len(self._lookups) >= self._limits.lookups and digest not in self._known:
                raise KeysUnavailable("too many unknown API keys are being looked up; try again", retry_after_s=0.5)
            self._lookups[digest] = task = asyncio.create_task(self._look_up(digest), name="key-lookup")
            task.add_done_callback(lambda done: self._done(digest, done))
        return task

    def _done(self, digest: bytes, task: asyncio.Task[KnownKey]) -> None:
        del self._lookups[digest]
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, PenstockError):
            _log.error("key_lookup_failed", exc_info=error)

    async def _look_up(self, digest: bytes) -> KnownKey:
        changes, refreshes = self._changes, self._refreshes
        try:
            facts = await self._directory.resolve(digest)
        except NotFound:
            self._known.pop(digest, None)
            _remember(self._refused, digest, self._clock.monotonic_s() + self._limits.refused_s, self._limits.refused)
            raise _refusal() from None
        except PenstockError as error:
            return self._unanswered(digest, error)
        fresh_until_s = self._clock.monotonic_s() + self._limits.fresh_s
        found = KnownKey(facts, fresh_until_s)
        if changes != self._changes:  # a change passed this answer on the way: it may be the older one
            found.fresh_until_s, found.doubted = 0.0, True
        elif refreshes != self._refreshes:
            found.fresh_until_s = 0.0
        _remember(self._known, digest, found, self._limits.known)
        self._digests[facts.key_id] = digest
        if len(self._digests) > 2 * self._limits.known:
            self._digests = {known.facts.key_id: each for each, known in self._known.items()}
        return found

    def _unanswered(self, digest: bytes, error: PenstockError) -> KnownKey:
        known = self._known.get(digest)
        if known is None:
            raise KeysUnavailable(
                "this API key is not known here yet and the registry does not answer; try again", retry_after_s=1.0
            ) from error
        known.fresh_until_s = self._clock.monotonic_s() + self._limits.retry_s
        return known


def _refusal() -> KeyRefused:
    return KeyRefused("this API key is unknown, expired or revoked; `penstock keys create` makes one")


def _remember(cache: OrderedDict[K, V], key: K, value: V, at_most: int) -> None:
    cache[key] = value
    cache.move_to_end(key)
    while len(cache) > at_most:
        cache.popitem(last=False)
