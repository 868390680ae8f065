"""Keys with revisions, leases and watches: the words every service says to the mesh's shared memory.

Owns what a key, a change, a condition and a lease are, the failures of asking for them, and the Protocol that etcd and the
in-memory store both keep. Never knows which of them answers.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from runtime.errors import Code, PenstockError


class EtcdUnavailable(PenstockError, code=Code.UNAVAILABLE, reason="ETCD_UNAVAILABLE"):
    """No etcd member answered. What was asked did not happen, unless it is an OutcomeUnknown."""


class OutcomeUnknown(EtcdUnavailable, code=Code.UNAVAILABLE, reason="ETCD_OUTCOME_UNKNOWN"):
    """A write was sent and no answer came: it may have happened. Read before writing again."""


class EtcdOverloaded(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="ETCD_OVERLOADED"):
    """etcd takes no more requests for the moment."""


class EtcdFull(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="ETCD_FULL"):
    """etcd's database has reached its quota; an operator has to compact, defragment and disarm the alarm."""


class EtcdAccessRefused(PenstockError, code=Code.FAILED_PRECONDITION, reason="ETCD_ACCESS_REFUSED"):
    """etcd does not take this process's user, password or rights; an operator has to change one of them."""


class EtcdRequestRefused(PenstockError, code=Code.INVALID_ARGUMENT, reason="ETCD_REQUEST_REFUSED"):
    """etcd will never accept this request: too large, no key, a key twice in one transaction."""


class EtcdFailed(PenstockError, code=Code.INTERNAL, reason="ETCD_FAILED"):
    """etcd answered something that is in no table of ours."""


class LeaseNotFound(PenstockError, code=Code.NOT_FOUND, reason="LEASE_NOT_FOUND"):
    """The lease has expired, was revoked, or belongs to a store that is gone."""


class RevisionGone(PenstockError, code=Code.OUT_OF_RANGE, reason="REVISION_GONE"):
    """The history does not hold that revision: it is compacted, or the store is another one than it was."""


class LeaseFull(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="LEASE_FULL"):
    """One lease carries no more keys."""


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key as it was at `mod_revision`."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease_id: int = 0


@dataclass(frozen=True, slots=True)
class Put:
    """A key was written."""

    item: KeyValue

    @property
    def key(self) -> str:
        return self.item.key


@dataclass(frozen=True, slots=True)
class Delete:
    """A key was deleted, or its lease ended."""

    key: str
    mod_revision: int


Event: TypeAlias = Put | Delete


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything under a prefix, as of a revision, in the order of the keys. In a watch it replaces all that was known."""

    items: tuple[KeyValue, ...]
    revision: int


@dataclass(frozen=True, slots=True)
class Changes:
    """What happened since the last update of a watch, in order, whole up to `revision`."""

    events: tuple[Event, ...]
    revision: int


class Aspect(enum.Enum):
    """The number of a key that a condition looks at. All are 0 for a key that does not exist."""

    CREATE_REVISION = "create_revision"
    MOD_REVISION = "mod_revision"
    VERSION = "version"
    LEASE_ID = "lease_id"


@dataclass(frozen=True, slots=True)
class Compare:
    """A condition: this number of the key equals that."""

    key: str
    aspect: Aspect
    equals: int


def absent(key: str) -> Compare:
    """The key does not exist."""
    return Compare(key, Aspect.CREATE_REVISION, 0)


def unchanged(key: str, mod_revision: int) -> Compare:
    """The key was last written at that revision; 0: it does not exist."""
    return Compare(key, Aspect.MOD_REVISION, mod_revision)


def created_at(key: str, create_revision: int) -> Compare:
    """The key is the one that came into being at that revision: what fences a leader's writes."""
    return Compare(key, Aspect.CREATE_REVISION, create_revision)


@dataclass(frozen=True, slots=True)
class Write:
    """Step of a transaction: write the key; with a lease it goes away with the lease, with 0 it stays."""

    key: str
    value: bytes
    lease_id: int = 0


@dataclass(frozen=True, slots=True)
class Remove:
    """Step of a transaction: delete the key if it is there."""

    key: str


@dataclass(frozen=True, slots=True)
class Read:
    """Step of a transaction: get the key."""

    key: str


Step: TypeAlias = Write | Remove | Read


@dataclass(frozen=True, slots=True)
class TxnResult:
    """Which list of steps was taken, the store's revision after it, and what its Read steps found, in their order."""

    succeeded: bool
    revision: int
    reads: tuple[KeyValue | None, ...] = ()


class Watch(Protocol):
    """What happens under a prefix: first a Snapshot, then Changes; a Snapshot again when the history could not be followed.

    Iterating never ends. Waiting for the next update may be cancelled; nothing is lost by it.
    """

    def __aiter__(self) -> Watch: ...

    async def __anext__(self) -> Snapshot | Changes: ...

    @property
    def connected(self) -> bool:
        """Whether changes arrive as they happen."""
        ...

    @property
    def synced_age_s(self) -> float:
        """For how long changes may have been missed: 0 while connected, infinite before the first snapshot."""
        ...


class Lease(Protocol):
    """Keys that live as long as this process does. It renews itself, and after a loss is granted anew and writes them again.

    `put` and `delete` say what should be there and return at once; the lease brings it about, also when etcd is away for now.
    """

    @property
    def id(self) -> int:
        """The lease there is; 0 while there is none. It changes after a loss: read it when it is needed, never keep it."""
        ...

    @property
    def healthy(self) -> bool:
        """Whether the lease is held for certain: granted, and not past its time by our own clock."""
        ...

    @property
    def settled(self) -> bool:
        """Whether it is healthy and every key is as it should be."""
        ...

    def put(self, key: str, value: bytes) -> None:
        """This key has this value from now on. Raises LeaseFull."""
        ...

    def delete(self, key: str) -> None:
        """This key is not to be there any more."""
        ...

    async def changed(self) -> None:
        """Return when id, healthy or settled changes next."""
        ...

    async def settle(self) -> None:
        """Return once it is settled. Put `asyncio.timeout` around it: etcd may be away for long."""
        ...


class KeyValueStore(Protocol):
    """The mesh's shared memory. Reads see every write that was answered before them."""

    async def get(self, key: str) -> KeyValue | None: ...

    async def range(self, prefix: str) -> Snapshot:
        """Everything under the prefix, as of one revision."""
        ...

    async def put(self, key: str, value: bytes, *, lease_id: int = 0) -> int:
        """Write, and return the revision. Raises LeaseNotFound; OutcomeUnknown if it may have happened."""
        ...

    async def delete(self, key: str) -> bool:
        """Delete, and say whether it was there."""
        ...

    async def delete_prefix(self, prefix: str) -> int:
        """Delete everything under the prefix, and say how many keys that were."""
        ...

    async def txn(self, compares: Sequence[Compare], success: Sequence[Step], failure: Sequence[Step] = ()) -> TxnResult:
        """If every condition holds take the first steps, else the second, as one revision. No key may be written twice."""
        ...

    def watch(self, prefix: str) -> AbstractAsyncContextManager[Watch]:
        """Follow a prefix while the context lasts. Entering does not wait for etcd."""
        ...

    def lease(self, *, ttl_s: int = 15) -> AbstractAsyncContextManager[Lease]:
        """Hold a lease while the context lasts; leaving revokes it. Entering does not wait for etcd."""
        ...
