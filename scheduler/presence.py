"""Whom to believe: a signed presence becomes a member of the fleet, or a refusal with its kind.

A record is believed when the mesh certified its signer as a worker and has not revoked it, it lies under that very worker's
key, it says what it is, and it is not an older one put back: its sequence is above the last one seen of this worker. The very
last record may be written again, as a worker does when its lease is granted anew. A record that arrives as a live change must
be of about now; one found in a snapshot may be old, because etcd may have been away.

Remembers the last sequence of every worker, also of those that left. Never decides who is in the fleet: `scheduler.fleet`
does.
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


class PresenceRefused(PenstockError, code=Code.PERMISSION_DENIED, reason="PRESENCE_REFUSED"):
    """A presence that is not believed."""

    def __init__(self, doubt: Doubt, message: str) -> None:
        super().__init__(message)
        self.doubt = doubt


class PresenceReader:
    """Reads presence records of one mesh."""

    def __init__(self, verifier: RecordVerifier) -> None:
        self._verifier = verifier
        self._last: OrderedDict[WorkerId, tuple[int, bytes]] = OrderedDict()

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
        self._check_sequence(facts, record.payload)
        worker = dataclasses.replace(facts.worker, tenants=record.signer.tenants)
        return Member(worker, item.key, record.payload, facts.shown)

    def _check_sequence(self, facts: PresenceFacts, payload: bytes) -> None:
        worker, digest = facts.worker, hashlib.blake2b(payload, digest_size=16).digest()
        last_sequence, last_digest = self._last.get(worker.worker_id, (0, b""))
        if worker.sequence < last_sequence or (worker.sequence == last_sequence and digest != last_digest):
            raise PresenceRefused(
                Doubt.REPLAYED,
                f"worker {worker.worker_id} is past number {last_sequence}, and this record is number {worker.sequence}",
            )
        self._last[worker.worker_id] = (worker.sequence, digest)
        self._last.move_to_end(worker.worker_id)
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
