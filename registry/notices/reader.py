"""Reads back what etcd has of a notice, as its readers will: what they would not believe is as good as missing."""

from __future__ import annotations

from datetime import UTC, datetime

from registry.notices.outbox import NoticeKind
from registry.notices.types import Subject, Told
from runtime.clock import Clock
from runtime.errors import Code, PenstockError
from runtime.identity import NodeIdentity
from runtime.ids import LIMITS_NOTICE_KEY, REGISTRY_PREFIX, NodeId
from runtime.keyvalue import KeyValue
from runtime.notice_records import key_notice_of, limits_notice_of, model_notice_of, node_notice_of
from runtime.records import RecordVerifier, sign_record

_KINDS = {f"{kind.value}s": kind for kind in (NoticeKind.MODEL, NoticeKind.KEY, NoticeKind.NODE)}
"""Of those that there are many of."""
_MARGIN_S = 86_400.0
"""Notices are signed anew so long before the certificate beside their signature expires."""


class CertificateExpired(PenstockError, code=Code.FAILED_PRECONDITION, reason="CERTIFICATE_EXPIRED"):
    """This registry's own certificate has run out: nobody believes what it signs."""


class ToldReader:
    """Checks records against this mesh's authority. Knows which nodes are revoked, as far as it was told."""

    def __init__(self, identity: NodeIdentity, clock: Clock) -> None:
        self._identity, self._clock = identity, clock
        self._verifier = RecordVerifier(identity.authority_pem)
        self.revoked: set[NodeId] = set()
        self._margin_s = 0.0

    @property
    def silenced(self) -> bool:
        """This very registry was revoked: nobody is to believe it, so it says nothing."""
        return self._identity.node_id in self.revoked

    def check_own(self) -> None:
        """Raises CertificateExpired. What nobody believes is not to be written: not found good, it would be again and again."""
        expires_wall_s = self._identity.certificate.expires_wall_s
        if self._clock.wall_s() > expires_wall_s:
            ended = datetime.fromtimestamp(expires_wall_s, UTC).isoformat(timespec="seconds")
            raise CertificateExpired(
                f"the certificate of registry {self._identity.node_id} ended at {ended}, and this machine's clock is past that;"
                " renew it, or set the clock. Others are told of nothing until then"
            )

    def look_ahead(self) -> None:
        """From now on doubt what will soon have expired, unless our own certificate ends before that: then signing anew would
        not help."""
        try:
            self._verifier.open(sign_record(self._identity, b""), now_wall_s=self._clock.wall_s() + _MARGIN_S)
            self._margin_s = _MARGIN_S
        except PenstockError:
            self._margin_s = 0.0

    def read(self, subject: Subject, item: KeyValue | None) -> Told:
        if item is None:
            return Told()
        try:
            record = self._verifier.open(item.value, now_wall_s=self._clock.wall_s() + self._margin_s)
            generation = 0
            if subject.kind is NoticeKind.MODEL:
                generation = model_notice_of(item.key, record).generation
            elif subject.kind is NoticeKind.NODE:
                node_notice_of(item.key, record)
            elif subject.kind is NoticeKind.LIMITS:
                generation = limits_notice_of(item.key, record).generation
            else:
                generation = key_notice_of(item.key, record).changed_at_ms
        except PenstockError:
            return Told(item)
        if record.signer.node_id in self.revoked:
            return Told(item)
        return Told(item, record.payload, generation)


def subject_at(key: str) -> Subject | None:
    """Whom the notice at this key is about; None for a key that is no notice's."""
    if key == LIMITS_NOTICE_KEY:
        return Subject(NoticeKind.LIMITS, "")
    kind, _, name = key.removeprefix(REGISTRY_PREFIX).partition("/")
    return Subject(_KINDS[kind], name) if key.startswith(REGISTRY_PREFIX) and kind in _KINDS and name else None
