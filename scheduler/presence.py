"""Whom to believe: a signed presence becomes a member of the fleet, or a refusal with its kind.

A record is believed when the mesh certified its signer as a worker and has not revoked it, it lies under that very worker's
key, it says what it is, and it is not an older one put back: its sequence is above the last one seen of this worker. The very
last record may be written again, as a worker does when its lease is granted anew. A record that arrives as a live change must
be of about now; one found in a snapshot may be old, because etcd may have been away.

Two processes with one identity would write one key in turns. The younger lease is believed, as after a restart; what still
comes under an older one is not, until the younger has been silent for as long as a lease lasts.

Remembers the last sequence and the last leases of every worker, also of those that left. Never decides who is in the fleet:
`scheduler.fleet` does.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
from collections import OrderedDict

from runtime.errors import Code, InvalidArgument, PenstockError
from runtime.identity import Role
from runtime.ids import NodeId, WorkerId, presence_key
from runtime.keyvalue import KeyValue
from runtime.records import RecordRefused, RecordVerifier
from scheduler.codec import PresenceFacts, presence_facts
from scheduler.types import Member

MAX_SKEW_S = 60.0
SILENCE_S = 15.0
"""After so long without a word a lease is as good as ended."""

_OLDER_LEASES = 4
_REMEMBERED = 50_000
"""Workers whose last sequence is kept: several times the fleet that one scheduler is made for."""


class Doubt(enum.Enum):
    """Why a record is not believed; a label of the refusal metric."""

    NOT_AUTHENTIC = "not_authentic"
    NOT_A_WORKER = "not_a_worker"
    MALFORMED = "malformed"
    MISPLACED = "misplaced"
    REPLAYED = "replayed"
    SKEWED = "skewed"
    TWICE = "twice"


class PresenceRefused(PenstockError, code=Code.PERMISSION_DENIED, reason="PRESENCE_REFUSED"):
    """A presence that is not believed."""

    def __init__(self, doubt: Doubt, message: str) -> None:
        super().__init__(message)
        self.doubt = doubt


@dataclasses.dataclass(frozen=True, slots=True)
class _Last:
    """What is remembered of one worker."""

    sequence: int
    digest: bytes
    lease_id: int
    older_leases: tuple[int, ...]
    heard_wall_s: float


class PresenceReader:
    """Reads presence records of one mesh."""

    def __init__(self, verifier: RecordVerifier) -> None:
        self._verifier = verifier
        self._last: OrderedDict[WorkerId, _Last] = OrderedDict()

    def read(self, item: KeyValue, *, now_wall_s: float, live: bool) -> Member:
        """The member that this record makes. Raises PresenceRefused."""
        try:
            record = self._verifier.open(item.value, now_wall_s=now_wall_s)
            facts = presence_facts(record.payload)
        except RecordRefused as error:
            raise PresenceRefused(Doubt.NOT_AUTHENTIC, error.message) from error
        except InvalidArgument as error:
            raise PresenceRefused(Doubt.MALFORMED, error.message) from error
        if record.signer.role is not Role.WORKER:
            raise PresenceRefused(
                Doubt.NOT_A_WORKER, f"node {record.signer.node_id} is a {record.signer.role.value}, no worker"
            )
        _check_place(item.key, facts, record.signer.node_id)
        _check_time(facts, now_wall_s, live=live)
        self._check_order(facts, record.payload, item.lease_id, now_wall_s)
        worker = dataclasses.replace(facts.worker, tenants=record.signer.tenants)
        return Member(worker, item.key, record.payload, facts.shown, item.value)

    def _check_order(self, facts: PresenceFacts, payload: bytes, lease_id: int, now_wall_s: float) -> None:
        who, sequence = facts.worker.worker_id, facts.worker.sequence
        digest = hashlib.blake2b(payload, digest_size=16).digest()
        last = self._last.get(who) or _Last(0, b"", lease_id, (), now_wall_s)
        if sequence < last.sequence or (sequence == last.sequence and digest != last.digest):
            raise PresenceRefused(
                Doubt.REPLAYED, f"worker {who} is past number {last.sequence}, and this record is number {sequence}"
            )
        if lease_id in last.older_leases and now_wall_s - last.heard_wall_s < SILENCE_S:
            raise PresenceRefused(
                Doubt.TWICE, f"two processes have the identity of worker {who}; the one that began earlier is not believed"
            )
        older = last.older_leases
        if lease_id != last.lease_id:
            older = (*(each for each in older if each != lease_id), last.lease_id)[-_OLDER_LEASES:]
        self._last[who] = _Last(sequence, digest, lease_id, older, now_wall_s)
        self._last.move_to_end(who)
        if len(self._last) > _REMEMBERED:
            self._last.popitem(last=False)


def _check_place(key: str, facts: PresenceFacts, signer: NodeId) -> None:
    worker = facts.worker
    if worker.worker_id != WorkerId(signer):
        raise PresenceRefused(Doubt.MISPLACED, f"node {signer} signed a presence of {worker.worker_id}")
    if key != presence_key(worker.region, worker.worker_id):
        raise PresenceRefused(
            Doubt.MISPLACED, f"the presence of {worker.worker_id} in region {worker.region!r} lies under another key: {key}"
        )


def _check_time(facts: PresenceFacts, now_wall_s: float, *, live: bool) -> None:
    ahead_s = facts.wall_time_s - now_wall_s
    if ahead_s > MAX_SKEW_S or (live and ahead_s < -MAX_SKEW_S):
        raise PresenceRefused(
            Doubt.SKEWED,
            f"the presence of {facts.worker.worker_id} is dated {ahead_s:+.0f} s from now; at most {MAX_SKEW_S:.0f} s are "
            "allowed, so set the clocks of both machines",
        )
