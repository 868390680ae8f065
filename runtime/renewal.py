"""Keeps a node's certificate from expiring: asks the registry for a new one when two thirds of its lifetime are over.

Owns the loop, and `tls.pem` in the identity's folder once the node is enrolled. The TLS key stays, so that one file changes,
whole or not at all, and whoever reads the folder meanwhile (Envoy, a second process) finds a pair that fits. Takes over what
somebody else put there, such as `penstock join` after the certificate had expired. Never decides who may have a certificate.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc.aio
import structlog
from penstock.registry.v1 import nodes_pb2, nodes_pb2_grpc

from runtime.backoff import Backoff
from runtime.certificates import NodeCertificate
from runtime.channel import inner_channel
from runtime.clock import Clock, SystemClock
from runtime.enrolment import CertificateRefused, check_answer, same_authority, signed_request
from runtime.errors import FailedPrecondition, PenstockError
from runtime.identity import NodeIdentity, Role, load_identity, write_public
from runtime.revocations import NodeRevoked
from runtime.status import error_of

_log = structlog.get_logger("penstock.renewal")
_CALL_TIMEOUT_S = 30.0
_AGAIN = Backoff(first_s=5.0, max_s=600.0)


@dataclass(frozen=True, slots=True)
class RenewalRules:
    """When to renew, and how to try again."""

    due_after: float = 2 / 3
    """Of the lifetime; what is left is the time that a registry may be away."""
    spread: float = 0.05
    """Of the lifetime, at random: nodes that were enrolled together do not come together."""
    look_s: float = 600.0
    """How often to look at the clock and the folder. A machine that slept has missed its alarms."""
    again: Backoff = _AGAIN


def due_wall_s(certificate: NodeCertificate, rules: RenewalRules, spread: float) -> float:
    """When to renew; `spread` in [0, 1] is this process's part of the jitter."""
    lifetime_s = certificate.expires_wall_s - certificate.begins_wall_s
    return certificate.begins_wall_s + lifetime_s * (rules.due_after + rules.spread * (spread - 0.5))


class Renewal:
    """One identity's certificate, kept valid. Belongs to one event loop."""

    def __init__(
        self,
        identity: NodeIdentity,
        open_registry: Callable[[], grpc.aio.Channel],
        clock: Clock,
        rng: random.Random,
        rules: RenewalRules | None = None,
    ) -> None:
        self._identity, self._open_registry, self._clock, self._rng = identity, open_registry, clock, rng
        self._rules = rules or RenewalRules()
        self._spread, self._failures = rng.random(), 0

    async def run(self) -> None:
        """Until cancelled, or this node is revoked: then nothing helps any more."""
        while True:
            try:
                if await self.step():
                    expires_wall_s = int(self._identity.certificate.expires_wall_s)
                    _log.info("certificate_renewed", node_id=self._identity.node_id, expires_wall_s=expires_wall_s)
                self._failures = 0
            except NodeRevoked as error:
                _log.error("node_revoked", why=error.message)
                return
            except (PenstockError, OSError) as error:
                self._failures += 1
                expires_s = self._identity.certificate.expires_wall_s - self._clock.wall_s()
                _log.warning("certificate_not_renewed", why=str(error), expires_in_h=round(expires_s / 3600, 1))
            await self._clock.sleep(self._pause_s())

    async def step(self) -> bool:
        """Renew if it is due; whether there is a new certificate. Raises a PenstockError, or OSError for the folder."""
        if (found := await asyncio.to_thread(self._found)) is not None:
            self._put_in_force(found)
            return True
        if self._clock.wall_s() < due_wall_s(self._identity.certificate, self._rules, self._spread):
            return False
        await self.renew()
        return True

    async def renew(self) -> NodeCertificate:
        """A new certificate now, in force and in the folder. Raises a PenstockError, or OSError for the folder."""
        identity = self._identity
        async with self._open_registry() as channel:
            answer = await _asked(channel, identity)
        certificate = check_answer(answer.certificate_pem, identity.authority_pem, identity.node_id, identity.tls_key_pem)
        if not same_authority(answer.authority_pem, identity.authority_pem) or certificate.peer.role is not identity.role:
            raise CertificateRefused(
                "the mesh has another authority now, or this node another role; enrol it with `penstock join`"
            )
        # In the folder first: a process that dies in between comes back with the newer one.
        await asyncio.to_thread(write_public, identity.files.certificate, certificate.pem)
        self._put_in_force(certificate)
        return certificate

    def _pause_s(self) -> float:
        if self._failures:
            return self._rules.again.delay_s(self._failures, self._rng)
        until_due_s = due_wall_s(self._identity.certificate, self._rules, self._spread) - self._clock.wall_s()
        return min(self._rules.look_s, max(until_due_s, 1.0))

    def _found(self) -> NodeCertificate | None:
        """What somebody else put into the folder, if it lasts longer."""
        identity = self._identity
        if identity.files.certificate.read_bytes() == identity.certificate_pem:
            return None
        found = load_identity(identity.folder)
        keeps = found.node_id == identity.node_id and found.role is identity.role
        if not keeps or found.tls_key_pem != identity.tls_key_pem or found.authority_pem != identity.authority_pem:
            raise FailedPrecondition(f"{identity.folder} holds another node's identity now; restart this process to become it")
        return found.certificate if found.certificate.expires_wall_s > identity.certificate.expires_wall_s else None

    def _put_in_force(self, certificate: NodeCertificate) -> None:
        self._identity.current.certificate = certificate


def renewal_at(
    identity: NodeIdentity, registry_address: str, *, clock: Clock | None = None, rules: RenewalRules | None = None
) -> Renewal:
    """By the registry at this address, its inner port."""

    def open_registry() -> grpc.aio.Channel:
        if not registry_address:
            raise FailedPrecondition("no registry is known that could renew it; pass --registry-address HOST:PORT")
        return inner_channel(registry_address, identity, Role.REGISTRY)

    return Renewal(identity, open_registry, clock or SystemClock(), random.SystemRandom(), rules)


@asynccontextmanager
async def renewing(
    identity: NodeIdentity, registry_address: str, *, clock: Clock | None = None, rules: RenewalRules | None = None
) -> AsyncIterator[Renewal]:
    """Keep the certificate valid while the context lasts. The registry may be away meanwhile; an empty address: always."""
    renewal = renewal_at(identity, registry_address, clock=clock, rules=rules)
    async with asyncio.TaskGroup() as loops:
        task = loops.create_task(renewal.run(), name="renewal")
        try:
            yield renewal
        finally:
            task.cancel()


async def _asked(channel: grpc.aio.Channel, identity: NodeIdentity) -> nodes_pb2.RenewCertificateResponse:
    request = signed_request(identity.signing_key, identity.tls_key_pem, identity.node_id)
    message = nodes_pb2.RenewCertificateRequest(
        certificate_request=request.certificate_request,
        ed25519_public_key=request.ed25519_public_key,
        signature=request.signature,
    )
    try:
        answer = await nodes_pb2_grpc.NodeServiceStub(channel).RenewCertificate(message, timeout=_CALL_TIMEOUT_S)
    except grpc.aio.AioRpcError as failure:
        raise error_of(failure) from failure
    return answer
