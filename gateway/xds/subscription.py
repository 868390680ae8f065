"""What one discovery stream is owed: subscriptions, ACKs and NACKs of the state-of-the-world protocol.

Pure: requests and snapshots go in, replies come out. No clock, no stream, no message class.

    first request ──▶ owed ──reply──▶ sent ──ACK──▶ acknowledged ──new version or new names──▶ owed
                                        └───NACK──▶ rejected (kept; the same version is not sent again)

Source: the xDS protocol, "ACK/NACK and resource type instance version", "Resource hints in state-of-the-world".
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway.xds.snapshot import Resource, ResourceType, Snapshot

WILDCARD = "*"


@dataclass(frozen=True, slots=True)
class Request:
    """What Envoy said: a subscription where the nonce is empty, else an ACK, or a NACK where it carries a rejection."""

    kind: ResourceType
    names: frozenset[str] = frozenset()
    version: str = ""
    nonce: str = ""
    rejection: str | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What Envoy is told."""

    kind: ResourceType
    version: str
    nonce: str
    resources: tuple[Resource, ...]


@dataclass(frozen=True, slots=True)
class Rejection:
    """A version that Envoy refused, and why, in its own words."""

    version: str
    detail: str


@dataclass(slots=True)
class Subscription:
    """One type on one stream. `acknowledged` is what Envoy runs with; `rejected` what it was last sent and refused."""

    kind: ResourceType
    names: frozenset[str] = frozenset()
    named_once: bool = False
    owed: bool = False
    sent_version: str | None = None
    sent_nonce: str = ""
    acknowledged: str | None = None
    rejected: Rejection | None = None

    @property
    def wildcard(self) -> bool:
        """LDS and CDS start as "everything"; a stream that once named something asks for what it names."""
        return WILDCARD in self.names or (self.kind.whole and not self.named_once)

    def take(self, request: Request) -> None:
        """Note what Envoy said. An answer to anything but the last reply is stale and says nothing."""
        if request.nonce and request.nonce != self.sent_nonce:
            return
        renamed = self._rename(request.names)
        if not request.nonce:
            self.owed = True
        elif request.rejection is not None:
            self.rejected = Rejection(self.sent_version or "", request.rejection)
        else:
            self.acknowledged, self.rejected = request.version, None
        self.owed = self.owed or renamed

    def due(self, version: str) -> bool:
        """Whether a reply at this version is owed."""
        return self.owed or (self.sent_version is not None and version != self.sent_version)

    def wanted(self, resources: tuple[Resource, ...]) -> tuple[Resource, ...]:
        """Those that this stream asked for."""
        if self.wildcard:
            return resources
        return tuple(resource for resource in resources if resource.name in self.names)

    def _rename(self, names: frozenset[str]) -> bool:
        renamed = names != self.names
        self.names = names
        self.named_once = self.named_once or bool(names - {WILDCARD})
        return renamed


@dataclass(slots=True)
class Subscriptions:
    """All types of one stream."""

    by_kind: dict[ResourceType, Subscription] = field(default_factory=dict)
    nonces: int = 0

    def take(self, request: Request) -> Subscription:
        """Note what Envoy said, and return the subscription it belongs to."""
        subscription = self.by_kind.setdefault(request.kind, Subscription(request.kind))
        subscription.take(request)
        return subscription

    def due(self, snapshot: Snapshot) -> list[Reply]:
        """The replies owed now, in the order to send them; they count as sent."""
        replies: list[Reply] = []
        for kind in ResourceType:
            subscription = self.by_kind.get(kind)
            if subscription is not None and subscription.due(snapshot.versions[kind]):
                replies.append(self._reply(subscription, snapshot))
        return replies

    def settled(self, snapshot: Snapshot) -> bool:
        """Whether Envoy runs with all of this snapshot, of the types that it asked for."""
        return bool(self.by_kind) and all(
            not subscription.owed
            and subscription.acknowledged == snapshot.versions[kind]
            # What it has not asked for yet is what something new waits for, such as a listener for its certificate.
            and len(subscription.wanted(snapshot.resources[kind])) == len(snapshot.resources[kind])
            for kind, subscription in self.by_kind.items()
        )

    def _reply(self, subscription: Subscription, snapshot: Snapshot) -> Reply:
        kind = subscription.kind
        version = snapshot.versions[kind]
        self._owe_dependent(subscription, version)
        self.nonces += 1
        subscription.sent_version, subscription.sent_nonce, subscription.owed = version, str(self.nonces), False
        return Reply(kind, version, subscription.sent_nonce, subscription.wanted(snapshot.resources[kind]))

    def _owe_dependent(self, subscription: Subscription, version: str) -> None:
        # A changed cluster warms until its endpoints arrive again, though they did not change; likewise listener and routes.
        dependent = self.by_kind.get(subscription.kind.dependent) if subscription.kind.dependent else None
        if dependent is not None and version != subscription.sent_version and dependent.sent_version is not None:
            dependent.owed = True
